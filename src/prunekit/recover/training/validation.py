"""How good a model is on the validation split while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import TrainingError
from prunekit.ranks import ALONE, Ranks, resharded
from prunekit.recover.training.objective import Objective, checked
from prunekit.recover.training.task import Task
from prunekit.workload import Batch, Split, device_of, evaluating


def validate(
    model: nn.Module,
    task: Task,
    *,
    batch_size: int,
    objective: Objective | None = None,
    ranks: Ranks = ALONE,
) -> tuple[float, float | None]:
    """The mean loss and the mean score (None without one) over the validation split, in eval mode.

    Args:
        model: runs in evaluation mode and without gradients.
        task: its loss and score.
        batch_size: examples per call, of all processes together.
        objective: measured where the task has no loss.
        ranks: the processes, each of which takes a part of every batch.
    """
    device = device_of(model)
    loss, scores = 0.0, [np.zeros(0)]
    with evaluating(model), torch.no_grad():
        for batch, counts in _parts(task.validation, batch_size, ranks):
            moved = batch.to(device)
            mean, score = _judged(model, task, objective, moved)
            if counts:
                loss += float(mean) * len(moved)
            if score is not None:
                scores.append(score if counts else score[:0])
    resharded(model)
    whole = np.concatenate(scores)
    found = ranks.gather([loss, float(whole.sum())], "validation")
    count = len(task.validation)
    mean_loss = sum(each[0] for each in found) / count
    return mean_loss, sum(each[1] for each in found) / count if task.score is not None else None


def _judged(
    model: nn.Module, task: Task, objective: Objective | None, batch: Batch
) -> tuple[Tensor, np.ndarray | None]:
    score: Callable[[Any, Batch], np.ndarray] | None = task.score
    outputs = model(*batch.args, **batch.kwargs) if task.loss is not None or score is not None else None
    if task.loss is not None:
        loss = task.loss(outputs, batch)
    else:
        assert objective is not None
        loss = objective(model, batch)
    return checked(loss), None if score is None else _scores(score(outputs, batch), batch)


def _scores(found: Any, batch: Batch) -> np.ndarray:
    """``[examples]`` float64.

    Raises:
        TrainingError: not a finite number for each example. Nothing is better than NaN or worse.
    """
    scores = np.asarray(found, dtype=np.float64)
    if scores.shape != (len(batch),):
        raise TrainingError(
            f"it has the shape {list(scores.shape)} for {len(batch)} examples",
            expected="a number for each example",
            where="the score",
        )
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise TrainingError(
            f"it is {scores[wrong[0]]} for example {batch.ids[wrong[0]]}",
            expected="a finite number for each example",
            where="the score",
        )
    return scores


def _parts(split: Split, batch_size: int, ranks: Ranks) -> Iterator[tuple[Batch, bool]]:
    """This process's part of every batch; where none is left, an example of another that does not count."""
    order = split.order()
    for at in range(0, len(order), batch_size):
        whole = order[at : at + batch_size]
        mine = whole[ranks.rank :: ranks.size]
        yield split.batch(mine or whole[:1]), bool(mine)
