"""Carrying out a plan: the smaller model, or the masked one. Nothing is decided here."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.errors import PlanError, ProofError
from prunekit.graph import Groups
from prunekit.graph.rewrite import Change, rewrite
from prunekit.plan import PruningPlan
from prunekit.surgery.compare import in_float64, input_batches, max_relative_error, outputs
from prunekit.surgery.narrow import narrow, touched, zero
from prunekit.surgery.repair import Attribute, follow_constants, follow_shapes
from prunekit.surgery.tensors import names_of, read, replace
from prunekit.types import Group, KeepMask

FORM_TOLERANCE = 1e-9
"""Relative, in float64: the user's class and the pruned graph run the same operators on the same weights."""


@dataclass(frozen=True)
class Removal:
    """A model without the units a plan removes.

    Attributes:
        model: the smaller model; the original is untouched and shares no tensor with it.
        form: ``own class`` or ``graph module``.
        reason: why it has that form.
        form_error: largest relative difference between the user's class and the pruned graph, in float64;
            inf where the class could not run.
    """

    model: nn.Module
    form: Literal["own class", "graph module"]
    reason: str
    form_error: float


def remove(model: nn.Module, plan: PruningPlan, groups: Groups) -> Removal:
    """Make the smaller model that ``plan`` describes; ``model`` itself is left as it is.

    The user's class is kept if, with its width attributes repaired, it computes in float64 what the pruned
    graph computes, on the example inputs and on another batch size. Otherwise the graph itself is given.

    Args:
        model: the model that ``groups`` was found in, or one of the same class and shapes.
        plan: made on ``groups``.
        groups: from ``find_groups``.

    Raises:
        PlanError: the plan was made for another model, or for another version of it.
        ProofError: the pruned graph cannot run.
    """
    check_fits(model, plan, groups)
    keep = plan.keep_mask()
    names = touched(groups, keep)
    narrowed = {name: narrow(groups, name, _tensor(model, groups, name), keep) for name in names}
    own = copy.deepcopy(model)
    for name, tensor in narrowed.items():
        _replace_everywhere(own, model, name, tensor.detach().clone())
    graph_module, changes = _graph_form(model, groups, keep, narrowed)
    follow_shapes(own, narrowed, changes)
    error, reason = _distance(own, graph_module, groups)
    if error > FORM_TOLERANCE:
        guessed = follow_constants(own, changes)
        if guessed:
            error, reason = _distance(own, graph_module, groups)
        if error <= FORM_TOLERANCE:
            _undo_needless(guessed, own, graph_module, groups)
    if error <= FORM_TOLERANCE and _runs_in_training(model, groups) and not _runs_in_training(own, groups):
        error, reason = float("inf"), "reads tensors in training mode that it does not read in evaluation"
    if error <= FORM_TOLERANCE:
        return Removal(own, "own class", "it computes what the pruned graph computes", error)
    graph_module.train(model.training)
    return Removal(graph_module, "graph module", f"{type(model).__name__} {reason}", error)


def _runs_in_training(model: nn.Module, groups: Groups) -> bool:
    """A copy of the model gets through one forward pass in training mode on the example inputs."""
    twin = copy.deepcopy(model).train()
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf,
        (groups.graph.args, groups.graph.kwargs),
    )
    with torch.no_grad(), torch.random.fork_rng():
        try:
            twin(*args, **kwargs)
        except Exception:  # whatever the user's forward raises; what matters is whether it does
            return False
    return True


def _undo_needless(guessed: list[Attribute], own: nn.Module, graph_module: nn.Module, groups: Groups) -> None:
    """An attribute that only happened to have the old width goes back to what it was."""
    for attribute in guessed:
        setattr(attribute.module, attribute.name, attribute.old)
        if _distance(own, graph_module, groups)[0] > FORM_TOLERANCE:
            setattr(attribute.module, attribute.name, attribute.new)


def mask(model: nn.Module, plan: PruningPlan, groups: Groups) -> nn.Module:
    """A copy of ``model``, shapes unchanged, in which every slice of the plan's removed units is zero.

    Raises:
        PlanError: as in :func:`remove`.
    """
    check_fits(model, plan, groups)
    return masked(model, plan.keep_mask(), groups)


