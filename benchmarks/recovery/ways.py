"""One-shot, iterative and gradual: when the units go, and what is trained in between."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from benchmarks.recovery.cuts import Cut
from torch import nn

from prunekit.recover import Task, TrainingSettings, learning_rate, shares, train
from prunekit.recover.optimizers import make_optimizer
from prunekit.recover.schedules import cubic

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


def oneshot(model: nn.Module, cut: Cut, sparsity: float, task: Task, settings: TrainingSettings) -> Recovered:
    """Everything goes at once, and all training comes after."""
    return in_cycles(model, cut, (sparsity,), task, settings)


def iterative(
    model: nn.Module, cut: Cut, sparsity: float, task: Task, settings: TrainingSettings
) -> Recovered:
    """Several cycles of score, cut and train, each with a learning-rate schedule of its own."""
    return in_cycles(model, cut, [sparsity * share for share in shares("cubic", CYCLES)], task, settings)


def in_cycles(
    model: nn.Module, cut: Cut, sparsities: Any, task: Task, settings: TrainingSettings
) -> Recovered:
    seen, log = 0, []
    for number, sparsity in enumerate(sparsities):
        model = laid_out(cut(model, sparsity))
        part = replace(settings, epochs=settings.epochs / len(sparsities), seed=settings.seed + 100 * number)
        done = train(model, task, part)
        seen += done.examples_seen
        log.append(
            {
                "sparsity": round(sparsity, 4),
                "before": done.epochs[0].validation_metric,
                "after": done.epochs[done.best].validation_metric,
            }
        )
    model = model.eval()
    return Recovered(cut.finished(model), seen, log, cut.left(model))


def gradual(model: nn.Module, cut: Cut, sparsity: float, task: Task, settings: TrainingSettings) -> Recovered:
    """One training run with one learning-rate schedule, and cuts in the middle of it.

    Source: Zhu & Gupta, 2017, section 3, https://arxiv.org/abs/1710.01878. Deviations: the run is a recovery of
    a trained parent; channels are removed in the same way as weights are masked, the optimizer following.
    """
    batch_size = settings.batch_size
    steps = round(settings.epochs * len(task.train) / batch_size)
    at = {math.floor(steps * CUTTING * index / CUTS): cubic((index + 1) / CUTS) for index in range(CUTS)}
    optimizer = make_optimizer(
        model,
        settings.optimizer,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    seen, epoch, batches = 0, 0, iter(())
    torch.manual_seed(settings.seed)
    for step in range(steps):
        if step in at:
            model = laid_out(cut(model, sparsity * at[step], optimizer)).train()
        batch = next(batches, None)
        if batch is None:
            batches = task.train.batches(batch_size, shuffle_seed=settings.seed * 1_000_003 + epoch)
            batch, epoch = next(batches), epoch + 1
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                steps=steps,
                peak=settings.learning_rate,
                schedule=settings.schedule,
                warmup=settings.warmup,
            )
        if task.augment is not None:
            batch = task.augment(batch, torch.Generator().manual_seed(settings.seed * 7 + step))
        optimizer.zero_grad(set_to_none=True)
        task.loss(model(*batch.args, **batch.kwargs), batch).backward()
        optimizer.step()
        seen += len(batch)
    model = model.eval()
    return Recovered(cut.finished(model), seen, [], cut.left(model))


def laid_out(model: nn.Module) -> nn.Module:
    """Kernels of convolutions with the channels last, as the parent has them: it is faster on a CPU."""
    if any(parameter.ndim == 4 for parameter in model.parameters()):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


Way = Callable[[nn.Module, Cut, float, Task, TrainingSettings], Recovered]

WAYS: dict[str, Way] = {"oneshot": oneshot, "iterative": iterative, "gradual": gradual}
"""Every way by its name in the tables."""
