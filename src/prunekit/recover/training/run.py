"""The state of a training run: where it is, what it has logged, the best weights so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from prunekit.errors import TrainingError, UsageError
from prunekit.ranks import Ranks
from prunekit.recover.companion import Companion, is_settled, use_optimizers
from prunekit.recover.training.average import Average
from prunekit.recover.training.budget import Spent
from prunekit.recover.training.checkpoints import (
    Checkpoints,
    make_room,
    read_checkpoint,
    write_checkpoint,
)
from prunekit.recover.training.feed import Feed, Step, tokens_of
from prunekit.recover.training.learning_rate import learning_rate
from prunekit.recover.training.objective import Objective
from prunekit.recover.training.resuming import go_on_from, identity_of, state_of, tensor_at
from prunekit.recover.training.settings import EpochRecord, TrainingRecord, TrainingSettings
from prunekit.recover.training.stepper import Stepper
from prunekit.recover.training.task import Task
from prunekit.recover.training.tensors import copies_of, copy_into, named_tensors
from prunekit.recover.training.validation import validate

Progress = Callable[[int, int], None]
"""``progress(steps done, steps planned)``."""

GRID = 10_000
"""Steps that a schedule of the learning rate has where only the run itself tells how many there are."""


class Run:
    """A training run between two of its steps; see :func:`prunekit.recover.train`."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        settings: TrainingSettings,
        objective: Objective,
        companions: Sequence[Companion],
        checkpoints: Checkpoints | None,
        ranks: Ranks,
        progress: Progress | None,
    ) -> None:
        self.model, self.task, self.settings, self.objective = model, task, settings, objective
        self.companions, self.checkpoints = companions, checkpoints
        self.ranks, self.progress = ranks, progress
        self.feed = Feed(
            task.train,
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            ranks=ranks,
            workers=settings.workers,
            seed=settings.seed,
        )
        self.steps = settings.budget.in_steps(train_examples=len(task.train), batch_size=settings.batch_size)
        self.generator = torch.Generator().manual_seed(settings.seed + ranks.rank)
        self.spent, self.before = Spent(), 0.0
        self.share = settings.budget.share(self.spent, steps=self.steps)
        self.log: list[EpochRecord] = []
        self.best, self.settled = 0, False  # Whether the best line is one that others are compared with.
        self.total, self.seen, self.rate = 0.0, 0, 0.0  # Of the steps since the last validation.
        self.resumed_at: int | None = None
        self.started = self.noted = self.saved = time.monotonic()
        self.saved_step = 0
        self.identity: dict[str, str] = {}  # Of the model as it came, where there are checkpoints.
        self.best_state = copies_of(named_tensors(model))
        self.average = Average(model, settings.ema) if settings.ema is not None else None

    def start(self) -> None:
        """Go on from a checkpoint, or judge the model as it came; then prepare the optimizer."""
        if self.checkpoints is not None:
            make_room(self.checkpoints, self.ranks)
            self.identity = identity_of(self)
        path = self._newest_checkpoint()
        if path is None:
            self._validate(rate=None)
        if self.share < 1 or path is not None:
            self.stepper = Stepper(self.model, self.objective, self.settings, self.ranks)
            for companion in self.companions:
                use_optimizers(companion, [self.stepper.optimizer])
        if path is not None:
            state = read_checkpoint(path, self.identity, lambda place: tensor_at(place, self), self.ranks)
            go_on_from(state, self)
            self.share = self._share_used()
        self._check_companions()
        self.coming = self._coming()

    def is_over(self) -> bool:
        """The budget is used, or patience."""
        return self.share >= 1 or self._out_of_patience()

    def stretch(self) -> None:
        """Train up to the next validation, which is made, or to the end of the budget."""
        self.model.train()
        while True:
            self._step()
            over = self.share >= 1
            ends = over or self._validation_is_due()
            if ends:
                self._validate(rate=self.rate)
            if not over:
                self._save_if_due()
            if ends:
                return

    def restore_best(self) -> None:
        """Leave the best weights and buffers so far in the model, and no gradients."""
        self.model.zero_grad(set_to_none=True)
        copy_into(named_tensors(self.model), self.best_state)

    def record(self) -> TrainingRecord:
        """What was done."""
        counts_tokens = self.settings.budget.unit == "tokens"
        return TrainingRecord(
            metric=self.task.metric,
            epochs=tuple(self.log),
            best=self.best,
            stopped_early=self.share < 1,
            steps=self.spent.steps,
            steps_planned=self.spent.steps if self.steps is None else self.steps,
            examples_seen=self.spent.examples,
            seconds=self.seconds(),
            tokens_seen=self.spent.tokens if counts_tokens else None,
            resumed_at=self.resumed_at,
        )

    def _check_companions(self) -> None:
        """No companion may be cut short: the model would not have the form that it was to have."""
        if self.steps is None:
            return
        left = self.steps - self.spent.steps
        for companion in self.companions:
            needed = getattr(companion, "steps_left", 0)
            if needed > left:
                raise UsageError(
                    f"{type(companion).__name__} needs {needed} more optimizer steps, and the run has {left}",
                    expected="a companion that is settled within the budget",
                    where="train",
                    remedy=f"Give it steps={self.steps}, or the run a larger budget",
                )

    def _coming(self) -> Iterator[Step]:
        """The steps from here on, epoch after epoch."""
        epoch, skip = divmod(self.spent.steps, self.feed.per_epoch)
        while True:
            yield from self.feed.epoch(epoch, skip=skip)
            epoch, skip = epoch + 1, 0

    def _step(self) -> None:
        self.rate = self._rate_here()
        with self.ranks.together("a training step"):
            step = self._next_step()
            tokens = self._tokens(step)
            own = self._backward(step)
            found = self.ranks.gather([own, tokens], "the loss of a step")
        loss = sum(each[0] for each in found)
        if not math.isfinite(loss):
            raise self._diverged("training loss", loss, self.rate)
        self.stepper.update(self.rate)
        for companion in self.companions:
            companion.step()
        if self.average is not None:  # After the companions: it has the masks that they have made.
            self.average.step()
        self.total, self.seen = self.total + loss * step.examples, self.seen + step.examples
        self.spent = Spent(
            steps=self.spent.steps + 1,
            examples=self.spent.examples + step.examples,
            tokens=self.spent.tokens + sum(each[1] for each in found),
            seconds=self.seconds(),
        )
        self.share = self._share_used()
        if self.progress is not None:
            done = self.spent.steps
            self.progress(done, max(done, round(done / self.share)) if self.steps is None else self.steps)

    def _next_step(self) -> Step:
        try:
            step = next(self.coming)
        except RuntimeError as error:  # A process that reads ahead died.
            raise self._failed("reading training examples", error) from error
        if self.task.augment is None:
            return step
        augment = self.task.augment
        parts = tuple(replace(part, batch=augment(part.batch, self.generator)) for part in step.parts)
        return replace(step, parts=parts)

    def _backward(self, step: Step) -> float:
        try:
            return self.stepper.backward(step)
        except (RuntimeError, ValueError) as error:
            raise self._failed("the step", error) from error

    def _tokens(self, step: Step) -> int:
        if self.settings.budget.unit != "tokens":
            return 0
        counts = [tokens_of(part.batch) for part in step.parts if part.share]
        if None in counts:
            raise TrainingError(
                "the budget is in tokens, and a batch has neither an attention_mask nor integer inputs",
                expected="a budget in epochs, steps, examples or seconds",
                where=f"training step {self.spent.steps}",
            )
        return sum(count for count in counts if count is not None)

    def _share_used(self) -> float:
        share = self.settings.budget.share(self.spent, steps=self.steps)
        # Clocks differ, and all processes must stop at the same step.
        return self.ranks.first(share, "the time used") if self.settings.budget.unit == "seconds" else share

    def _rate_here(self) -> float:
        chosen = self.settings
        steps = GRID if self.steps is None else self.steps
        step = self.share * GRID if self.steps is None else self.spent.steps
        return learning_rate(
            step,
            steps=steps,
            peak=chosen.learning_rate,
            schedule=chosen.schedule,
            warmup=chosen.rise,
            rewind_to=chosen.rewind_to,
        )

    def _validation_is_due(self) -> bool:
        every = self.settings.validate_every
        if every is None:
            return self.spent.steps % self.feed.per_epoch == 0
        return self.spent.steps - self.log[-1].step >= every

    def _validate(self, *, rate: float | None) -> None:
        """Write a line of the log, and keep the weights if they are the best."""
        if self.average is None:
            line = self._line(rate)
            self._keep_if_better(line)
        else:
            with self.average.in_place():
                line = self._line(rate)
                self._keep_if_better(line)
        self.model.train()

    def _line(self, rate: float | None) -> EpochRecord:
        try:
            with self.ranks.together("a validation"):
                loss, metric = validate(
                    self.model,
                    self.task,
                    batch_size=self.settings.batch_size,
                    objective=self.objective,
                    ranks=self.ranks,
                )
        except (RuntimeError, ValueError) as error:
            raise self._failed("validation", error) from error
        if not math.isfinite(loss):
            raise self._diverged("validation loss", loss, rate)
        began, self.noted = self.noted, time.monotonic()
        return EpochRecord(
            epoch=self.spent.steps / self.feed.per_epoch,
            step=self.spent.steps,
            train_loss=self.total / self.seen if self.seen else None,
            validation_loss=loss,
            validation_metric=metric,
            learning_rate=rate,
            seconds=self.noted - began,
        )

    def _keep_if_better(self, line: EpochRecord) -> None:
        self.log.append(line)
        self.total, self.seen = 0.0, 0
        if not self.settled or self._better(line, self.log[self.best]):
            self.best, self.best_state = len(self.log) - 1, copies_of(named_tensors(self.model))
        self.settled = all(map(is_settled, self.companions))

    def _better(self, new: EpochRecord, old: EpochRecord) -> bool:
        if self.settings.select == "loss" or new.validation_metric is None or old.validation_metric is None:
            return new.validation_loss < old.validation_loss
        return (new.validation_metric, -new.validation_loss) > (old.validation_metric, -old.validation_loss)

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and len(self.log) - 1 - self.best >= patience

    def seconds(self) -> float:
        """Wall time, that of earlier processes of the run too."""
        return self.before + time.monotonic() - self.started

    def _newest_checkpoint(self) -> Path | None:
        if self.checkpoints is None:
            return None
        newest = self.checkpoints.latest()
        name = self.ranks.first(newest.name if newest else None, "the newest checkpoint")
        return self.checkpoints.directory / name if name else None

    def _save_if_due(self) -> None:
        if self.checkpoints is None:
            return
        steps, seconds = self.spent.steps - self.saved_step, time.monotonic() - self.saved
        due = self.checkpoints.are_due(steps, seconds)
        if self.ranks.first(due, "whether a checkpoint is due"):
            write_checkpoint(self.checkpoints, self.spent.steps, state_of(self), self.identity, self.ranks)
            self.saved, self.saved_step = time.monotonic(), self.spent.steps

    def _failed(self, what: str, error: Exception) -> TrainingError:
        told = " ".join(str(error).split())
        return TrainingError(f"{what} failed ({told})", where=f"training step {self.spent.steps}")

    def _diverged(self, what: str, value: float, rate: float | None) -> TrainingError:
        if rate is None:
            return TrainingError(
                f"the {what} of the model as it came is {value}",
                where="training step 0",
                remedy="Look for NaN in its weights",
            )
        return TrainingError(
            f"the {what} became {value} at a learning rate of {rate:.3g}",
            where=f"training step {self.spent.steps}",
            remedy="Use a smaller learning_rate, a longer warmup or clip_norm",
        )
