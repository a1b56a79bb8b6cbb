"""Carrying out a plan: the smaller model, or the masked one. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import PlanError
from prunekit.graph import Groups
from prunekit.graph.change import Change
from prunekit.graph.pruned_graph import PrunedGraph
from prunekit.graph.rewrite import rewrite
from prunekit.plan import PruningPlan
from prunekit.ranks import ALONE, Ranks
from prunekit.surgery.carried import graph_at
from prunekit.surgery.compare import precision_of
from prunekit.surgery.configuration import fit_depth, fit_widths
from prunekit.surgery.elsewhere import Passing, same_elsewhere
from prunekit.surgery.narrow import narrow, touched, zero
from prunekit.surgery.repair import follow_shapes
from prunekit.surgery.rivals import SAME, Rivals
from prunekit.surgery.scales import attention_scales
from prunekit.surgery.shorten import (
    counters,
    fields_that_count,
    names_before,
    shorten,
)
from prunekit.surgery.tensors import copied, digest_of, read, replace_everywhere
from prunekit.surgery.training import own_derivatives, trains
from prunekit.surgery.weight_masks import refuse_masks
from prunekit.types import BoolArray, Group, KeepMask
from prunekit.workload import evaluating


@dataclass(frozen=True)
class Removal:
    """A model without the units a plan removes.

    Attributes:
        model: the smaller model; the original is untouched and shares no tensor with it.
        form: ``own class`` or ``graph module``.
        reason: why it has that form.
        form_error: largest relative difference between the user's class and the pruned graph, in float64;
            inf where the class could not run.
        moved: tensors that have another name than in the dense model, because layers before them went: their
            name -> the one they had.
        scaled: parameters of queries and keys, by their names in the dense model, that took over a factor
            from a class that divides by the root of its width: :mod:`prunekit.surgery.scales`.
    """

    model: nn.Module
    form: Literal["own class", "graph module"]
    reason: str
    form_error: float
    moved: Mapping[str, str] = field(default_factory=dict)
    scaled: tuple[str, ...] = ()


def remove(model: nn.Module, plan: PruningPlan, groups: Groups, *, ranks: Ranks = ALONE) -> Removal:
    """Make the smaller model that ``plan`` describes; ``model`` itself is left as it is.

    The user's class is kept if, with its width attributes repaired, it computes in float64 what the pruned
    graph computes, on the example inputs and on another batch size. Otherwise the graph itself is given.

    Args:
        model: the model that ``groups`` was found in, or one of the same class and shapes.
        plan: made on ``groups``.
        groups: from ``find_groups``.
        ranks: the processes that each hold the whole model, such as ``all_ranks()``: the plan and what came
            of it have to be the same on all of them, and all call this.

    Raises:
        PlanError: the plan was made for another model, or for another version of it.
        ProofError: the pruned graph cannot run.
        RankError: the processes do not hold the same plan or weights, or one is lost.
    """
    with ranks.together("remove"):
        ranks.check_same(plan.digest, "the plan")
        check_fits(model, plan, groups)
        removal = carry_out(model, plan.keep_mask(), groups)
        if ranks.size > 1:
            ranks.check_same([removal.form, *map(list, _digests(removal.model))], "the smaller model")
    return removal


def _digests(model: nn.Module) -> Iterator[tuple[str, str]]:
    """SHA-256 of each parameter by name; running statistics are each process's own under DDP."""
    for name, parameter in model.named_parameters():
        yield name, digest_of(parameter)


def carry_out(model: nn.Module, keep: KeepMask, groups: Groups, *, describes: bool = True) -> Removal:
    """:func:`remove` for a keep mask instead of a plan.

    Args:
        model: the dense model.
        keep: by group name, ``[units]`` bool.
        groups: of the dense model.
        describes: search thoroughly for a form of the class, and let its configuration describe it; without
            that, the search is for finding out quickly whether the class can follow at all.
    """
    keep = without_gone_groups(keep, groups)
    rivals, error, reason = _narrower(model, keep, groups, thorough=describes)
    moved: dict[str, str] = {}
    bypassed = groups.bypassed(keep)
    if bypassed:
        smaller = reduced_graph(model, keep, groups)
        rivals = replace(rivals, graph_module=smaller, graph=graph_at(groups, keep))
        branches = [part.path for part in bypassed if not part.inside]
        if branches and error <= rivals.tolerance:
            error = float("inf")
            reason = f"computes the branch {branches[0]!r}, which is left out, inside a layer that stays"
        elif error <= rivals.tolerance:
            rivals, error, reason = _shorter(rivals, keep, groups)
            moved = {new: old for old, new in rivals.names.items() if new != old}
    own = rivals.own
    if error <= rivals.tolerance and trains(model, groups.graph) and not trains(own, rivals.graph):
        error, reason = float("inf"), "does not get through a step of training once pruned"
    if error <= rivals.tolerance:
        configuration = _described(own, keep, groups, rivals) if describes else ""
        return Removal(own, "own class", reason + configuration, error, moved, tuple(rivals.scaled))
    rivals.graph_module.train(model.training)
    lost = own_derivatives(model, groups.graph) if describes else ()
    if lost:
        reason += f"; in the graph the derivative is the ordinary one, not that of {', '.join(lost)}"
    return Removal(rivals.graph_module, "graph module", f"{type(model).__name__} {reason}", error)


