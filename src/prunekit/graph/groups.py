"""Groups: what can be pruned in a model, what cannot and why, and what any choice would cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from prunekit.errors import SelectionError
from prunekit.graph.assemble import assemble
from prunekit.graph.atoms import Dim, Dims, Fixed
from prunekit.graph.axes import Structure
from prunekit.graph.bypasses import Bypasses, find_bypasses, only_unit, overlapping
from prunekit.graph.constants import Lookup
from prunekit.graph.describe import describe
from prunekit.graph.labels import outputs_of
from prunekit.graph.liveness import Bypass, Liveness
from prunekit.graph.places import slice_at, units_at
from prunekit.graph.rules import OPERATORS
from prunekit.graph.selection import Selection
from prunekit.graph.solve import solve
from prunekit.graph.trace import Graph
from prunekit.graph.walk import label
from prunekit.graph.work import Work
from prunekit.types import BoolArray, Cost, Frozen, Granularity, Group, IntArray, KeepMask, Slice


@dataclass(frozen=True)
class Occurrence:
    """A group in one dimension of one tensor, parameter or intermediate.

    Attributes:
        group: its name.
        units: ``[n]`` int64, the unit each index belongs to, -1 = none; counted inside a block where
            ``detached``.
        detached: the blocks lie along another dimension of the tensor.
    """

    group: str
    units: IntArray
    detached: bool


class Groups:
    """The prunable groups of one traced model; iterates over them, ``groups["name"]`` finds one.

    Attributes:
        prunable: in the order of the graph.
        frozen: the axes that are not prunable, with the reason.
        graph: the traced model they were found in.
        bypasses: for each group of layers or branches, what leaving out each unit means.
    """

    def __init__(
        self,
        graph: Graph,
        structure: Structure,
        prunable: tuple[Group, ...],
        frozen: tuple[Frozen, ...],
        number_of: dict[int, str],
        bypasses: Bypasses,
        stuck: tuple[Frozen, ...] = (),
    ) -> None:
        self.graph = graph
        self.prunable = prunable
        self.frozen = frozen
        self._structure = structure
        self.bypasses = bypasses
        self._stuck = stuck
        self._name_of_axis = number_of
        self._everything: dict[str, Group] = {group.name: group for group in prunable}
        self._occurrences: dict[int, list[Occurrence]] = {}

    def __iter__(self) -> Iterator[Group]:
        return iter(self.prunable)

    def __len__(self) -> int:
        return len(self.prunable)

    def __str__(self) -> str:
        """Every group with all its slices, and everything frozen with operator, source line and reason."""
        return describe(self.prunable, self.frozen)

    def __contains__(self, name: object) -> bool:
        return any(group.name == name for group in self.prunable)

    def __getitem__(self, name: str) -> Group:
        if name not in self:
            raise SelectionError(
                f"there is no prunable group {name!r}",
                expected=f"one of {', '.join(group.name for group in self.prunable) or 'none'}",
                remedy="List them with `prunekit inspect`",
            )
        return self._everything[name]

    def whole(self, name: str) -> Group:
        """The group of that name, whether or not it was left out by :meth:`select`."""
        return self._everything[name]

    @property
    def fingerprint(self) -> str:
        """Digest of the tensors' names and shapes and of what was found in them, selection aside."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        tensors = {name: list(self.tensor_shape(name)) for name in sorted(self._labels.tensors)}
        found = sorted((group.name, group.size, group.blocks) for group in self._everything.values())
        return hashlib.sha256(json.dumps([tensors, found]).encode()).hexdigest()

    @property
    def _labels(self):
        return self._structure.labels

    @property
    def tensor_names(self) -> Collection[str]:
        """The parameters, buffers and constants that the graph reads."""
        return self._labels.tensors.keys()

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter, buffer or constant before pruning."""
        return tuple(self.graph.tensor(name).shape)

    def select(
        self,
        *,
        granularity: Collection[Granularity | str] | Granularity | str | None = None,
        only: Sequence[str] | str = (),
        ignore: Sequence[str] | str = (),
    ) -> Groups:
        """Keep the groups of these kinds that match ``only`` (if given) and do not match ``ignore``.

        One kind or pattern may be given without a list.

        Patterns are shell-style and are held against the group's name, the names of its tensors and the
        modules they belong to; what is left out appears among ``frozen`` with that reason. So do modules of
        lists that cannot be left out, where layers are among what is asked for.

        Raises:
            SelectionError: a pattern matches no group at all, or a granularity is unknown.
        """
        chosen = Selection.of(granularity, only, ignore)
        chosen.check(self._everything.values())
        fewer = self.freeze(chosen.reasons(self.prunable), operator="selection")._without_units(chosen)
        known = {item.name for item in fewer.frozen}
        stuck = [item for item in self._stuck if chosen.wants(Granularity.LAYER) and item.name not in known]
        return fewer._with(fewer.prunable, (*fewer.frozen, *stuck))

    def _without_units(self, chosen: Selection) -> Groups:
        """Pin the layers and branches that were not chosen, then the branches that overlap with what was."""
        fewer = self._pinned(
            {
                group.name: chosen.unit_reasons(group, [part.path for part in self.bypasses[group.name]])
                for group in self
                if group.is_depth
            }
        )
        return fewer._pinned(overlapping(group for group in fewer if group.is_depth))

    def _pinned(self, reasons: Mapping[str, Mapping[int, str]]) -> Groups:
        """The same groups, in which these units stay in any case; without those in which no unit may go."""
        prunable, frozen = [], list(self.frozen)
        for group in self:
            units = reasons.get(group.name, {})
            for unit, reason in units.items():
                path = self.bypasses[group.name][unit].path
                frozen.append(Frozen(path, 1, only_unit(group, unit).slices, "selection", reason, ""))
            if units:
                group = replace(group, pinned=group.pinned | units.keys())
            if len(group.pinned) < group.size:
                prunable.append(group)
        return self._with(tuple(prunable), tuple(frozen))

    def freeze(self, reasons: Mapping[str, str], *, operator: str) -> Groups:
        """The same groups with some no longer prunable: ``reasons`` says which and why."""
        left_out = tuple(
            Frozen(group.name, group.size, group.slices, operator, reasons[group.name], "")
            for group in self.prunable
            if group.name in reasons
        )
        kept = tuple(group for group in self.prunable if group.name not in reasons)
        return self._with(kept, (*self.frozen, *left_out))

    def _with(self, prunable: tuple[Group, ...], frozen: tuple[Frozen, ...]) -> Groups:
        fewer = Groups(
            self.graph, self._structure, prunable, frozen, self._name_of_axis, self.bypasses, self._stuck
        )
        fewer._everything = self._everything | fewer._everything
        fewer._occurrences = self._occurrences
        return fewer

    def cost(self, keep: KeepMask | None = None) -> Cost:
        """Exact cost after keeping ``keep``, without touching the model.

        Args:
            keep: by group name, ``[units]`` bool; absent groups are whole.
        """
        gone = self.gone(keep or {})
        lost = frozenset(self._liveness.freed(gone)) if gone else frozenset()
        keep = self.tied(keep or {})
        params = param_bytes = 0
        for name in sorted(self._labels.tensors):
            if name in self.graph.trainable and name not in lost:
                elements = int(np.prod(self._shape(self._labels.tensors[name], keep), dtype=np.int64))
                params += elements
                param_bytes += elements * self.graph.tensor(name).element_size()
        unused = [self._unused_parameters[name] for name in self.left_unread(keep)]
        params += sum(tensor.numel() for tensor in unused)
        param_bytes += sum(tensor.numel() * tensor.element_size() for tensor in unused)
        macs = self._work.macs(lambda node: self._node_shape(node, keep), gone)
        return Cost(params=params, macs=macs, param_bytes=param_bytes)

    def bypassed(self, keep: KeepMask) -> tuple[Bypass, ...]:
        """What ``keep`` leaves out whole, in no order."""
        return tuple(
            part
            for name, parts in self.bypasses.items()
            if name in keep
            for part, stays in zip(parts, keep[name], strict=True)
            if not stays
        )

    def gone(self, keep: KeepMask) -> frozenset[Node]:
        """The nodes that are not computed any more, because what they belong to is left out whole."""
        bypassed = self.bypassed(keep)
        return self._liveness.gone(bypassed) if bypassed else frozenset()

    @cached_property
    def _liveness(self) -> Liveness:
        return Liveness(self.graph)

    def lost_tensors(self, keep: KeepMask) -> frozenset[str]:
        """The parameters, buffers and constants that nothing reads any more."""
        gone = self.gone(keep)
        return frozenset(self._liveness.freed(gone)) if gone else frozenset()

    @cached_property
    def _unused_parameters(self) -> dict[str, Tensor]:
        """Parameters the graph never reads."""
        state = self.graph.program.state_dict
        known = self._labels.tensors
        return {
            name: state[name]
            for name in sorted(self.graph.trainable)
            if name in state and name not in known and self.graph.tied.get(name, name) not in known
        }

    def left_unread(self, keep: KeepMask) -> list[str]:
        """The parameters the graph never reads, without those in layers that go."""
        paths = tuple(f"{part.path}." for part in self.bypassed(keep) if part.inside)
        return [name for name in self._unused_parameters if not name.startswith(paths)]

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Operators that :meth:`cost` counts no MACs for: without a rule, or of sizes that depend on data."""
        return self._work.uncounted

    @cached_property
    def _work(self) -> Work:
        return Work(self.graph)

    def _node_shape(self, node: Node, keep: KeepMask) -> tuple[int, ...]:
        return self._shape(outputs_of(self._labels, node)[0], keep)

    def _shape(self, dims: Dims, keep: KeepMask) -> tuple[int, ...]:
        return tuple(self.count(dim, keep) for dim in dims)

    def count(self, dim: Dim, keep: KeepMask) -> int:
        """How many indices of a dimension are left."""
        return dim.size if isinstance(dim, Fixed) else int(self.kept(dim, keep).sum())

    def kept(self, dim: IntArray, keep: KeepMask) -> BoolArray:
        """``[n]`` which indices of a labelled dimension are left, for a ``keep`` that is :meth:`tied`."""
        left = np.ones(len(dim), dtype=np.bool_)
        for occurrence in self.occurrences(dim):
            mask = keep.get(occurrence.group)
            if mask is None:
                continue
            if occurrence.detached:
                mask = mask[: self._everything[occurrence.group].units_per_block]
            left &= np.where(occurrence.units >= 0, mask[occurrence.units], True)
        return left

    def tied(self, keep: KeepMask) -> dict[str, BoolArray]:
        """``keep`` as it is once the kept units of every block have moved to the block's front.

        Units of a block may be permuted freely, so choosing other units in each block is moving them first
        and then cutting all blocks at the same place. Blocks that go altogether do so with the group that
        holds them.
        """
        tied = dict(keep)
        for name, mask in keep.items():
            group = self._everything[name]
            if group.blocks > 1:
                left = int(mask.reshape(group.blocks, -1).sum(axis=1).max())
                tied[name] = np.tile(np.arange(group.units_per_block) < left, group.blocks)
        return tied

    def occurrences(self, dim: IntArray) -> list[Occurrence]:
        """The prunable groups that occur in a labelled dimension."""
        found = self._occurrences.get(id(dim))
        if found is None:
            found = self._occurrences[id(dim)] = [
                Occurrence(self._name_of_axis[number], units, detached)
                for number, units, detached in self._structure.occurrences(dim)
                if number in self._name_of_axis
            ]
        return found

    def units_at(self, name: str, dims: Sequence[Dim]) -> IntArray | None:
        """``[*sizes]`` the unit of a group at each index of some dimensions of one tensor, -1 = none.

        None where the group does not occur in them, as layers and branches never do, or where its blocks lie
        along a dimension that is not among them.
        """
        for number, known in self._name_of_axis.items():
            if known == name:
                return units_at(self._structure, number, dims)
        return None

    def slice_along(self, name: str, dim: Dim) -> Slice | None:
        """Where the units of a group lie along one dimension of any tensor; None where they do not.

        Where its blocks lie along another dimension, units are counted inside their block.
        """
        for number, known in self._name_of_axis.items():
            if known == name and not isinstance(dim, Fixed):
                axis = self._structure.axes[number]
                units, _ = self._structure.units(dim, number, axis)
                company = self._structure.company(dim, number, axis)
                return Slice("", 0, units, "follower", company=company) if (units >= 0).any() else None
        return None

    @property
    def inputs(self) -> Mapping[str, Dims]:
        """The labels of the inputs that may shrink with the model, by the names of their placeholders."""
        return self._labels.inputs

    def input_slices(self, group: str, name: str) -> Iterator[Slice]:
        """Where the units of a group lie along one of :attr:`inputs`."""
        dims = self.inputs[name]
        for position, dim in enumerate(dims):
            found = [] if isinstance(dim, Fixed) else self._structure.occurrences(dim)
            for number, *_ in found:
                if self._name_of_axis.get(number) == group:
                    yield slice_at(self._structure, number, dims, position, tensor=name, role="follower")

    def is_computed(self, dim: IntArray) -> bool:
        """Something of a parameter, buffer or constant runs along every index of a labelled dimension."""
        return bool((self._structure.axis_of[self._structure.members(dim)] >= 0).any(axis=1).all())

    def labels_of(self, node: Node) -> list[Dims]:
        """The labels of a node's output tensors."""
        return outputs_of(self._labels, node)

    @property
    def lookups(self) -> Sequence[Lookup]:
        """The operators that look up indices of a labelled dimension at constant positions."""
        return self._labels.lookups

    def tensor_labels(self, name: str) -> Dims:
        """The labels of a parameter, buffer or constant."""
        return self._labels.tensors[name]


def find_groups(graph: Graph) -> Groups:
    """Find every axis of a traced model, what it touches, and whether it can be pruned.

    Args:
        graph: from :func:`prunekit.graph.trace`.

    Returns:
        All prunable groups of every granularity, and the frozen axes with reasons. Narrow them with
        ``select`` (channel groups lie around channels: pruning both takes more than was asked) and with
        ``prunekit.sound``, which checks them on the model's own outputs.
    """
    with torch.no_grad():
        labels = label(graph, OPERATORS)
        structure = Structure(labels, solve(labels.atoms))
    prunable, frozen, names = assemble(graph, structure)
    depth, bypasses, stuck = find_bypasses(graph, structure)
    return Groups(graph, structure, (*prunable, *depth), frozen, names, bypasses, stuck)
