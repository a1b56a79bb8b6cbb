"""From axes to the groups users see: slices, roles, granularity, names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunekit.graph.atoms import Dim, Fixed, Reason
from prunekit.graph.axes import Axis, Structure
from prunekit.graph.places import slice_at
from prunekit.graph.trace import Graph
from prunekit.types import BoolArray, Frozen, Granularity, Group, IntArray, Slice

GIVEN = Reason("input", "it runs along an input, and nothing in the model computes what lies along it")
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
        slices = described.slices(number)
        reason = axis.reason
        if reason is None and not any(part.tensor in graph.trainable for part in slices):
            reason = NO_PARAMETER
        if reason is None and number in described.given and not any(p.role == "producer" for p in slices):
            reason = GIVEN
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


_KINDS = tuple(Granularity)


class _Describer:
    """Reads roles, kinds and slices off the stated facts, by basic class, so that an axis is one lookup."""

    def __init__(self, graph: Graph, structure: Structure) -> None:
        self.graph = graph
        self.structure = structure
        atoms = structure.labels.atoms
        self._consumed = _flags(atoms.count, atoms.consumed)
        self._produced = _flags(atoms.count, atoms.produced)
        self._convolved = _flags(atoms.count, atoms.convolved)
        self._reasons = [reason for _, reason in atoms.not_mask_equivalent]
        none = len(self._reasons)
        self._reason = self._first([dim for dim, _ in atoms.not_mask_equivalent], range(none), none)
        kinds = [_KINDS.index(kind) for _, kind in atoms.kinds]
        self._kind = self._first([dim for dim, _ in atoms.kinds], kinds, len(_KINDS), keep="first")
        self._summed = self._first(atoms.summed, [0] * len(atoms.summed), 1) == 0
        least = [-count for _, count in atoms.least]
        self._least = self._first([dim for dim, _ in atoms.least], least, -1)
        self._holds_heads = self._outer_heads()
        self._places = self._slices_by_axis()
        self.given = frozenset(
            number
            for dims in structure.labels.inputs.values()
            for dim in dims
            if not isinstance(dim, Fixed)
            for number in np.unique(structure.axis_of[structure.members(dim)]).tolist()
        )
        """Axes that run along an input."""

    def _first(
        self, dims: list[IntArray], values: Sequence[int], none: int, *, keep: str = "smallest"
    ) -> IntArray:
        """``[classes + 1]``: the smallest or the first value of all dimensions that a class is part of."""
        found = np.full(len(self.structure.axis_of), none, dtype=np.int64)
        for dim, value in zip(dims, values, strict=True):
            members = self.structure.members(dim)
            taken = found[members]
            found[members] = (
                np.where(taken == none, value, taken) if keep == "first" else np.minimum(taken, value)
            )
        found[-1] = none
        return found

    def _outer_heads(self) -> BoolArray:
        """``[classes + 1]`` whether heads are chosen inside a class."""
        flags = np.zeros(len(self.structure.axis_of), dtype=np.bool_)
        for axis in self.structure.axes:
            if axis.blocks and self._stated_kind(axis) is Granularity.HEAD:
                flags[np.concatenate(axis.blocks)] = True
        return flags

    def _slices_by_axis(self) -> dict[int, list[tuple[str, int, IntArray]]]:
        """Where each axis occurs in parameters, buffers and constants."""
        found: dict[int, list[tuple[str, int, IntArray]]] = {}
        for tensor, dims in self.structure.labels.tensors.items():
            for position, dim in enumerate(dims):
                if not isinstance(dim, Fixed):
                    for number in np.unique(self.structure.axis_of[self.structure.members(dim)]).tolist():
                        found.setdefault(number, []).append((tensor, position, dim))
        return found

    def slices(self, number: int) -> tuple[Slice, ...]:
        """Every dimension of a parameter, buffer or constant that an axis runs along."""
        return tuple(self._slice(*place, number) for place in self._places.get(number, []))

    def _slice(self, tensor: str, position: int, dim: IntArray, number: int) -> Slice:
        role = (
            "producer"
            if self._produced[dim].any()
            else "consumer"
            if self._consumed[dim].any()
            else "follower"
        )
        dims = self.structure.labels.tensors[tensor]
        return slice_at(self.structure, number, dims, position, tensor=tensor, role=role)

    def granularity(self, axis: Axis, slices: tuple[Slice, ...]) -> Granularity:
        """What one unit is, by what the operators say of it and by what produces it.

        1. Attention gives heads and head dimensions their meaning; a key and value head around several query
           heads is a head group.
        2. An axis that only ever lies outside others in the same dimension counts groups.
        3. Linear layers and embeddings that are added up produce the hidden units of a residual stream, other
           linear layers neurons, convolutions channels.
        """
        kind = self._stated_kind(axis)
        if kind is not None:
            shared = kind is Granularity.HEAD and self._holds_heads[axis.roots].any()
            return Granularity.HEAD_GROUP if shared else kind
        if _lies_outside(axis, slices) and all(self._holds_others(axis, part) for part in slices):
            return Granularity.CHANNEL_GROUP
        producers = [part for part in slices if part.role == "producer"]
        convolved = [part for part in producers if self._convolved[self._dim(part)].any()]
        if len(convolved) < len(producers) and self._summed[axis.roots].any():
            return Granularity.HIDDEN
        return Granularity.CHANNEL if convolved or not producers else Granularity.NEURON

    def _dim(self, part: Slice) -> IntArray:
        return _labelled(self.structure.labels.tensors[part.tensor][part.dim])

    def _stated_kind(self, axis: Axis) -> Granularity | None:
        """What the operators say one unit is."""
        kinds = np.unique(self._kind[axis.roots])
        return _KINDS[kinds[0]] if len(kinds) == 1 and kinds[0] < len(_KINDS) else None

    def _holds_others(self, axis: Axis, part: Slice) -> bool:
        """Every unit covers several indices, because another axis lies inside it."""
        members = self.structure.members(self._dim(part))
        rows = np.isin(members, axis.roots).any(axis=1)
        return bool(((members[rows] >= 0).sum(axis=1) > 1).all())

    def least(self, axis: Axis) -> int:
        """The fewest units that every operator can run with."""
        return -int(self._least[axis.roots].min())

    def not_mask_equivalent(self, axis: Axis) -> Reason | None:
        """Why removing units differs from zeroing them; None where it does not."""
        first = int(self._reason[axis.roots].min())
        return self._reasons[first] if first < len(self._reasons) else None


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