def masked(model: nn.Module, keep: KeepMask, groups: Groups) -> nn.Module:
    """:func:`mask` for a keep mask instead of a plan."""
    twin = copy.deepcopy(model)
    for name in touched(groups, keep):
        tensor = read(twin, name)
        if tensor is not None:
            _replace_everywhere(twin, twin, name, zero(groups, name, tensor.detach(), keep))
    return twin


def reduced_graph(model: nn.Module, keep: KeepMask, groups: Groups) -> nn.Module:
    """The pruned graph with the model's own tensors: what any form of the removal must compute."""
    tensors = {
        name: narrow(groups, name, _tensor(model, groups, name), keep) for name in touched(groups, keep)
    }
    return _graph_form(model, groups, keep, tensors)[0]


def check_fits(model: nn.Module, plan: PruningPlan, groups: Groups) -> None:
    """Raise PlanError unless plan, groups and model belong together."""
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
    for group in groups.prunable:
        _check_blocks(group, plan)
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


def _check_blocks(group: Group, plan: PruningPlan) -> None:
    """Blocks keep equally many units, apart from blocks that go altogether."""
    mask = plan.keep_mask().get(group.name)
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


def _replace_everywhere(target: nn.Module, source: nn.Module, name: str, value: Tensor) -> None:
    """Put one new tensor under every name the old one has."""
    old = read(source, name)
    if old is None:
        return
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, requires_grad=old.requires_grad)
    for alias in names_of(source, name):
        replace(target, alias, value)


def _graph_form(
    model: nn.Module, groups: Groups, keep: KeepMask, narrowed: dict[str, Tensor]
) -> tuple[nn.Module, list[Change]]:
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


def _distance(own: nn.Module, graph_module: nn.Module, groups: Groups) -> tuple[float, str]:
    """How far the repaired class is from the pruned graph, and why it cannot be used if it is.

    Compared with the model's own weights and with two redrawn sets: an activation that is dead for the
    example inputs would hide a mistake behind it.
    """
    own64, graph64 = in_float64(own), in_float64(graph_module)
    worst, reason = _difference(own64, graph64, groups)
    for seed in range(2):
        if worst > FORM_TOLERANCE:
            break
        _redraw(own64, graph64, seed)
        worst, reason = _difference(own64, graph64, groups, redrawn=True)
    return worst, reason


def _redraw(own: nn.Module, graph_module: nn.Module, seed: int) -> None:
    """Give both models the same new parameters, of either sign and of the old size."""
    generator = torch.Generator().manual_seed(seed)
    for name, old in list(graph_module.named_parameters()):
        if not old.is_floating_point() or old.numel() == 0:
            continue
        size = float(old.detach().square().mean().sqrt()) or 0.1
        drawn = torch.randn(old.shape, generator=generator, dtype=torch.float64).to(old) * size
        for model in (own, graph_module):
            _replace_everywhere(model, model, name, drawn.clone())


def _difference(
    own64: nn.Module, graph64: nn.Module, groups: Groups, *, redrawn: bool = False
) -> tuple[float, str]:
    worst = 0.0
    for args, kwargs in input_batches(groups.graph):
        try:
            expected = outputs(graph64, args, kwargs)
        except Exception as error:  # whatever an operator raises at shapes that do not fit
            raise ProofError(
                f"the pruned graph of {type(own64).__name__} does not run: {type(error).__name__}: {error}",
                remedy="The model is untouched. Leave out groups with ignore=, and please report it",
            ) from error
        try:
            found = outputs(own64, args, kwargs)
        except Exception as error:  # whatever the user's forward raises on the narrower tensors
            text = (str(error).strip().splitlines() or [""])[0]
            return float("inf"), f"does not run at the new widths ({type(error).__name__}: {text})"
        if redrawn and not all(bool(tensor.isfinite().all()) for tensor in expected):
            continue
        worst = max(worst, max_relative_error(expected, found))
    return worst, f"computes something else at the new widths (relative error {worst:.1e})"
