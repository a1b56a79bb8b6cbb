"""What training minimises, and what goes along with it step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from prunekit.errors import TrainingError
from prunekit.workload import Batch

Objective = Callable[[nn.Module, Batch], Tensor]
"""``objective(model, batch)``: the mean loss of the model over the batch, a differentiable scalar.

One that is an ``nn.Module`` has its parameters trained, moved and saved along with the model.
"""


class Companion(Protocol):
    """What goes along with training, in the form of PyTorch's learning-rate schedulers.

    One may say ``settled``, a bool, whether the model has the form that it is to have at the end (a sparsity,
    say). Validations before that are passed over when the best weights are chosen.

    Law: where the state of one is loaded into another that was made by the same arguments, both go on alike.
    """

    def step(self) -> None:
        """An optimizer step was made."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, and lists and dicts of them, whatever is needed to go on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on where the other one was."""
        ...


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


def is_settled(companion: Companion) -> bool:
    """The model has the form that the companion is to give it; true of those that do not say."""
    return bool(getattr(companion, "settled", True))


def task_objective(loss: Callable[[Any, Batch], Tensor]) -> Objective:
    """The loss of a workload: ``loss(model(*args, **kwargs), batch)``."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(*batch.args, **batch.kwargs), batch)

    return objective
