"""Groups whose units are whole layers or residual branches, and what leaving out each means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from prunekit.graph.axes import Structure
from prunekit.graph.depth import Depth
from prunekit.graph.liveness import Bypass
from prunekit.graph.trace import Graph
from prunekit.types import Frozen, Granularity, Group, Slice

Bypasses = Mapping[str, tuple[Bypass, ...]]
"""By the name of a group of layers or branches: what leaving out each unit means."""

_BECAUSE = "it is left out of the computation, and what it was given goes on in its place"


def find_bypasses(
    graph: Graph, structure: Structure
) -> tuple[tuple[Group, ...], Bypasses, tuple[Frozen, ...]]:
    """The layers and the residual branches of a graph, each kind in groups of those that lie in one place.

    Layers of one list form a group, ``encoder.layer:layer``; so do the branches whose last weights have the
    same name in every layer, ``encoder.layer.*.attention:branch``.

    Returns:
        The groups, what leaving out each unit means, and the modules of lists that cannot be left out.
    """
    depth = Depth(graph, structure)
    found: dict[str, list[Bypass]] = {}
    kinds: dict[str, Granularity] = {}
    for kind, parts, place in (
        (Granularity.LAYER, depth.layers, _container_of),
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
    stuck = tuple(
        Frozen(path, 1, tuple(_slices(graph, structure, _own(structure, path), 0)), "layer", reason, "")
        for path, reason in depth.stuck.items()
    )
    return tuple(groups), {name: tuple(parts) for name, parts in found.items()}, stuck


def only_unit(group: Group, unit: int) -> Group:
    """One layer or branch as a group of its own."""
    slices = tuple(part for part in group.slices if int(part.units[0]) == unit)
    return replace(group, size=1, slices=slices, pinned=frozenset())


def overlapping(groups: Iterable[Group]) -> dict[str, dict[int, str]]:
    """The branches that may not be chosen with others, so that no unit lies in another one; and why.

    1. A branch that lies in a layer, or holds one, leaves it to the layer.
    2. Of a branch that holds another one, the smaller ones are left to choose from.

    Args:
        groups: of layers and branches; units that are pinned already do not count.

    Returns:
        By group name and unit.
    """
    layers: list[set[str]] = []
    branches: list[tuple[str, int, set[str]]] = []
    for group in groups:
        for unit in set(range(group.size)) - group.pinned:
            tensors = set(only_unit(group, unit).tensors)
            if group.granularity is Granularity.LAYER:
                layers.append(tensors)
            else:
                branches.append((group.name, unit, tensors))
    found: dict[str, dict[int, str]] = {}
    free = []
    for name, unit, tensors in branches:
        if any(tensors <= layer or layer <= tensors for layer in layers):
            reason = "a layer that may go whole lies in it, or around it; choose one of the granularities"
            found.setdefault(name, {})[unit] = reason
        else:
            free.append((name, unit, tensors))
    for name, unit, tensors in free:
        if any(other < tensors for _, _, other in free):
            found.setdefault(name, {})[unit] = "a smaller branch that may go lies in it"
    return found


def _slices(graph: Graph, structure: Structure, tensors: Iterable[str], unit: int) -> Iterable[Slice]:
    """Every tensor that goes with a unit, along its first dimension; numbers on their own have none."""
    for name in tensors:
        if name in structure.labels.tensors and graph.tensor(name).ndim and graph.tensor(name).numel():
            units = np.full(graph.tensor(name).shape[0], unit, dtype=np.int64)
            yield Slice(name, 0, units, "producer" if name in graph.trainable else "follower")


def _own(structure: Structure, path: str) -> Iterable[str]:
    return (name for name in structure.labels.tensors if name.startswith(f"{path}."))


def _container_of(path: str) -> str:
    """``encoder.layer`` for ``encoder.layer.3``; ``*`` for what the model itself holds."""
    return path.rpartition(".")[0] or "*"


def _role_of(path: str) -> str:
    """``encoder.layer.*.attention`` for ``encoder.layer.3.attention``."""
    return ".".join("*" if part.isdecimal() else part for part in path.split("."))
