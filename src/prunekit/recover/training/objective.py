"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from prunekit.workload import Batch

Objective = Callable[[nn.Module, Batch], Tensor]
"""``objective(model, batch)``: the mean loss of the model over the batch, a differentiable scalar.

One that is an ``nn.Module`` has its parameters trained, moved and saved along with the model.
"""


def task_objective(loss: Callable[[Any, Batch], Tensor]) -> Objective:
    """The loss of a workload: ``loss(model(*args, **kwargs), batch)``."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(*batch.args, **batch.kwargs), batch)

    return objective
