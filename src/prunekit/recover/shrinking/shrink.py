"""Removal in the middle of a training: the model object itself becomes the smaller one, and all follow."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from prunekit.errors import ProofError, UsageError
from prunekit.graph import Groups
from prunekit.plan import PruningPlan
from prunekit.ranks import is_sharded
from prunekit.recover.shrinking.follow import Followed, chained, check_optimizer, follow, follow_average
from prunekit.recover.shrinking.transplant import Edit, edits_of, keep_untouched, with_origins
from prunekit.surgery import Proof, Removal, remove, verify
from prunekit.surgery.compare import OWN_TOLERANCE, fresh_inputs, max_relative_error, outputs
from prunekit.surgery.tensors import copied


@dataclass(frozen=True)
class Shrunk:
    """What :func:`shrink` did.

    Attributes:
        plan: that was carried out.
        proof: the laws that were checked before anything changed.
        followed: what became of the parameters of each optimizer, in the order they were given.
        replaced: names, in the smaller model, of parameters that are new tensors; all others are the same
            objects as before.
        moved: parameters and buffers with another name than before, as in :class:`prunekit.Removal`.
        scaled: parameters that took over a factor, as in :class:`prunekit.Removal`.
        reason: why the class can follow, and whether its configuration builds it again.
    """

    plan: PruningPlan
    proof: Proof
    followed: tuple[Followed, ...]
    replaced: tuple[str, ...]
    moved: Mapping[str, str]
    scaled: tuple[str, ...]
    reason: str


def shrink(
    model: nn.Module,
    plan: PruningPlan,
    groups: Groups,
    *,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    averages: Sequence[AveragedModel] = (),
    seed: int = 0,
) -> Shrunk:
    """Carry out a plan in place: ``model`` is the smaller model afterwards, and its training goes on.

    1. All is made and proved on copies. After an error model, optimizers and averages are as they were.
    2. The model and every module that is left are the same objects, with their hooks, modes, configuration
       objects and devices. Parameters and buffers that lose something, or were scaled, are new tensors;
       all others stay.
    3. Optimizers follow (:func:`prunekit.follow`), averages follow (:func:`prunekit.follow_average`);
       learning-rate schedulers and ``GradScaler`` hold the optimizer and go on by themselves.
    4. Gradients of what was replaced are gone, as after ``zero_grad()``: call it after ``optimizer.step()``.

    Args:
        model: the dense model itself, no wrapper around it. Around it ``torch.compile`` compiles again by
            itself.
        plan: made on ``groups``.
        groups: from :func:`prunekit.find_groups`.
        optimizers: all that train parameters of the model.
        averages: moving averages of the model.
        seed: of the proof's permutations.

    Raises:
        UsageError: a wrapper instead of the model; a model that is sharded, wrapped in
            ``DistributedDataParallel`` elsewhere, or a graph; a parameter with hooks that would be lost.
        PlanError: the plan does not belong to the model and groups.
        ProofError: the class cannot follow the plan, or a law is broken.
        TrainingError: an optimizer or average that cannot follow.
    """
    check_whole(model)
    twin = with_origins(model)
    removal = remove(twin, plan, groups)
    if removal.form != "own class":
        raise ProofError(
            f"the class cannot follow this plan, only a graph module could: {removal.reason}",
            expected="a plan of groups that the class can follow",
            remedy="Choose them with sound(model, groups, own_class=True), or prune() before training",
        )
    proof = verify(twin, removal, plan, groups, seed=seed)
    if not proof.passed:
        raise ProofError(f"the smaller {type(model).__name__} breaks a law: {proof}", remedy=_UNCHANGED)
    keep_untouched(model, removal)
    own = {id(parameter) for parameter in model.parameters()}
    replaced = tuple(name for name, each in removal.model.named_parameters() if id(each) not in own)
    _check_hooks(model, removal, replaced)
    _rehearse(model, twin, removal, groups)
    with _or_nothing(optimizers, averages) as edits:
        for average in averages:
            follow_average(average, removal, plan, groups)
        followed = tuple(follow(optimizer, model, removal, plan, groups) for optimizer in optimizers)
        for edit in edits_of(model, twin, removal.model):
            edits.append(edit)
            edit.do()
        for optimizer in optimizers:
            check_optimizer(optimizer, model)
    return Shrunk(plan, proof, followed, replaced, removal.moved, removal.scaled, removal.reason)


_UNCHANGED = "Nothing was changed. Leave the groups named here out of the plan, and please report it"


def check_whole(model: nn.Module) -> None:
    """Make sure that a model can be cut in place: its own object, in one piece, with its own forward.

    Raises:
        UsageError: it is a wrapper, wrapped for several processes, sharded or a graph.
    """
    dynamo = sys.modules.get("torch._dynamo")  # Slow to import, and there wherever something was compiled.
    if dynamo is not None and isinstance(model, dynamo.OptimizedModule):
        raise UsageError(
            "the model is what torch.compile gave",
            expected="the model that was compiled",
            remedy="Cut model._orig_mod: the compiled model compiles again by itself",
        )
    if is_sharded(model):
        raise UsageError(
            f"{type(model).__name__} is sharded",
            expected="a model whose parameters are whole",
            remedy="Cut it before it is sharded, and make the optimizer afterwards",
        )
    wrapper = model if isinstance(model, DataParallel | DistributedDataParallel) else _wrapper_of(model)
    if wrapper is not None:
        raise UsageError(
            f"the model is wrapped in {type(wrapper).__name__}, which would go on with the tensors it had",
            expected="the model without its wrapper",
            remedy="Take the model out (model = wrapper.module; del wrapper), cut it, and wrap it again",
        )
    if isinstance(model, torch.fx.GraphModule):
        raise UsageError(
            f"{type(model).__name__} is a graph, in which widths are written down operator by operator",
            expected="a model in its own class",
            remedy="Cut it with prune() or remove(), and go on with follow() and the model they give",
        )


def _wrapper_of(model: nn.Module) -> nn.Module | None:
    """The living wrapper for several processes that holds this model, if there is one.

    Its reducer keeps the parameters it was made with and says nothing when they get no gradient any more.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    gc.collect()
    held = (each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel))
    return next((each for each in held if any(part is model for part in each.modules())), None)


