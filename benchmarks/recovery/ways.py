"""One-shot, iterative and gradual: when the units go, and what is trained in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from benchmarks.recovery.cuts import Cut, SingleWeights
from torch import nn

import prunekit as pk
from prunekit.recover import Objective, Task, TrainingSettings, cubic, learning_rate, shares, train
from prunekit.recover.training.optimizers import make_optimizer
from prunekit.recover.training.settings import WARMUP
from prunekit.workload import Batch

Settings = Callable[[nn.Module], TrainingSettings]
"""How to train a model that was just cut, for the whole budget."""

CYCLES = 5
"""Of an iterative run, along the default curve of a recipe, ``cubic``; the budget is divided evenly."""

CUTS, CUTTING = 10, 2 / 3
"""How often a gradual run cuts, evenly over that share of it, to the cubic curve; then it trains on."""


@dataclass(frozen=True)
class Recovered:
    """What a way of pruning gave.

    Attributes:
        model: pruned and recovered, without masks.
        examples_seen: in all training together.
        log: one entry per training run: quality on validation before and after it.
        left: the share of the parent that is left.
    """

    model: nn.Module
    examples_seen: int
    log: list[dict[str, Any]]
    left: float


def oneshot(
    model: nn.Module,
    cut: Cut,
    sparsity: float,
    task: Task,
    settings: Settings,
    objective: Objective | None = None,
) -> Recovered:
    """Everything goes at once, and all training comes after."""
    return in_cycles(model, cut, (sparsity,), task, settings, objective)


def iterative(
    model: nn.Module,
    cut: Cut,
    sparsity: float,
    task: Task,
    settings: Settings,
    objective: Objective | None = None,
) -> Recovered:
    """Several cycles of score, cut and train, each with a learning-rate schedule of its own."""
    sparsities = [sparsity * share for share in shares("cubic", CYCLES)]
    return in_cycles(model, cut, sparsities, task, settings, objective)


def in_cycles(
    model: nn.Module,
    cut: Cut,
    sparsities: Sequence[float],
    task: Task,
    settings: Settings,
    objective: Objective | None,
) -> Recovered:
    """Cut to each sparsity in turn, and train an even part of the budget after each."""
    seen, log = 0, []
    for number, sparsity in enumerate(sparsities):
        model = laid_out(cut(model, sparsity))
        whole = settings(model)
        part = replace(whole, epochs=whole.epochs / len(sparsities), seed=whole.seed + 100 * number)
        done = train(model, task, part, objective=objective)
        seen += done.examples_seen
        log.append(
            {
                "sparsity": round(sparsity, 4),
                "before": done.epochs[0].validation_metric,
                "after": done.epochs[done.best].validation_metric,
                "learning_rate": part.learning_rate,
            }
        )
    model = model.eval()
    return Recovered(cut.finished(model), seen, log, cut.left(model))


def gradual(
    model: nn.Module,
    cut: Cut,
    sparsity: float,
    task: Task,
    settings: Settings,
    objective: Objective | None = None,
) -> Recovered:
    """One training run with one learning-rate schedule, and cuts in the middle of it, in one's own loop.

    Source: Zhu & Gupta, 2017, section 3, https://arxiv.org/abs/1710.01878. Deviations: the run is a recovery
    of a trained parent; channels go at once and for good, the optimizer following.
    """
    chosen = settings(model)
    steps = round(chosen.epochs * len(task.train) / chosen.batch_size)
    assert objective is None, "the loop here minimises the task's loss"
    loop = Loop(model, task, chosen, steps)
    if isinstance(cut, SingleWeights):
        every = max(1, round(steps * CUTTING / CUTS))
        masks = pk.GradualMasks(
            model,
            steps=steps,
            sparsity=sparsity,
            scope=cut.scope,
            end=CUTTING,
            every=every,
            optimizer=loop.optimizer,
        )
        for _ in range(steps):
            loop.step()
            masks.step()
    else:
        at = {math.floor(steps * CUTTING * index / CUTS): cubic((index + 1) / CUTS) for index in range(CUTS)}
        for step in range(steps):
            if step in at:
                loop.model = laid_out(cut(loop.model, sparsity * at[step], loop.optimizer)).train()
            loop.step()
    model = loop.model.eval()
    return Recovered(cut.finished(model), loop.examples_seen, [], cut.left(model))


class Loop:
    """A training loop of one's own, step by step: nothing is judged, and the last weights count."""

    def __init__(self, model: nn.Module, task: Task, settings: TrainingSettings, steps: int) -> None:
        self.model, self.task, self.settings, self.steps = model.train(), task, settings, steps
        self.optimizer = make_optimizer(
            model,
            settings.optimizer,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.done = self.examples_seen = 0
        self.batches = self._batches()
        self.generator = torch.Generator().manual_seed(settings.seed)

    def step(self) -> None:
        """One batch, at the learning rate of this step."""
        chosen, batch = self.settings, next(self.batches)
        rate = learning_rate(
            self.done,
            steps=self.steps,
            peak=chosen.learning_rate,
            schedule=chosen.schedule,
            warmup=WARMUP if chosen.warmup is None else chosen.warmup,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.task.augment is not None:
            batch = self.task.augment(batch, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        self.task.loss(self.model(*batch.args, **batch.kwargs), batch).backward()
        self.optimizer.step()
        self.done, self.examples_seen = self.done + 1, self.examples_seen + len(batch)

    def _batches(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            seed = self.settings.seed * 1_000_003 + epoch
            yield from self.task.train.batches(self.settings.batch_size, shuffle_seed=seed)
            epoch += 1


def laid_out(model: nn.Module) -> nn.Module:
    """Kernels of convolutions with the channels last, as the parent has them: it is faster on a CPU."""
    if any(parameter.ndim == 4 for parameter in model.parameters()):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


Way = Callable[[nn.Module, Cut, float, Task, Settings, Objective | None], Recovered]

WAYS: dict[str, Way] = {"oneshot": oneshot, "iterative": iterative, "gradual": gradual}
"""Every way by its name in the tables."""
