"""The exponential moving average of a model while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.recover.training.tensors import changed, copies_of, copy_into, named_tensors


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
        self.tensors = {name: _wide(tensor) for name, tensor in copies_of(named_tensors(model)).items()}

    @torch.no_grad()
    def step(self) -> None:
        """Take in the model as it is."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in named_tensors(self.model).items():
            average = self.tensors.get(name)
            if average is None or average.shape != tensor.shape:
                raise changed(name, average, tensor)
            if average.is_floating_point() or average.is_complex():
                average.lerp_(tensor.detach().to(average.dtype), 1 - decay)
            else:
                average.copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages inside, and its own tensors afterwards."""
        tensors = named_tensors(self.model)
        own = copies_of(tensors)
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