def _check_hooks(model: nn.Module, removal: Removal, replaced: Sequence[str]) -> None:
    """Hooks of a tensor are registered on that tensor: a new one would be without them, and nobody told."""
    dense = dict(model.named_parameters(remove_duplicate=False))
    for name in replaced:
        parameter = dense[removal.moved.get(name, name)]
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UsageError(
                "hooks are registered on the parameter, which becomes another tensor",
                expected="hooks on modules, which stay",
                where=f"parameter '{name}'",
                remedy="Remove the handles before the cut and register the hooks again afterwards",
            )


def _rehearse(model: nn.Module, origin: nn.Module, removal: Removal, groups: Groups) -> None:
    """A copy of the model, changed in place, computes what the proved smaller model computes.

    Raises:
        ProofError: it does not.
    """
    twin = copied(model)
    for edit in edits_of(twin, origin, removal.model):
        edit.do()
    released = groups.graph.released_paths
    expected, found = (
        outputs(each, *fresh_inputs(groups.graph), released=released) for each in (removal.model, twin)
    )
    names = [
        [(name, tuple(each.shape)) for name, each in net.state_dict().items()]
        for net in (removal.model, twin)
    ]
    if names[0] != names[1] or max_relative_error(expected, found) > OWN_TOLERANCE:
        raise ProofError(
            f"{type(model).__name__} computes something else when its modules are changed in place",
            remedy="Nothing was changed. Use prune() and follow(), and go on with the model they give",
        )


@contextmanager
def _or_nothing(
    optimizers: Sequence[torch.optim.Optimizer], averages: Sequence[AveragedModel]
) -> Iterator[list[Edit]]:
    """After an exception optimizers, averages and what the edits changed are as they were."""
    chain = [part for optimizer in optimizers for part in chained(optimizer)]
    states: list[tuple[Any, dict[Any, Any]]] = [(each.state, dict(each.state)) for each in chain]
    lists: list[tuple[list[Tensor], list[Tensor]]] = [
        (group["params"], list(group["params"])) for each in chain for group in each.param_groups
    ]
    modules = [(average, average.module) for average in averages]
    edits: list[Edit] = []
    try:
        yield edits
    except BaseException:
        for edit in reversed(edits):
            edit.undo()
        for state, before in states:
            state.clear()
            state.update(before)
        for params, held in lists:
            params[:] = held
        for average, module in modules:
            average.module = module
        raise
