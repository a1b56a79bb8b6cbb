"""Groups whose units are whole layers or residual branches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np

from prunekit.graph.axes import Structure
from prunekit.graph.depth import Bypass, Depth
from prunekit.graph.trace import Graph
from prunekit.types import Granularity, Group, Slice

Stacks = Mapping[str, tuple[Bypass, ...]]
"""By the name of a group of layers or branches: what leaving out each unit means."""

_BECAUSE = "it is left out of the computation, and what it was given goes on in its place"


def stacks(graph: Graph, structure: Structure) -> tuple[tuple[Group, ...], dict[str, tuple[Bypass, ...]]]:
    """The layers and the residual branches of a graph, each kind in groups of those that lie in one place.

    Layers of one stack form a group, ``encoder.layer:layer``; so do the branches that have the same name in
    every layer, ``encoder.layer.*.attention:branch``.
    """
    depth = Depth(graph, structure)
    found: dict[str, list[Bypass]] = {}
    kinds: dict[str, Granularity] = {}
    for kind, parts, place in (
        (Granularity.LAYER, depth.layers, _stack_of),
        (Granularity.BRANCH, depth.branches, _role_of),
    ):
        for part in parts:
            name = f"{place(part.path)}:{kind.value}"
            found.setdefault(name, []).append(part)
            kinds[name] = kind
    groups = []
    for name, parts in found.items():
        slices = tuple(
            piece
            for unit, part in enumerate(parts)
            for piece in _slices(graph, structure, depth.frees(part), unit)
        )
        groups.append(
            Group(
                name,
                kinds[name],
                size=len(parts),
                blocks=1,
                slices=slices,
                mask_equivalent=False,
                not_mask_equivalent_because=_BECAUSE,
                least=0,
            )
        )
    return tuple(groups), {name: tuple(parts) for name, parts in found.items()}


def only_units(
    group: Group, parts: tuple[Bypass, ...], units: Collection[int]
) -> tuple[Group, tuple[Bypass, ...]]:
    """A group of layers or branches with some of its units alone, numbered anew in their order."""
    left = sorted(units)
    number = {unit: place for place, unit in enumerate(left)}
    slices = tuple(
        replace(part, units=np.full_like(part.units, number[unit]))
        for part in group.slices
        if (unit := int(part.units[0])) in number
    )
    return replace(group, size=len(left), slices=slices), tuple(parts[unit] for unit in left)


def lies_in(branch: Bypass, layers: Iterable[Bypass]) -> bool:
    """A branch is part of one of these layers."""
    return any(branch.exit in layer.inside for layer in layers)


def _slices(graph: Graph, structure: Structure, tensors: Iterable[str], unit: int) -> Iterable[Slice]:
    """Every tensor that goes with a unit, along its first dimension; numbers on their own have none."""
    for name in tensors:
        if name in structure.labels.tensors and graph.tensor(name).ndim:
            units = np.full(graph.tensor(name).shape[0], unit, dtype=np.int64)
            yield Slice(name, 0, units, "producer" if name in graph.trainable else "follower")


def _stack_of(path: str) -> str:
    """``encoder.layer`` for ``encoder.layer.3``; ``*`` for what the model itself holds."""
    return path.rpartition(".")[0] or "*"


def _role_of(path: str) -> str:
    """``encoder.layer.*.attention`` for ``encoder.layer.3.attention``."""
    return ".".join("*" if part.isdecimal() else part for part in path.split("."))
