"""The tensors of a model: copies of them, and their exponential moving average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, the non-persistent buffers too; a tied one once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with memory of their own."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def copy_into(targets: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Give tensors the values of others with the same names."""
    for name, tensor in source.items():
        targets[name].copy_(tensor)


class Average:
    """An exponential moving average of every parameter and floating buffer; other buffers are copied.

    ``average = d_n average + (1 - d_n) tensor`` with ``d_n = min(decay, (1 + n) / (10 + n))`` after the
    ``n``-th step, so that the beginning does not weigh for long in a short run.

    Source: ``ExponentialMovingAverage`` of TensorFlow 1 with ``num_updates``. Deviation: none.

    Args:
        model: what is averaged; shapes may not change.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.tensors = copied(tensors_of(model))

    @torch.no_grad()
    def step(self) -> None:
        """Take in the model as it is."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in tensors_of(self.model).items():
            average = self.tensors[name]
            if average.is_floating_point():
                average.lerp_(tensor.detach().to(average.dtype), 1 - decay)
            else:
                average.copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages inside, and its own tensors afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        tensors = tensors_of(self.model)
        own = copied(tensors)
        copy_into(tensors, self.tensors)
        copy_into(self.tensors, own)

    def state_dict(self) -> dict[str, Any]:
        """The averages and the number of steps."""
        return {"steps": self.steps, "tensors": dict(self.tensors)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another average of the same model was."""
        self.steps = state_dict["steps"]
        copy_into(self.tensors, state_dict["tensors"])
