"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from prunekit.errors import TrainingError
from prunekit.workload import Batch

Objective = Callable[[nn.Module, Batch], Tensor]
"""``objective(model, batch)``: the mean loss of the model over the batch, a differentiable scalar.

One that is an ``nn.Module`` has its parameters trained, moved and saved along with the model.
"""


def checked(loss: object) -> Tensor:
    """The loss itself.

    Raises:
        TrainingError: it is not one number in a tensor.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    given = f"tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TrainingError(
        f"it is a {given}",
        expected="a tensor of one number, the mean over the examples of the batch",
        where="the loss",
        remedy="Return the loss alone, with reduction='mean', and without .item()",
    )


def task_objective(loss: Callable[[Any, Batch], Tensor]) -> Objective:
    """The loss of a workload: ``loss(model(*args, **kwargs), batch)``."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(*batch.args, **batch.kwargs), batch)

    return objective
