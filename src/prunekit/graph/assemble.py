"""From axes to the groups users see: slices, roles, granularity, names."""

from __future__ import annotations

import numpy as np

from prunekit.graph.atoms import Dim, Fixed, Reason
from prunekit.graph.axes import Axis, Structure, block_of
from prunekit.graph.trace import Graph
from prunekit.types import BoolArray, Frozen, Granularity, Group, IntArray, Slice

NO_PARAMETER = Reason("buffer", "only buffers run along it, so there is nothing to score")


def assemble(
    graph: Graph, structure: Structure
) -> tuple[tuple[Group, ...], tuple[Frozen, ...], dict[int, str]]:
    """The prunable groups, the frozen axes, and the group's name for each prunable axis."""
    described = _Describer(graph, structure)
    prunable: list[Group] = []
    frozen: list[Frozen] = []
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    for number, axis in enumerate(structure.axes):
        if axis.reason is not None and axis.reason.obvious:
            continue
        slices = described.slices(number, axis)
        reason = axis.reason
        if reason is None and not any(part.tensor in graph.trainable for part in slices):
            reason = NO_PARAMETER
        if reason is not None:
            size = len(axis.roots)
            name = _unique(f"{slices[0].tensor}:{slices[0].dim}", taken)
            frozen.append(Frozen(name, size, slices, reason.operator, reason.text, reason.source))
            continue
        granularity = described.granularity(axis, slices)
        name = _unique(_name(slices, granularity), taken)
        because = described.not_mask_equivalent(axis)
        blocks = int(np.prod([len(outer) for outer in axis.blocks], dtype=np.int64))
        names[number] = name
        prunable.append(
            Group(
                name=name,
                granularity=granularity,
                size=len(axis.roots) * blocks,
                blocks=blocks,
                slices=slices,
                mask_equivalent=because is None,
                not_mask_equivalent_because="" if because is None else f"{because.operator}: {because.text}",
                least=described.least(axis),
            )
        )
    return tuple(prunable), tuple(frozen), names


class _Describer:
    """Reads roles, kinds and slices off the stated facts."""

    def __init__(self, graph: Graph, structure: Structure) -> None:
        self.graph = graph
        self.structure = structure
        atoms = structure.labels.atoms
        self._consumed = _flags(atoms.count, atoms.consumed)
        self._produced = _flags(atoms.count, atoms.produced)
        self._convolved = _flags(atoms.count, atoms.convolved)
        self._kinds = [(structure.members(dim), kind) for dim, kind in atoms.kinds]
        self._least = [(structure.members(dim), count) for dim, count in atoms.least]
        self._summed = [structure.members(dim) for dim in atoms.summed]
        self._not_mask_equivalent = [
            (structure.members(dim), reason) for dim, reason in atoms.not_mask_equivalent
        ]

    def slices(self, number: int, axis: Axis) -> tuple[Slice, ...]:
        found = []
        for tensor, dims in self.structure.labels.tensors.items():
            for position, dim in enumerate(dims):
                if isinstance(dim, Fixed):
                    continue
                members = self.structure.members(dim)
                if (self.structure.axis_of[members] == number).any():
                    found.append(self._slice(tensor, position, dim, number, axis))
        return tuple(found)

    def _slice(self, tensor: str, position: int, dim: IntArray, number: int, axis: Axis) -> Slice:
        units, detached = self.structure.units(dim, number, axis)
        role = (
            "producer"
            if self._produced[dim].any()
            else "consumer"
            if self._consumed[dim].any()
            else "follower"
        )
        company = self.structure.company(dim, number, axis)
        if not detached:
            return Slice(tensor, position, units, role, company=company)
        dims = self.structure.labels.tensors[tensor]
        block_dim = self._block_dim(dims, position, axis)
        blocks = block_of(self.structure.members(_labelled(dims[block_dim])), axis.blocks)
        return Slice(tensor, position, units, role, block_dim, blocks, company)

    def _block_dim(self, dims: tuple[Dim, ...], position: int, axis: Axis) -> int:
        for other, dim in enumerate(dims):
            if other == position or isinstance(dim, Fixed):
                continue
            if (block_of(self.structure.members(dim), axis.blocks) >= 0).all():
                return other
        raise AssertionError("an axis with blocks has them in every tensor")

    def granularity(self, axis: Axis, slices: tuple[Slice, ...]) -> Granularity:
        """What one unit is, by what the operators say of it and by what produces it.

        1. Attention gives heads and head dimensions their meaning; a key and value head around several query
           heads is a head group.
        2. An axis that only ever lies outside others in the same dimension counts groups.
        3. Linear layers and embeddings that are added up produce the hidden units of a residual stream, other
           linear layers neurons, convolutions channels.
        """
        for members, kind in self._kinds:
            if np.isin(axis.roots, members).all():
                shared = kind is Granularity.HEAD and self._holds_heads(axis)
                return Granularity.HEAD_GROUP if shared else kind
        if _lies_outside(axis, slices) and all(self._holds_others(axis, part) for part in slices):
            return Granularity.CHANNEL_GROUP
        producers = [part for part in slices if part.role == "producer"]
        convolved = [part for part in producers if self._convolved[self._dim(part)].any()]
        summed = any(np.isin(axis.roots, members).any() for members in self._summed)
        if len(convolved) < len(producers) and summed:
            return Granularity.HIDDEN
        return Granularity.CHANNEL if convolved or not producers else Granularity.NEURON

    def _dim(self, part: Slice) -> IntArray:
        return _labelled(self.structure.labels.tensors[part.tensor][part.dim])

    def _holds_heads(self, axis: Axis) -> bool:
        """Other heads are chosen inside each unit of this axis."""
        return any(
            np.isin(outer, axis.roots).any() and np.isin(inner.roots, members).all()
            for inner in self.structure.axes
            for outer in inner.blocks
            for members, kind in self._kinds
            if kind is Granularity.HEAD
        )

    def _holds_others(self, axis: Axis, part: Slice) -> bool:
        """Every unit covers several indices, because another axis lies inside it."""
        members = self.structure.members(self._dim(part))
        rows = np.isin(members, axis.roots).any(axis=1)
        return bool(((members[rows] >= 0).sum(axis=1) > 1).all())

    def least(self, axis: Axis) -> int:
        """The fewest units that every operator can run with."""
        return max((count for members, count in self._least if np.isin(axis.roots, members).any()), default=1)

    def not_mask_equivalent(self, axis: Axis) -> Reason | None:
        for members, reason in self._not_mask_equivalent:
            if np.isin(axis.roots, members).any():
                return reason
        return None


def _lies_outside(axis: Axis, slices: tuple[Slice, ...]) -> bool:
    """Where the axis is produced, neighbouring indices belong to one unit."""
    units = _first(slices).units
    units = units[units >= 0]
    return not axis.blocks and len(units) > 1 and bool(units[0] == units[1])


def _first(slices: tuple[Slice, ...]) -> Slice:
    """The slice that produces the axis, or the first one."""
    return next((part for part in slices if part.role == "producer"), slices[0])


def _labelled(dim: Dim) -> IntArray:
    assert not isinstance(dim, Fixed)
    return dim


def _flags(count: int, dims: list[IntArray]) -> BoolArray:
    flags = np.zeros(count, dtype=np.bool_)
    for dim in dims:
        flags[dim] = True
    return flags


def _name(slices: tuple[Slice, ...], granularity: Granularity) -> str:
    first = _first(slices)
    module, _, _ = first.tensor.rpartition(".")
    return f"{module or first.tensor}:{granularity.value}"


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}.{taken[name]}"
