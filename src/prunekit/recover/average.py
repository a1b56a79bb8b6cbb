"""The tensors of a model: copies of them, and their exponential moving average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import TrainingError


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, the non-persistent buffers too; a tied one once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with memory of their own."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def copy_into(targets: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Give tensors the values of others with the same names.

    Raises:
        TrainingError: one is missing or has another shape than before.
    """
    for name, tensor in source.items():
        target = targets.get(name)
        if target is None or target.shape != tensor.shape:
            raise _changed(name, tensor, target)
        strides = target.stride() if target.layout == torch.strided else ()
        for dim, stride in enumerate(strides):
            if stride == 0:  # Expanded: all along this dimension is one place in memory.
                target, tensor = target.narrow(dim, 0, 1), tensor.narrow(dim, 0, 1)
        target.copy_(tensor)


def _changed(name: str, was: Tensor | None, now: Tensor | None) -> TrainingError:
    before, after = ("absent" if each is None else f"of shape {list(each.shape)}" for each in (was, now))
    return TrainingError(
        f"it was {before} and is {after}",
        expected="parameters and buffers that keep their names and shapes while the model trains",
        where=f"tensor '{name}'",
        remedy="Run the model once before training if it makes buffers when it is first called, and keep "
        "what grows in an attribute that is no buffer",
    )


class Average:
    """An exponential moving average of every parameter and floating buffer; other buffers are copied.

    It is kept in float32 at least: in half precision the small steps of a slow average would round to none.

    ``average = d_n average + (1 - d_n) tensor`` with ``d_n = min(decay, (1 + n) / (10 + n))`` after the
    ``n``-th step, so that the beginning does not weigh for long in a short run.

    Source: ``ExponentialMovingAverage`` of TensorFlow 1 with ``num_updates``. Deviation: none.

    Args:
        model: what is averaged; shapes may not change.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.tensors = {name: _wide(tensor) for name, tensor in copied(tensors_of(model)).items()}

    @torch.no_grad()
    def step(self) -> None:
        """Take in the model as it is."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in tensors_of(self.model).items():
            average = self.tensors.get(name)
            if average is None or average.shape != tensor.shape:
                raise _changed(name, average, tensor)
            if average.is_floating_point() or average.is_complex():
                average.lerp_(tensor.detach().to(average.dtype), 1 - decay)
            else:
                average.copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages inside, and its own tensors afterwards."""
        tensors = tensors_of(self.model)
        own = copied(tensors)
        try:
            copy_into(tensors, self.tensors)
            yield
        finally:
            copy_into(tensors, own)

    def state_dict(self) -> dict[str, Any]:
        """The averages and the number of steps."""
        return {"steps": self.steps, "tensors": dict(self.tensors)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another average of the same model was."""
        self.steps = state_dict["steps"]
        copy_into(self.tensors, state_dict["tensors"])


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
