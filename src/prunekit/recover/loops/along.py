"""What callbacks for other training loops share: a companion, and knowing the form of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from prunekit.errors import TrainingError, UsageError
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


class Along:
    """What every callback is that lets a companion go along; the other half of it is its library's.

    Args:
        make: makes the companion.
        plan: instead of ``make``, one plan that is carried out in the middle of the training.
        groups: that the plan was made on.
        at: share of the training after which the plan is carried out, in [0, 1]; one step at least.
        fold: make masks permanent at the end of the training.

    Raises:
        UsageError: as :func:`maker`.
    """

    def __init__(
        self,
        make: Make | None = None,
        *,
        plan: PruningPlan | None = None,
        groups: Groups | None = None,
        at: float = 0.0,
        fold: bool = True,
    ) -> None:
        self._make = maker(make, plan, groups, at)
        self._fold = fold
        self._companion: Companion | None = None
        self._finished = False

    @property
    def companion(self) -> Companion | None:
        """What goes along with the training; None before it began."""
        return self._companion

    @property
    def plan(self) -> PruningPlan | None:
        """What was cut off the model so far, as a plan for the model as it came."""
        return self._companion.plan if isinstance(self._companion, Cutting) else None

    def take_up(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Make the companion anew, where the one of a checkpoint was; the model gets the form it had there.

        Args:
            model: as it was before the training.
            state: ``steps`` of the training, and the state of its ``companion``.

        Raises:
            UsageError: it was made by other arguments.
        """
        companion = self._make(model, state["steps"])
        companion.load_state_dict(state["companion"])
        self._companion = companion

    def used_before(self) -> TrainingError:
        """The error of a callback that a second training is to begin with."""
        return TrainingError(
            "this callback went along with a training already",
            expected="a callback for each training",
            remedy="Make a new PruningCallback",
        )


def form_digest(model: nn.Module) -> str:
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
