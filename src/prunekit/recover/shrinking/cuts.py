"""Companions that cut the model while it trains: one plan at one step, or a schedule of cycles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunekit.errors import GoalError, SelectionError, TrainingError, UsageError
from prunekit.graph import Groups, find_groups, trace
from prunekit.importance import check_fit, collect, needs_of, score
from prunekit.plan import Goal, Limits, PruningPlan, allocate
from prunekit.plan.cycles import Continued, continued_scores, goal_of_cycle, joined, step
from prunekit.recover.companion import step_of
from prunekit.recover.numbers import check_count
from prunekit.recover.schedules import Curve, shares
from prunekit.recover.shrinking.shrink import Shrunk, check_whole, shrink
from prunekit.surgery import sound
from prunekit.types import WIDTHS, Granularity, Scores
from prunekit.workload import Batch


class Cutting:
    """What cuts a model in place while it trains, with the optimizers and averages that follow.

    Args:
        model: that trains.
        groups: of the dense model, that plans are made on.
        made_by: the arguments that two of the same kind have to share.
    """

    def __init__(self, model: nn.Module, groups: Groups, made_by: Mapping[str, Any]) -> None:
        check_whole(model)
        self._model, self._groups = model, groups
        self._made_by = {"fingerprint": groups.fingerprint, **made_by}
        self._optimizers: tuple[torch.optim.Optimizer, ...] = ()
        self._averages: tuple[AveragedModel, ...] = ()
        self._step = 0
        self._plan: PruningPlan | None = None
        self._last: Shrunk | None = None

    @property
    def plan(self) -> PruningPlan | None:
        """What is gone of the dense model, as a plan for it; None while it is whole."""
        return self._plan

    @property
    def last(self) -> Shrunk | None:
        """What the last cut did."""
        return self._last

    def use(
        self, *optimizers: torch.optim.Optimizer, averages: Sequence[AveragedModel] | None = None
    ) -> None:
        """Let these follow from now on, in place of those given before.

        Args:
            optimizers: all that train parameters of the model.
            averages: moving averages of the model; None = those that were given before.

        Raises:
            TrainingError: an optimizer holds parameters that are not the model's.
        """
        own = {id(parameter) for parameter in self._model.parameters()}
        for optimizer in optimizers:
            held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if strangers := sum(id(parameter) not in own for parameter in held):
                raise TrainingError(
                    f"{strangers} of the {len(held)} parameters of {type(optimizer).__name__} are not those "
                    f"of the {type(self._model).__name__} that is cut",
                    expected="an optimizer of this very model, made after the model was put on its device",
                    remedy="Cut the module that holds all that the optimizer trains",
                )
        self._optimizers = optimizers
        if averages is not None:
            self._averages = tuple(averages)

    def state_dict(self) -> dict[str, Any]:
        """Where it is, what is gone, and by which arguments it was made; numbers and text only."""
        plan = None if self._plan is None else self._plan.to_json()
        return {"step": self._step, "plan": plan, **self._made_by}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Go on where another one was: the dense model is cut to the form that the other's model had.

        Weights and optimizer states fit afterwards: load them after this.

        Raises:
            UsageError: it was made by other arguments or on another model, or this model is cut otherwise.
        """
        made = step_of(state_dict, self._made_by, where=type(self).__name__)
        text = state_dict.get("plan")
        plan = None if text is None else PruningPlan.from_json(text)
        if self._plan is not None and (plan is None or plan.digest != self._plan.digest):
            raise UsageError(
                "the model is cut already, otherwise than the state says",
                expected="the dense model, or one that is cut by the same plan",
                where=f"{type(self).__name__}.load_state_dict",
            )
        if plan is not None and self._plan is None:
            self._cut(plan, self._groups)
            self._plan = plan
        self._step = made

    def _cut(self, plan: PruningPlan, groups: Groups) -> None:
        optimizers, averages = self._optimizers, self._averages
        self._last = shrink(self._model, plan, groups, optimizers=optimizers, averages=averages)


