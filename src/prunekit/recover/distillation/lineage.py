"""What a student is, in terms of the teacher it was cut from: which modules, and which of their units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from prunekit.errors import PlanError, SelectionError
from prunekit.graph import Groups
from prunekit.graph.atoms import Dim, Fixed
from prunekit.graph.nodes import calls_of, operator_name
from prunekit.plan import PruningPlan
from prunekit.recover.distillation.reading import ATTENTION
from prunekit.surgery import Pruned, Removal
from prunekit.surgery.narrow import front_order, permute_units
from prunekit.surgery.remove import check_fits, without_gone_groups
from prunekit.types import BoolArray, Granularity
from prunekit.workload import Batch

Kept = tuple[Tensor | None, ...]
"""For each dimension of a teacher's tensor: ``[left]`` int64 indices that the student has; None for all."""

_SOFTMAX = frozenset(("aten.softmax", "aten._softmax", "aten._safe_softmax"))
_FUSED = "aten.scaled_dot_product_attention"


@dataclass(frozen=True)
class Lineage:
    """How a student came from its teacher.

    Attributes:
        plan: made on the teacher; of several one after the other, ``first.then(second)``.
        groups: that it was made on.
        moved: tensors of the student that have another name than in the teacher, as in ``Removal.moved``.
    """

    plan: PruningPlan
    groups: Groups
    moved: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(
        removal: Pruned | Removal, plan: PruningPlan | None = None, groups: Groups | None = None
    ) -> Lineage:
        """The lineage of the model that :func:`prunekit.prune` or :func:`prunekit.remove` gave.

        Args:
            removal: what it gave.
            plan: that was carried out; :class:`Pruned` has its own.
            groups: that it was made on; likewise.

        Raises:
            PlanError: a removal was given without its plan or groups.
        """
        plan = plan or getattr(removal, "plan", None)
        groups = groups or getattr(removal, "groups", None)
        if plan is None or groups is None:
            raise PlanError(
                "a removal was given alone",
                expected="the plan and the groups that it carried out",
                where="lineage",
                remedy="Call Lineage.of(removal, plan, groups)",
            )
        return Lineage(plan, groups, removal.moved)

    @property
    def example(self) -> Batch:
        """The example inputs of the teacher's graph."""
        return Batch(args=self.groups.graph.args, kwargs=self.groups.graph.kwargs)

    @cached_property
    def _keep(self) -> dict[str, BoolArray]:
        kept = without_gone_groups(self.plan.keep_mask(), self.groups)
        return {name: mask for name, mask in kept.items() if not self.groups.whole(name).is_depth}

    @cached_property
    def _gone(self) -> tuple[str, ...]:
        """Modules of the teacher that were left out whole."""
        return tuple(part.path for part in self.groups.bypassed(self.plan.keep_mask()) if part.inside)

    @cached_property
    def _before(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        """By the parts of a path in the student, those in the teacher; where the two differ."""
        found = {}
        for new, old in self.moved.items():
            ours, theirs = tuple(new.split(".")), tuple(old.split("."))
            for end in range(1, len(ours)):
                if ours[:end] != theirs[:end]:
                    found[ours[:end]] = theirs[:end]
        return found

    def name_before(self, path: str) -> str:
        """What a module of the student was called in the teacher."""
        parts = tuple(path.split(".")) if path else ()
        for end in range(len(parts), 0, -1):
            if parts[:end] in self._before:
                return ".".join((*self._before[parts[:end]], *parts[end:]))
        return path

    def is_gone(self, path: str) -> bool:
        """A module of the teacher was left out, with or inside a layer."""
        return any(path == gone or path.startswith(f"{gone}.") for gone in self._gone)

    @cached_property
    def layers(self) -> frozenset[str]:
        """The modules of the teacher that are layers."""
        return frozenset(
            part.path
            for name, parts in self.groups.bypasses.items()
            if self.groups.whole(name).granularity is Granularity.LAYER
            for part in parts
            if part.inside
        )

    @cached_property
    def attentions(self) -> frozenset[str]:
        """The modules of the teacher that compute attention, innermost."""
        return frozenset(
            calls[-1][1]
            for node in self.groups.graph.nodes
            if _is_attention(node) and (calls := calls_of(node))
        )

    def check(self, teacher: nn.Module, student: nn.Module) -> None:
        """Raise unless the teacher is the model of the plan, and the student what the plan makes of it.

        Raises:
            PlanError: the plan belongs to another teacher, or the student has tensors of other shapes, or
                layers that the plan leaves out.
        """
        check_fits(teacher, self.plan, self.groups)
        lost = self.groups.lost_tensors(self.plan.keep_mask())
        known = set(self.groups.graph.tensors.values())
        tied = self.groups.tied(self._keep)
        for name, tensor in student.named_parameters():
            before = self.moved.get(name, name)
            if before in lost:
                raise PlanError(
                    "the plan leaves it out, and the student has it",
                    expected="a student without the layers that the plan leaves out, and the new names of "
                    "those behind them",
                    where=f"parameter {name!r} of the student",
                    remedy="Give Lineage the moved names of the removal: Lineage.of(removal, plan, groups)",
                )
            if before not in known:
                continue
            shape = [self.groups.count(dim, tied) for dim in self.groups.tensor_labels(before)]
            if list(tensor.shape) != shape:
                raise PlanError(
                    f"it has the shape {list(tensor.shape)}, not {shape} as planned",
                    expected="the student that this plan makes of the teacher",
                    where=f"parameter {name!r} of the student",
                    remedy="Give the plan, groups and moved names of the removal that made the student",
                )

    def kept(self, kind: str, path: str, ndim: int) -> Kept | None:
        """Which indices the student has of what a module of the teacher gives.

        Args:
            kind: ``hidden`` or ``attention``.
            path: of a module of the teacher.
            ndim: dimensions of what it gives.

        Returns:
            None where the module computes nothing of its own in the graph.

        Raises:
            SelectionError: the units left differ from block to block of another dimension, or the module
                gives several tensors of which different units are left.
        """
        found = [dims for dims in self._values(kind, path) if len(dims) == ndim]
        kept = [tuple(self._left(dim, path) for dim in dims) for dims in found]
        if not all(all(map(_equal, each, kept[0])) for each in kept):
            raise SelectionError(
                "it gives several tensors, and the plan leaves different units of each",
                expected="a module that gives one tensor",
                where=f"module {path!r} of the teacher",
                remedy="Name another module, or use projection='linear'",
            )
        return kept[0] if kept else None

    def _values(self, kind: str, path: str) -> Iterator[tuple[Dim, ...]]:
        """The labels of the tensors that a module gives, or of the attention maps in it."""
        nodes = [node for node in self.groups.graph.nodes if _runs_in(node, path)]
        maps = [node for node in nodes if _is_attention(node)] if kind == ATTENTION else []
        for node in maps:
            if operator_name(node) == _FUSED:
                query = node.args[0]
                assert isinstance(query, Node)
                batch, heads, rows, _ = self.groups.labels_of(query)[0]
                yield batch, heads, rows, rows
            else:
                yield self.groups.labels_of(node)[0]
        inside = set(nodes)
        for node in [] if maps else nodes:
            if any(user not in inside for user in node.users):
                yield from self.groups.labels_of(node)[:1]

    def _left(self, dim: Dim, path: str) -> Tensor | None:
        if isinstance(dim, Fixed):
            return None
        stays = self.groups.kept(dim, self.groups.tied(self._keep))
        order = torch.arange(len(dim))
        for group in sorted(self.groups.prunable, key=lambda group: -group.blocks):
            mask = self._keep.get(group.name)
            part = None if mask is None or group.blocks == 1 else self.groups.slice_along(group.name, dim)
            if part is None or mask is None:
                continue
            detached = any(
                found.detached for found in self.groups.occurrences(dim) if found.group == group.name
            )
            if detached and (mask.reshape(group.blocks, -1) != mask[: group.units_per_block]).any():
                raise SelectionError(
                    f"the plan leaves other units of group {group.name!r} in each of its blocks, which lie "
                    "along another dimension",
                    expected="the same units in every block",
                    where=f"module {path!r} of the teacher",
                    remedy="Name another module, or use projection='linear'",
                )
            places = front_order(group, mask)
            order = permute_units(order, part, group, places[: group.units_per_block] if detached else places)
        return None if stays.all() else order[torch.from_numpy(np.flatnonzero(stays))]


def _is_attention(node: Node) -> bool:
    """An operator over queries and keys of several heads; a router's softmax has fewer dimensions."""
    if node.op != "call_function" or operator_name(node) not in (*_SOFTMAX, _FUSED):
        return False
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim == 4


def _runs_in(node: Node, path: str) -> bool:
    return node.op == "call_function" and (not path or any(called == path for _, called, _ in calls_of(node)))


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
