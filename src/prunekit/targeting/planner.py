"""The planner of one model on one target: measured once, asked as often as one likes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import GoalError, MeasurementError, SelectionError, StorageError
from prunekit.graph import Groups, find_groups, trace
from prunekit.graph.operations import Operations
from prunekit.importance import score
from prunekit.measure import Target, check_target
from prunekit.plan import Goal
from prunekit.plan.baselines import AllocationName
from prunekit.plan.figures import Figure, loss_figure
from prunekit.plan.levers import Levers
from prunekit.plan.losses import LossCurve, loss_curves
from prunekit.surgery import Proof, Removal, measure_unit_sensitivity, remove, verify
from prunekit.targeting.attempts import Reached
from prunekit.targeting.costs import Costs, Progress, measure_costs, spread_plans
from prunekit.targeting.identity import model_digest, timing_digest
from prunekit.targeting.operator_times import load_operator_times
from prunekit.targeting.reach import ATTEMPTS, reach
from prunekit.targeting.rig import Rig, rig_for
from prunekit.targeting.space import Space
from prunekit.targeting.timing import Timing
from prunekit.targeting.widths import rewarded_widths
from prunekit.types import Scores

USUAL_SPACE, USUAL_TIMING = Space(), Timing()
"""Where nothing is said."""


@dataclass(frozen=True, eq=False)
class Planner:
    """A model with its costs on a target and the losses of its levers.

    Attributes:
        model: the dense model.
        groups: all of its groups.
        costs: on the target.
        curves: what each lever is taken to lose, and where that comes from.
        rig: where models are timed.
        criterion: what scored the units.
        scores: by group name ``[units]``, of the groups that may be pruned, and as they are compared over
            groups where a baseline ranks by them: not normalised, unless they were given so.
    """

    model: nn.Module
    groups: Groups
    costs: Costs
    curves: tuple[LossCurve, ...]
    rig: Rig
    criterion: str = ""
    scores: Scores | None = None

    @property
    def losses(self) -> Figure:
        """What each lever loses at its levels."""
        return loss_figure([curve.losses for curve in self.curves])

    def reach(
        self,
        goals: Goal | Sequence[Goal],
        *,
        attempts: int = ATTEMPTS,
        allocation: AllocationName = "knapsack",
    ) -> Reached:
        """Find the plan of least loss that measurably meets the goals (:mod:`prunekit.targeting.reach`).

        Args:
            goals: one or several, of any kind but ``sparsity``.
            attempts: plans to export and measure, at most; >= 1.
            allocation: what chooses; a baseline instead of the knapsack, to compare them at equal latency.

        Raises:
            GoalError: out of reach, with the best figure and the groups in the way; not met within the
                attempts; a ``quality_drop`` where no loss was measured; an allocation that lacks its scores.
            MeasurementError: the machine is too noisy to tell.
        """
        asked = (goals,) if isinstance(goals, Goal) else tuple(goals)
        measured = any(curve.source != "scores" for curve in self.curves)
        if not measured and any(isinstance(goal, Goal) and goal.kind == "quality_drop" for goal in asked):
            raise GoalError(
                "A quality_drop is asked for, and no loss was measured",
                expected="a planner made with loss=",
                where="goals",
                remedy="Give measure_target() the loss of a model on calibration data",
            )
        return reach(self, asked, attempts=attempts, allocation=allocation)

    def learnt(self, reached: Reached) -> Planner:
        """The same planner with what the attempts at a goal taught about costs, for another goal.

        Args:
            reached: by this planner, or by what it learnt from others.
        """
        return self if reached.costs is None else replace(self, costs=reached.costs)

    def remove(self, reached: Reached) -> tuple[Removal, Proof]:
        """Carry the plan out and prove that it was."""
        removal = remove(self.model, reached.plan, self.groups)
        return removal, verify(self.model, removal.model, reached.plan, self.groups)


def measure_target(
    model: nn.Module,
    args: Tensor | Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target,
    space: Space = USUAL_SPACE,
    loss: Callable[[nn.Module], float] | None = None,
    scores: Scores | None = None,
    criterion: str = "l2",
    timing: Timing = USUAL_TIMING,
    groups: Groups | None = None,
    progress: Progress | None = None,
) -> Planner:
    """Measure what pruning a model changes on a target, and by how much each part of it would be missed.

    Args:
        model: the dense model, in any mode, with float32 parameters.
        args: positional example inputs; their sequence length is the one that is timed.
        kwargs: keyword example inputs.
        target: what the model is to be fast on.
        space: which units may go and how far; default channels, neurons, heads, experts and layers, nine
            tenths of each group.
        loss: the loss of a model on calibration data, the same every time; never on test data. With it the
            losses of levers are measured; without it they follow from the scores alone.
        scores: of the groups, by name ``[units]``; higher = keep. Default by ``criterion``.
        criterion: of the scores, recorded in the plans; where no scores are given, one that needs no data.
        timing: how models are timed, and where what was exported and measured is kept.
        groups: of the model, where they were found before; then ``args`` and ``kwargs`` are not used.
        progress: called with (what is done, steps done, of how many).

    Raises:
        MeasurementError: this machine does not have the target, or the model is not in float32; says what
            to do.
        StorageError: the folder of ``timing`` does not exist, or an operation has to be timed and its time
            cannot be kept in its ``tables``.
        TraceError: torch.export cannot follow the model.
        SelectionError: nothing may be pruned, a limit cannot be, a criterion that there is not.
        CalibrationError: a criterion that needs data and no scores; a ``loss`` that raises, or that
            is not one finite number.
        ShapeError: scores that do not fit the groups.

    Source: a network fitted to a platform by what was measured there: Yang et al., 2018, NetAdapt,
    https://arxiv.org/abs/1804.03230; how it differs is said where it does (:mod:`prunekit.targeting.reach`,
    :class:`prunekit.targeting.LatencyModel`, :func:`prunekit.plan.knapsack.choose`).
    """
    _check_asked(model, target, timing)
    groups = groups or find_groups(trace(model, args, kwargs))
    chosen = space.select(groups)
    raw = scores
    if scores is None:
        raw = score(model, chosen, criterion, normalization="none")
        scores = score(model, chosen, criterion)
    rig = rig_for(
        groups.graph,
        target,
        timing.folder,
        of=model_digest(model, groups),
        real_time=timing.real_time,
        seconds=timing.seconds,
    )
    digest = timing_digest(target, real_time=timing.real_time)
    times = load_operator_times(digest, timing.table(digest))
    plain = space.levers(chosen, scores)
    _check_levers(plain, groups)
    tell = partial(partial, progress) if progress else lambda _: None
    widths = rewarded_widths(groups, space, scores, rig, times, progress=tell("widths"))
    levers = space.levers(chosen, scores, widths=widths)
    variants = spread_plans(plain, Operations(groups), timing.variants)
    costs = measure_costs(model, groups, levers, rig, times, variants, progress=progress)
    sensitivities = None
    if loss is not None:
        sensitivities = measure_unit_sensitivity(model, levers, groups, loss, progress=tell("losses"))
    curves = loss_curves(levers, scores, sensitivities)
    return Planner(model, groups, costs, curves, rig, criterion, raw)


def _check_asked(model: nn.Module, target: Target, timing: Timing) -> None:
    """Refuse what would only show after minutes of timing."""
    if not isinstance(target, Target):
        raise MeasurementError(f"The target is {target!r}", expected="a Target", where="target")
    check_target(target)
    if timing.folder is not None and not Path(timing.folder).is_dir():
        raise StorageError(
            "There is no such folder",
            expected="a folder that exists",
            where=str(timing.folder),
            remedy="Make it first, or give none: a temporary one is used then",
        )
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if others := kinds - {torch.float32}:
        raise MeasurementError(
            f"The model has parameters in {', '.join(sorted(map(str, others)))}",
            expected="float32, from which the target's precision is made",
            where="model",
            remedy="Give model.float(), and say the precision in the target",
        )


def _check_levers(levers: Levers, groups: Groups) -> None:
    """Refuse a model of which nothing may go.

    Raises:
        SelectionError: there is no lever.
    """
    if not len(levers):
        kinds = ", ".join(sorted({group.granularity.value for group in groups})) or "none"
        raise SelectionError(
            "No group may lose a unit",
            expected="a group of one of the kinds asked for, within its limits",
            where="space",
            remedy=f"The model has groups of the kinds: {kinds}. Name one of them, or loosen the limits; "
            "prunekit inspect says what is frozen and why",
        )