class PlannedCut(Cutting):
    """One plan, carried out in place after ``at`` optimizer steps: one ``step()`` after each of them.

    Args:
        model: that trains.
        plan: made on ``groups``.
        groups: of the model.
        at: optimizer steps that are made before, >= 1; at once it is :func:`prunekit.shrink`.
        optimizers: all that train parameters of the model.
        averages: moving averages of the model.

    Raises:
        UsageError: ``at`` is no number of steps; the model cannot be cut in place.
        TrainingError: an optimizer of another model.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: PruningPlan,
        groups: Groups,
        *,
        at: int,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        averages: Sequence[AveragedModel] = (),
    ) -> None:
        check_count("at", at, where="PlannedCut")
        super().__init__(model, groups, {"kind": "planned cut", "asked": plan.digest, "at": at})
        self._asked, self._at = plan, at
        self.use(*optimizers, averages=averages)

    def step(self) -> None:
        """An optimizer step was made; cut the model if it is the one.

        Raises:
            PlanError: the model was changed since the plan was made.
            ProofError: the class cannot follow the plan, or a law is broken.
        """
        self._step += 1
        if self._step == self._at and self._plan is None:
            self._cut(self._asked, self._groups)
            self._plan = self._asked


class Shrinking(Cutting):
    """Cycles of scoring, planning and cutting while a model trains: one ``step()`` after each optimizer step.

    After ``round(t0 + (t1 - t0) * n / cycles)`` steps, ``n = 1 ... cycles``, with ``t0 = begin * steps`` and
    ``t1 = end * steps``, the fraction ``sparsity * curve(n / cycles)`` of the dense model is gone. Units are
    scored as they are then; plans are exact against the dense model and never bring a unit back.

    The model is cut in place (:func:`prunekit.shrink`) and stays the same object, in its own class; groups
    that the class cannot follow are left out. Optimizers and averages follow, and whoever holds the optimizer
    (learning-rate schedulers, ``GradScaler``) goes on. Until the last cut the dense tensors are held.

    Law: where the state of one is loaded into another that was made by the same arguments on a dense model,
    and the states of model and optimizer after it, training goes on as if it had not been interrupted.

    Args:
        model: cut in place; its own object, no wrapper.
        args: example inputs, positional; one tensor may be given without a tuple.
        kwargs: example inputs by keyword.
        steps: optimizer steps of the whole training, >= 1.
        sparsity: the fraction that is gone from ``t1`` on, as in :func:`prunekit.prune`.
        cycles: cuts, >= 1.
        curve: a name in :data:`SCHEDULES`, or the pairs of :func:`prunekit.recover.steps`.
        begin: share of the training after which the first cycle begins, in [0, 1).
        end: share of the training after which the last cut is made, above ``begin``, at most 1.
        criterion: as in :func:`prunekit.prune`, and so are ``fallback``, ``goal``, ``scope``,
            ``granularity``, ``only``, ``ignore``, ``limits``, ``calibration``, ``loss`` and ``release``.
        optimizers: all that train parameters of the model.
        averages: moving averages of the model.
        seed: of random scores and of the proof.

    Raises:
        UsageError: a number that is out of range; the model cannot be cut in place.
        SelectionError: nothing to prune, layers in several cycles, or what :func:`prunekit.prune` says.
        GoalError: the goal is out of reach.
        TraceError: torch.export cannot follow the model.
        TrainingError: an optimizer of another model.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Tensor | Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        steps: int,
        sparsity: float = 0.5,
        cycles: int = 4,
        curve: Curve = "cubic",
        begin: float = 0.0,
        end: float = 0.5,
        criterion: str = "l2",
        fallback: str | None = None,
        goal: Literal["sparsity", "macs", "params"] = "sparsity",
        scope: Literal["uniform", "global"] = "uniform",
        granularity: Granularity | str | Sequence[Granularity | str] | None = None,
        only: str | Sequence[str] = (),
        ignore: str | Sequence[str] = (),
        limits: Limits | None = None,
        calibration: Iterable[Batch] | None = None,
        loss: Callable[[Any, Batch], Tensor] | None = None,
        release: str | Sequence[str] = (),
        optimizers: Sequence[torch.optim.Optimizer] = (),
        averages: Sequence[AveragedModel] = (),
        seed: int = 0,
    ) -> None:
        check_count("steps", steps, where="Shrinking")
        check_count("cycles", cycles, where="Shrinking")
        self._due = _due(steps, cycles, begin, end)
        self._shares = shares(curve, cycles)
        self._goal = Goal(kind=goal, remove=sparsity)
        self._inputs, self._release = (args, kwargs), release
        self._criterion, self._fallback, self._seed = criterion, fallback, seed
        self._calibration = () if calibration is None else tuple(calibration)
        self._loss = loss
        self._planning = {"scope": scope, "criterion": criterion, "limits": limits}
        check_whole(model)
        found = self._found(model).select(
            granularity=WIDTHS if granularity is None else granularity, only=only, ignore=ignore
        )
        _check_depth(found, cycles)
        groups = sound(model, found, seed=seed, own_class=True)
        self._check_reach(model, groups)
        made_by = {
            "kind": "shrinking",
            "steps": steps,
            "goal": asdict(self._goal),
            "cycles": cycles,
            "due": list(self._due),
            "shares": list(self._shares),
            "criterion": criterion,
            "fallback": fallback,
            "scope": scope,
            "groups": [group.name for group in groups],
            "limits": None if limits is None else asdict(limits),
            "seed": seed,
        }
        super().__init__(model, groups, made_by)
        self.use(*optimizers, averages=averages)

    def step(self) -> None:
        """An optimizer step was made; cut the model where that is due.

        Raises:
            CalibrationError: statistics or scores hold NaN or infinity.
            ProofError: the class cannot follow the plan, or a law is broken.
            TrainingError: an optimizer holds parameters that are not the model's any more.
        """
        self._step += 1
        if self._step in self._due:
            self._next(self._shares[self._due.index(self._step)])

    def _next(self, share: float) -> None:
        """Let ``share`` of the whole be gone."""
        before, dense = self._plan, self._groups
        groups = dense
        if before is not None:
            found = self._found(self._model)
            left_out = {group.name: "it was not chosen" for group in found if group.name not in dense}
            groups = found.freeze(left_out, operator="selection")
        continued = Continued(dense, before)
        scores = continued_scores(dense, self._scores(groups), before)
        goal = goal_of_cycle(self._goal, share, dense.cost())
        try:
            plan = self._allocate(continued, scores, goal)
        except GoalError:  # The share of an early cycle may be less than one unit of any group.
            if share == 1:
                raise
            return
        plan = joined(plan, continued)
        now = step(before, plan, groups)
        if now.keep:
            self._cut(now, groups)
            self._plan = plan

    def _found(self, model: nn.Module) -> Groups:
        args, kwargs = self._inputs
        return find_groups(trace(model, args, kwargs, release=self._release))

    def _scores(self, groups: Groups) -> Scores:
        needs = needs_of(self._criterion, self._fallback)
        stats = None
        if needs:
            stats = collect(self._model, self._calibration, groups=groups, needs=needs, loss=self._loss)
        return score(
            self._model, groups, self._criterion, stats=stats, fallback=self._fallback, seed=self._seed
        )

    def _allocate(self, groups: Any, scores: Scores, goal: Goal) -> PruningPlan:
        return allocate(groups, scores, goal, **self._planning)

    def _check_reach(self, model: nn.Module, groups: Groups) -> None:
        """Find out before anything is trained whether there is anything to cut, and enough of it."""
        if not len(groups):
            raise SelectionError(
                f"nothing in {type(model).__name__} can be cut in place with these choices",
                expected="at least one prunable group that the class can follow",
                remedy="; ".join(f"{item.name}: {item.reason}" for item in groups.frozen[:5]),
            )
        check_fit(model, groups, self._criterion, self._fallback)
        ones = {group.name: np.ones(group.size, dtype=np.float32) for group in groups}
        self._allocate(groups, ones, replace(self._goal, tolerance=max(self._goal.tolerance, FAR)))


