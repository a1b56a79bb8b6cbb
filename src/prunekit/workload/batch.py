"""The batch: what goes into a model in one call, and what should come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples that a model sees in one call: ``model(*batch.args, **batch.kwargs)``.

    ``len(batch)`` is the number of examples.

    Attributes:
        args: positional inputs of the model, each with the examples along dimension 0.
        kwargs: keyword inputs of the model.
        target: what the loss compares the outputs with; None where the inputs carry it.
        ids: one identifier per example.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: Any = None
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""
        return replace(
            self,
            args=_move(self.args, device),
            kwargs=_move(dict(self.kwargs), device),
            target=_move(self.target, device),
        )


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_move(item, device) for item in value)
    if isinstance(value, list):
        return [_move(item, device) for item in value]
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    return value