def _narrower(
    model: nn.Module, keep: KeepMask, groups: Groups, *, thorough: bool
) -> tuple[Rivals, float, str]:
    """The two forms without the units that lie along dimensions; how far they are apart, and why."""
    keep = {name: mask for name, mask in keep.items() if not groups.whole(name).is_depth}
    names = touched(groups, keep)
    narrowed = {name: narrow(groups, name, _tensor(model, groups, name), keep) for name in names}
    own = copied(model)
    for name, tensor in narrowed.items():
        replace_everywhere(own, model, name, tensor.detach().clone())
    graph_module, changes = graph_form(model, groups, keep, narrowed)
    with evaluating(own):  # Reading a parametrized weight in training mode would move what it is made of.
        follow_shapes(own, narrowed, changes)
    precision, _ = precision_of(model, reduced_graph(model, {}, groups), groups.graph)
    rivals = Rivals(own, graph_module, graph_at(groups, keep), precision, thorough=thorough)
    return rivals, *rivals.settle(changes, attention_scales(groups, keep))


def _shorter(rivals: Rivals, keep: KeepMask, groups: Groups) -> tuple[Rivals, float, str]:
    """The class without its layers that go whole; how far it is from the graph, and why.

    Layers are deleted from their lists, or else replaced by what does nothing: a class may need as many.
    """
    twin = replace(rivals, own=copied(rivals.own))
    found = _without_layers(twin, keep, groups, deletes=True)
    if found[1] <= rivals.tolerance:
        passing = copied(rivals.own)
        shorten(passing, groups, keep, deletes=False, substitute=Passing)
        if not same_elsewhere(found[0].own, passing, rivals.graph, rivals.precision):
            found = found[0], float("inf"), "counts its layers where the example inputs do not show it"
    second = found if found[1] <= rivals.tolerance else _without_layers(rivals, keep, groups, deletes=False)
    return second if second[1] <= rivals.tolerance else found


def _without_layers(
    rivals: Rivals, keep: KeepMask, groups: Groups, *, deletes: bool
) -> tuple[Rivals, float, str]:
    own = rivals.own
    shortened = shorten(own, groups, keep, deletes=deletes)
    rivals = replace(rivals, names={old: new for new, old in names_before(own, shortened).items()})
    if shortened and hasattr(own, "config"):
        fit_depth(own, fields_that_count(own.config, shortened))
    error, reason = rivals.distance()
    if error > rivals.tolerance:
        guesses = counters(shortened)
        for guess in guesses:
            guess.set(guess.options[0])
        error, _ = rivals.distance()
        if error <= rivals.tolerance:
            rivals.undo_needless(guesses)
    return rivals, error, SAME if error <= rivals.tolerance else reason


def _described(own: nn.Module, keep: KeepMask, groups: Groups, rivals: Rivals) -> str:
    """Let the configuration follow, and say whether it did."""
    described = fit_widths(own, sizes_of(keep, groups), rivals.is_own)
    if described is None:
        return ""
    if described.holds:
        return "; its configuration builds it again"
    return f"; its configuration does not build it again: {described.reason}"


