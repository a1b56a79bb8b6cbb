"""The training loop: of a dense parent from scratch, and of a pruned model that wins its quality back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from prunekit.errors import TrainingError, UsageError
from prunekit.ranks import ALONE, Ranks
from prunekit.recover.companion import Companion
from prunekit.recover.shrinking.cuts import Cutting
from prunekit.recover.training.checkpoints import Checkpoints
from prunekit.recover.training.objective import Objective, task_objective
from prunekit.recover.training.run import Progress, Run
from prunekit.recover.training.settings import TrainingRecord, TrainingSettings
from prunekit.recover.training.task import Task, task_of
from prunekit.recover.training.tensors import named_tensors
from prunekit.workload import DecidingWorkload, device_of


def train(
    model: nn.Module,
    task: DecidingWorkload | Task,
    settings: TrainingSettings,
    *,
    objective: Objective | None = None,
    companions: Sequence[Companion] = (),
    checkpoints: Checkpoints | None = None,
    ranks: Ranks = ALONE,
    progress: Progress | None = None,
) -> TrainingRecord:
    """Train ``model`` in place and leave it with the weights and buffers of its best validation.

    The model as it came is a candidate too, so training never ends worse on validation than it began. On one
    machine the same model, data, settings, seed and number of threads give bit-identical weights on the CPU,
    whether the run was interrupted and went on from a checkpoint or not (budgets in seconds excepted). Every
    module trains in training mode; the modes and the global random state are left as found.

    Several processes share the examples of every step and average their gradients, so that the run is that
    of one process but for rounding, batch norms (each process has its own statistics of a batch) and random
    numbers (dropout, augmentation). A model that ``fully_shard`` has spread over them stays spread.

    Args:
        model: its parameters with ``requires_grad`` are trained, on the device they are on.
        task: a workload, of which only the train and validation splits are read, or a :class:`Task`.
        settings: how, and for how long.
        objective: what is minimised; the task's loss if None. Parameters of its own are trained along.
        companions: told after every optimizer step, such as gradual masks.
        checkpoints: where to write down how to go on; a run that finds one there goes on from it.
        ranks: the processes that train together: :func:`prunekit.ranks.all_ranks`, or this one alone.
        progress: called after every step with (steps done, steps planned).

    Raises:
        TrainingError: nothing can be trained, a step fails, or a loss is NaN or infinite; names the step and
            the learning rate. The best weights so far are in the model.
        UsageError: no loss and no objective, a companion that cuts the model, or the checkpoint is of
            another run.
        StorageError: a checkpoint cannot be written or is damaged. The best weights so far are in the model.
        RankError: another process is lost.
    """
    task = task if isinstance(task, Task) else task_of(task)
    for split in (task.train, task.validation):
        if len(split) == 0:
            raise TrainingError("it has no examples", where=f"split {split.name}")
    if settings.budget.amount and not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            "no parameter of the model requires a gradient", remedy="Unfreeze what is to train"
        )
    _check_values(model)
    objective = _objective(task, objective, model)
    _check_companions(companions)
    with _as_found(model, settings.seed + ranks.rank):
        run = Run(model, task, settings, objective, companions, checkpoints, ranks, progress)
        try:
            run.start()
            while not run.is_over():
                run.stretch()
        finally:
            run.restore_best()
    return run.record()


def _objective(task: Task, given: Objective | None, model: nn.Module) -> Objective:
    if given is None:
        if task.loss is None:
            raise UsageError(
                "the task has no loss, and there is no objective",
                expected="a task with a loss, or an objective that needs no labels, such as a distillation",
                where="train",
            )
        return task_objective(task.loss)
    if getattr(given, "teacher", None) is model:
        raise UsageError(
            "the model is its own teacher, from which it can learn nothing",
            expected="two models",
            where="train",
            remedy="Take copy.deepcopy() of the dense model as the teacher before it is pruned in place",
        )
    if task.augment is not None and getattr(given, "remembers_examples", False):
        raise UsageError(
            "the task changes its training examples, and the objective remembers them by their ids",
            expected="an objective that computes what it needs, or a task without augmentation",
            where="train",
            remedy="Leave out the cache of the distillation, or set augment to None",
        )
    return given


def _check_values(model: nn.Module) -> None:
    for name, tensor in named_tensors(model).items():
        if is_lazy(tensor) or tensor.is_meta:
            raise TrainingError(
                "it has no values yet",
                expected="a model whose parameters and buffers have values",
                where=f"tensor '{name}'",
                remedy="Run a model with lazy modules once before training; load weights into one on the "
                "meta device",
            )


def _check_companions(companions: Sequence[Companion]) -> None:
    cutting = next((each for each in companions if isinstance(each, Cutting)), None)
    if cutting is not None:
        raise UsageError(
            f"{type(cutting).__name__} would cut the model while it trains",
            expected="companions that leave the form of the model: its best weights are kept and given back",
            where="train",
            remedy="Cut between two calls of train(), or in a loop of your own",
        )


@contextmanager
def _as_found(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed torch inside; its global random state and the modes of the modules as found afterwards."""
    device = device_of(model)
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