FAR = 0.1
"""Tolerance of the goal, as a fraction, before scores are known: only what is far out of reach is refused."""


def _due(steps: int, cycles: int, begin: float, end: float) -> tuple[int, ...]:
    """After how many steps each cycle ends.

    Raises:
        UsageError: a share that is none, or fewer steps than cycles.
    """
    if not 0 <= begin < end <= 1:
        raise UsageError(
            f"the cuts begin at {begin} and end at {end} of the training",
            expected="0 <= begin < end <= 1",
            where="begin, end",
        )
    first, last = begin * steps, end * steps
    due = tuple(round(first + (last - first) * (cycle + 1) / cycles) for cycle in range(cycles))
    if len(set(due)) < cycles or due[0] < 1:
        raise UsageError(
            f"{cycles} cuts are to be made within {last - first:.3g} steps",
            expected="at least one step before each cut",
            remedy="Train for more steps, or use fewer cycles",
        )
    return due


def _check_depth(groups: Groups, cycles: int) -> None:
    if cycles > 1 and any(group.is_depth for group in groups):
        raise SelectionError(
            f"layers or branches are to go in {cycles} cycles",
            expected="one cycle where layers or branches go: those that are left are numbered anew",
            where="granularity",
            remedy="Use cycles=1, or prune widths in cycles and layers before",
        )
