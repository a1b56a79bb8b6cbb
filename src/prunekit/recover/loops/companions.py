"""What callbacks for other training loops share: making a companion, and knowing the form of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from prunekit.errors import UsageError
from prunekit.graph import Groups
from prunekit.plan import PruningPlan
from prunekit.recover.companion import Companion
from prunekit.recover.numbers import check_share
from prunekit.recover.shrinking.cuts import Cutting, PlannedCut
from prunekit.surgery import WeightMask

Make = Callable[[nn.Module, int], Companion]
"""``make(model, steps)``: the companion of a training of so many optimizer steps, made before the first."""


def maker(make: Make | None, plan: PruningPlan | None, groups: Groups | None, at: float) -> Make:
    """How the companion of a training is made: by a function, or from one plan that is carried out in it.

    Args:
        make: makes a companion, such as :class:`Shrinking`, whose schedule is its own.
        plan: made on ``groups``.
        groups: of the model.
        at: share of the training after which the plan is carried out, in [0, 1]; one step at least.

    Raises:
        UsageError: both or neither are given, a plan without its groups, or a share that is none.
    """
    if (make is None) == (plan is None):
        raise UsageError(
            "a schedule and a plan are given"
            if plan is not None
            else "neither a schedule nor a plan is given",
            expected="either make, which makes a companion with a schedule of its own, or a plan with groups",
            where="PruningCallback",
        )
    if make is not None:
        if groups is not None or at != 0.0:
            raise UsageError(
                "groups or at are given without a plan",
                expected="them only beside a plan",
                where="PruningCallback",
            )
        return make
    if plan is None or groups is None:
        raise UsageError(
            "a plan is given without the groups it was made on", expected="both", where="PruningCallback"
        )
    check_share("at", at, where="PruningCallback")
    asked, found = plan, groups
    return lambda model, steps: PlannedCut(model, asked, found, at=max(1, round(at * steps)))


def use_optimizers(companion: Companion, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Tell a companion that has use for them which optimizers train its model.

    Raises:
        TrainingError: one of another model.
    """
    use = getattr(companion, "use", None)
    if callable(use):
        use(*optimizers)


def plan_of(companion: Companion | None) -> PruningPlan | None:
    """What a companion has cut off the dense model so far."""
    return companion.plan if isinstance(companion, Cutting) else None


def form_of(model: nn.Module) -> str:
    """A digest of what training does not change and a companion does: names, shapes and masks."""
    digest = hashlib.sha256()
    for name, tensor in model.named_parameters():
        digest.update(f"{name} {list(tensor.shape)} ".encode())
    for name, module in model.named_modules():
        if isinstance(module, WeightMask):
            digest.update(name.encode() + module.packed.cpu().numpy().tobytes())
    return digest.hexdigest()


def misfit(model: nn.Module, state: dict[str, Any]) -> str:
    """Why weights do not fit a model: the first of another shape or form; "" where they fit.

    Args:
        model: that is to load them.
        state: its state dict, or part of it.
    """
    own = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name in own and isinstance(tensor, torch.Tensor) and tensor.shape != own[name].shape:
            return f"{name!r} has the shape {list(tensor.shape)} there and {list(own[name].shape)} here"
        if name not in own and ".parametrizations." in f".{name}":
            return f"{name!r} is masked there and not here"
    bare = (name for name in own if name not in state and ".parametrizations." in f".{name}")
    return next((f"{name!r} is masked here and not there" for name in bare), "")
