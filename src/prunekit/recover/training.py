"""The training loop: of a dense parent from scratch, and of a pruned model that wins its quality back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from prunekit.errors import TrainingError
from prunekit.recover.budget import budget_in_steps, steps_per_epoch
from prunekit.recover.learning_rate import learning_rate
from prunekit.recover.optimizers import make_optimizer
from prunekit.recover.settings import EpochRecord, TrainingRecord, TrainingSettings
from prunekit.recover.task import Task, task_of
from prunekit.workload import Batch, DecidingWorkload, Split, device_of, evaluating

Progress = Callable[[int, int], None]
"""``progress(steps done, steps planned)``."""


def train(
    model: nn.Module,
    task: DecidingWorkload | Task,
    settings: TrainingSettings,
    *,
    progress: Progress | None = None,
) -> TrainingRecord:
    """Train ``model`` in place and leave it with the weights and buffers of its best epoch.

    The best epoch is the one with the best validation; the model as it came is a candidate too, so training
    never ends worse on validation than it began. On one machine the same model, data, settings, seed and
    number of threads give bit-identical weights on the CPU. Every module trains in training mode; the modes
    and the global random state are left as found.

    Args:
        model: its parameters with ``requires_grad`` are trained, on the device they are on.
        task: a workload, of which only the train and validation splits are read, or a :class:`Task`.
        settings: how, and for how long.
        progress: called after every step with (steps done, steps planned).

    Raises:
        TrainingError: nothing can be trained, a step fails, or a loss is NaN or infinite; names the step and
            the learning rate. The weights of the best epoch so far are in the model.
    """
    task = task if isinstance(task, Task) else task_of(task)
    started = time.monotonic()
    steps = budget_in_steps(settings.epochs, train_examples=len(task.train), batch_size=settings.batch_size)
    for split in (task.train, task.validation):
        if len(split) == 0:
            raise TrainingError("it has no examples", where=f"split {split.name}")
    if steps and not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            "no parameter of the model requires a gradient", remedy="Unfreeze what is to train"
        )
    with _as_found(model, settings.seed):
        run = _Run(model, task, settings, steps, progress)
        try:
            run.start()
            while run.step < steps and not run.out_of_patience():
                run.epoch()
        finally:
            run.restore_best()
    return TrainingRecord(
        metric=task.metric,
        epochs=tuple(run.log),
        best=run.best,
        stopped_early=run.step < steps,
        steps=run.step,
        steps_planned=steps,
        examples_seen=run.examples_seen,
        seconds=time.monotonic() - started,
    )


class _Run:
    """The state of a training run: where it is, what it has logged, and the best weights so far."""

    def __init__(
        self, model: nn.Module, task: Task, settings: TrainingSettings, steps: int, progress: Progress | None
    ) -> None:
        self.model, self.task, self.settings, self.steps, self.progress = (
            model,
            task,
            settings,
            steps,
            progress,
        )
        self.device = device_of(model)
        self.per_epoch = steps_per_epoch(len(task.train), settings.batch_size)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.step = self.examples_seen = self.best = 0
        self.log: list[EpochRecord] = []
        self.best_state = _state(model)

    def start(self) -> None:
        """Judge the model as it came and prepare the optimizer."""
        began = time.monotonic()
        self.log.append(self._judge(began, train_loss=None, rate=None))
        if self.steps:
            chosen = self.settings
            self.optimizer = make_optimizer(
                self.model,
                chosen.optimizer,
                learning_rate=chosen.learning_rate,
                momentum=chosen.momentum,
                weight_decay=chosen.weight_decay,
            )

    def epoch(self) -> None:
        """One pass over the train split, or what is left of the budget, and one line of the log."""
        began = time.monotonic()
        self.model.train()
        total, seen, rate = 0.0, 0, 0.0
        order_seed = self.settings.seed * 1_000_003 + self.step // self.per_epoch
        batches = training_batches(self.task.train, self.settings.batch_size, shuffle_seed=order_seed)
        for _, batch in zip(range(self.steps - self.step), batches, strict=False):
            rate = self._rate()
            total += self._take_step(batch, rate) * len(batch)
            seen += len(batch)
            self.step += 1
            if self.progress is not None:
                self.progress(self.step, self.steps)
        self.examples_seen += seen
        self.log.append(self._judge(began, train_loss=total / seen, rate=rate))
        if self._better(self.log[-1], self.log[self.best]):
            self.best, self.best_state = len(self.log) - 1, _state(self.model)

    def out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and len(self.log) - 1 - self.best >= patience

    def restore_best(self) -> None:
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, tensor in _tensors(self.model):
                tensor.copy_(self.best_state[name])

    def _rate(self) -> float:
        chosen = self.settings
        return learning_rate(
            self.step,
            steps=self.steps,
            peak=chosen.learning_rate,
            schedule=chosen.schedule,
            warmup=chosen.warmup,
        )

    def _take_step(self, batch: Batch, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.task.augment is not None:
            batch = self.task.augment(batch, self.generator)
        batch = batch.to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss = self.task.loss(self.model(*batch.args, **batch.kwargs), batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise self._diverged("training loss", value, rate)
            loss.backward()
        except (RuntimeError, ValueError) as error:
            raise _failed("the step", error, self.step) from error
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        return value

    def _judge(self, began: float, *, train_loss: float | None, rate: float | None) -> EpochRecord:
        try:
            loss, metric = validate(self.model, self.task, batch_size=self.settings.batch_size)
        except (RuntimeError, ValueError) as error:
            raise _failed("validation", error, self.step) from error
        if not math.isfinite(loss):
            raise self._diverged("validation loss", loss, rate)
        return EpochRecord(
            epoch=self.step / self.per_epoch,
            step=self.step,
            train_loss=train_loss,
            validation_loss=loss,
            validation_metric=metric,
            learning_rate=rate,
            seconds=time.monotonic() - began,
        )

    def _better(self, new: EpochRecord, old: EpochRecord) -> bool:
        if self.settings.select == "loss" or new.validation_metric is None or old.validation_metric is None:
            return new.validation_loss < old.validation_loss
        return (new.validation_metric, -new.validation_loss) > (old.validation_metric, -old.validation_loss)

    def _diverged(self, what: str, value: float, rate: float | None) -> TrainingError:
        if rate is None:
            return TrainingError(
                f"the {what} of the model as it came is {value}",
                where="training step 0",
                remedy="Look for NaN in its weights",
            )
        return TrainingError(
            f"the {what} became {value} at a learning rate of {rate:.3g}",
            where=f"training step {self.step}",
            remedy="Use a smaller learning_rate, a longer warmup or clip_norm",
        )


def training_batches(split: Split, batch_size: int, *, shuffle_seed: int) -> Iterator[Batch]:
    """The shuffled batches of one epoch; a last batch of one example joins the batch before it.

    Batch normalisation has no variance over one example. See :func:`steps_per_epoch` for their number.
    """
    order = split.order(shuffle_seed)
    count = steps_per_epoch(len(order), batch_size)
    for index in range(count):
        upto = len(order) if index == count - 1 else (index + 1) * batch_size
        yield split.batch(order[index * batch_size : upto])


def validate(model: nn.Module, task: Task, *, batch_size: int) -> tuple[float, float | None]:
    """The mean loss and the mean score (None without one) over the validation split, in eval mode."""
    device = device_of(model)
    loss, scores = 0.0, []
    with evaluating(model), torch.no_grad():
        for batch in task.validation.batches(batch_size):
            moved = batch.to(device)
            outputs = model(*moved.args, **moved.kwargs)
            loss += float(task.loss(outputs, moved)) * len(moved)
            if task.score is not None:
                scores.append(np.asarray(task.score(outputs, moved), dtype=np.float64))
    return loss / len(task.validation), float(np.concatenate(scores).mean()) if scores else None


def _failed(what: str, error: Exception, step: int) -> TrainingError:
    return TrainingError(f"{what} failed ({' '.join(str(error).split())})", where=f"training step {step}")


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer, the non-persistent ones too."""
    return {name: tensor.detach().clone() for name, tensor in _tensors(model)}


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