def sizes_of(keep: KeepMask, groups: Groups) -> set[tuple[int, int]]:
    """Sizes of groups, in all and per block, before and after."""
    found: set[tuple[int, int]] = set()
    for name, mask in keep.items():
        if groups.whole(name).is_depth:
            continue
        before, after, blocks = len(mask), int(mask.sum()), groups.whole(name).blocks
        found |= {(before, after), (before // blocks, after // blocks)}
    return {(before, after) for before, after in found if before != after}


def mask(model: nn.Module, plan: PruningPlan, groups: Groups) -> nn.Module:
    """A copy of ``model``, shapes unchanged, in which every slice of the plan's removed units is zero.

    It computes what :func:`remove` gives where all groups are ``mask_equivalent``; elsewhere something else,
    or, as with ``weight_norm``, nothing.

    Raises:
        PlanError: as in :func:`remove`, or the plan leaves out whole layers or branches, which no zero does.
    """
    check_fits(model, plan, groups)
    whole = [name for name in plan.keep if groups.whole(name).is_depth]
    if whole:
        raise PlanError(
            f"the plan leaves out layers or branches of {', '.join(whole[:5])}",
            expected="a plan that only narrows the model",
            remedy="Use remove(): a layer whose weights are zero is not a layer that is left out",
        )
    return masked(model, plan.keep_mask(), groups)


def masked(model: nn.Module, keep: KeepMask, groups: Groups) -> nn.Module:
    """:func:`mask` for a keep mask instead of a plan."""
    twin = copied(model)
    for name in touched(groups, keep):
        tensor = read(twin, name)
        if tensor is not None:
            replace_everywhere(twin, twin, name, zero(groups, name, tensor.detach(), keep))
    return twin


def reduced_graph(model: nn.Module, keep: KeepMask, groups: Groups) -> PrunedGraph:
    """The pruned graph with the model's own tensors: what any form of the removal must compute."""
    keep = without_gone_groups(keep, groups)
    tensors = {
        name: narrow(groups, name, _tensor(model, groups, name), keep) for name in touched(groups, keep)
    }
    return graph_form(model, groups, keep, tensors)[0]


def without_gone_groups(keep: KeepMask, groups: Groups) -> dict[str, BoolArray]:
    """The masks without those of groups that go with the layers they lie in: there is nothing to narrow.

    Raises:
        PlanError: no unit of a group is kept, though it touches something that stays.
    """
    lost = groups.lost_tensors(keep)
    for name, mask in keep.items():
        group = groups.whole(name)
        if not mask.any() and not group.is_depth and not lost.issuperset(group.tensors):
            raise PlanError(
                "the plan keeps none of the group's units",
                expected="at least one, or that every layer it lies in goes",
                where=f"group {name!r}",
                remedy="Make the plan with allocate()",
            )
    return {name: mask for name, mask in keep.items() if mask.any() or groups.whole(name).is_depth}


def check_fits(model: nn.Module, plan: PruningPlan, groups: Groups) -> None:
    """Raise PlanError unless plan, groups and model belong together."""
    refuse_masks(model)
    if plan.fingerprint != groups.fingerprint:
        raise PlanError(
            f"the plan was made for a model with fingerprint {plan.fingerprint[:12]}, "
            f"these groups have {groups.fingerprint[:12]}",
            expected="the plan of this very model: same parameter names, shapes and groups",
            remedy="Make a new plan with allocate(), or trace the model the plan was made for",
        )
    missing = [name for name in plan.keep if name not in groups]
    if missing:
        raise PlanError(
            f"the plan prunes {', '.join(missing[:5])}, which are not among these groups",
            expected="the groups the plan was made on",
            remedy="Use the same select() for the plan and for its removal",
        )
    _check_positions(model, groups)
    masks = plan.keep_mask()
    without_gone_groups(masks, groups)
    for group in groups.prunable:
        _check_blocks(group, masks.get(group.name))
        for name in group.tensors:
            tensor = read(model, name)
            if tensor is None and name in groups.graph.program.state_dict:
                raise PlanError(
                    f"{type(model).__name__} has no tensor of that name",
                    expected="the model that the groups were found in",
                    where=name,
                    remedy="Give remove() the model the plan was made for",
                )
            if tensor is not None and tuple(tensor.shape) != groups.tensor_shape(name):
                raise PlanError(
                    f"the tensor has shape {list(tensor.shape)}",
                    expected=f"{list(groups.tensor_shape(name))}, as when the groups were found",
                    where=name,
                    remedy="The model was changed since it was traced: trace it again and make a new plan",
                )


def _check_positions(model: nn.Module, groups: Groups) -> None:
    """The constant positions that the model looks up are those that the labels were made with."""
    for name, value in {
        name: value for lookup in groups.lookups for name, value in lookup.sources.items()
    }.items():
        found = read(model, name)
        if found is not None and not torch.equal(found.cpu(), value.cpu()):
            raise PlanError(
                "the tensor holds other positions than when the groups were found",
                expected="the same values: which channels belong together follows from them",
                where=name,
                remedy="Trace the model as it is now and make a new plan",
            )


def _check_blocks(group: Group, mask: BoolArray | None) -> None:
    """Blocks keep equally many units, apart from blocks that go altogether."""
    if mask is None:
        return
    counts = np.unique(mask.reshape(group.blocks, -1).sum(axis=1))
    if len(counts[counts > 0]) > 1:
        raise PlanError(
            f"the plan keeps {counts.tolist()} units in different blocks of the group",
            expected=f"equally many in each of its {group.blocks} blocks",
            where=f"group {group.name!r}",
            remedy="Make the plan with allocate()",
        )


def _tensor(model: nn.Module, groups: Groups, name: str) -> Tensor:
    found = read(model, name)
    return (groups.graph.tensor(name) if found is None else found).detach()


def graph_form(
    model: nn.Module, groups: Groups, keep: KeepMask, narrowed: dict[str, Tensor]
) -> tuple[PrunedGraph, list[Change]]:
    """The pruned graph with the model's tensors, some of them narrowed already; and what changed in it."""
    tensors: dict[str, Tensor] = {}
    for name in groups.graph.tensors.values():
        canonical = groups.graph.tied.get(name, name)
        if canonical not in tensors:
            source = _tensor(model, groups, canonical)
            value = narrowed.get(canonical, source).detach().clone()
            original = read(model, canonical)
            if isinstance(original, nn.Parameter):
                value = nn.Parameter(value, requires_grad=original.requires_grad)
            tensors[canonical] = value
        tensors[name] = tensors[canonical]
    return rewrite(groups, keep, tensors)
