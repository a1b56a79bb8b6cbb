"""How a toy net and what is expected of it are written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.types import Granularity

Place = tuple[str, int]
"""A dimension of a tensor."""


@dataclass(frozen=True)
class Expected:
    """A group as found by hand.

    Attributes:
        granularity: of its units.
        units: how many there are.
        places: the dimensions it lies along.
        blocks: in which equal numbers stay.
        mask_equivalent: zeroing its units is removing them.
        least: the fewest that operators can run with.
    """

    granularity: Granularity
    units: int
    places: frozenset[Place]
    blocks: int = 1
    mask_equivalent: bool = True
    least: int = 1


@dataclass(frozen=True, eq=False)
class Case:
    """A net, an example of its inputs, and what is expected.

    Attributes:
        name: of the pattern.
        build: makes the net; called under a fixed seed.
        args: positional example inputs, made under a fixed seed.
        kwargs: keyword example inputs.
        groups: all prunable groups.
        frozen: all dimensions that are frozen, by the operator that froze them.
        own_class: half of every group can be removed and the class stays its own.
    """

    name: str
    build: Callable[[], nn.Module]
    args: Callable[[], tuple[Any, ...]]
    groups: tuple[Expected, ...]
    frozen: dict[str, set[Place]]
    kwargs: Callable[[], dict[str, Any]] = field(default=dict)
    own_class: bool = True

    def model(self) -> nn.Module:
        """A new net, the same each time, its norms' scales and statistics unlike their first values."""
        torch.manual_seed(0)
        model = self.build()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(getattr(module, "running_var", None), Tensor):
                    module.running_mean.uniform_(-0.5, 0.5)  # pyright: ignore
                    module.running_var.uniform_(0.5, 1.5)  # pyright: ignore
                if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), Tensor):
                    module.weight.uniform_(0.5, 1.5)  # pyright: ignore
                    if getattr(module, "bias", None) is not None:
                        module.bias.uniform_(-0.5, 0.5)  # pyright: ignore
        return model

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example inputs, the same each time."""
        torch.manual_seed(1)
        return self.args(), self.kwargs()


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Callable[[], tuple[Tensor]]:
    """One batch of square images."""
    return lambda: (torch.randn(batch, channels, size, size),)


def rows(*shape: int, batch: int = 2) -> Callable[[], tuple[Tensor]]:
    """One batch of vectors, or of whatever ``shape`` says."""
    return lambda: (torch.randn(batch, *shape),)


def at(tensor: str, dim: int = 0) -> set[Place]:
    """One dimension of one tensor."""
    return {(tensor, dim)}


def out(*layers: str, bias: bool = True) -> set[Place]:
    """Where layers' outputs lie: dimension 0 of the weight, and the bias. Also a norm's scale and shift."""
    weights = {(f"{layer}.weight", 0) for layer in layers}
    return weights | {(f"{layer}.bias", 0) for layer in layers if bias}


def into(*layers: str) -> set[Place]:
    """Where layers read their inputs: dimension 1 of the weight."""
    return {(f"{layer}.weight", 1) for layer in layers}


def norm(*layers: str) -> set[Place]:
    """A norm with running statistics."""
    names = ("weight", "bias", "running_mean", "running_var")
    return {(f"{layer}.{name}", 0) for layer in layers for name in names}


def group(
    granularity: str,
    units: int,
    *places: set[Place],
    blocks: int = 1,
    mask_equivalent: bool = True,
    least: int = 1,
) -> Expected:
    """An :class:`Expected`."""
    return Expected(Granularity(granularity), units, _union(places), blocks, mask_equivalent, least)


def _union(places: Iterable[set[Place]]) -> frozenset[Place]:
    return frozenset().union(*places)
