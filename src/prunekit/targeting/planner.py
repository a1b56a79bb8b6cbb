"""The planner of one model on one target: measured once, asked as often as one likes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import GoalError, MeasurementError, SelectionError, StorageError
from prunekit.graph import Groups, find_groups, trace
from prunekit.importance import score
from prunekit.measure import Target, check_target
from prunekit.plan import Goal, Limits
from prunekit.plan.baselines import AllocationName
from prunekit.plan.figures import Figure, loss_figure
from prunekit.plan.levers import MOST_LEVELS, Levers, find_levers
from prunekit.plan.losses import LossCurve, loss_curves
from prunekit.surgery import Proof, Removal, measure_unit_sensitivity, remove, verify
from prunekit.targeting.costs import VARIANTS, Costs, Progress, measure_costs
from prunekit.targeting.identity import model_digest, timing_digest
from prunekit.targeting.operator_times import load_operator_times
from prunekit.targeting.reach import Reached, reach
from prunekit.targeting.rig import Rig, rig_for
from prunekit.targeting.widths import rewarded_widths
from prunekit.types import Granularity, Scores

NARROWEST = Limits(max_sparsity=0.9)
"""Where nothing is said: a group that loses nearly everything loses more than its scores say."""

WIDTHS_AND_DEPTH = ("channel", "neuron", "head", "head_group", "expert", "layer")


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
        attempts: int = 8,
        allocation: AllocationName = "knapsack",
    ) -> Reached:
        """Find the plan of least loss that measurably meets the goals: :func:`prunekit.targeting.reach`.

        Args:
            goals: one or several.
            attempts: at most.
            allocation: what chooses; a baseline instead of the knapsack, to compare them at equal latency.

        Raises:
            GoalError: as there; or a ``quality_drop`` where no loss was measured.
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
        return reach(
            asked,
            self.losses,
            self.costs,
            self.rig,
            self.model,
            self.groups,
            attempts=attempts,
            criterion=self.criterion,
            allocation=allocation,
            scores=self.scores,
        )

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
    folder: Path | str,
    loss: Callable[[nn.Module], float] | None = None,
    scores: Scores | None = None,
    criterion: str = "l2",
    granularity: Granularity | str | Sequence[Granularity | str] | None = None,
    only: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    limits: Limits = NARROWEST,
    per_group: Mapping[str, Limits] | None = None,
    most_levels: int = MOST_LEVELS,
    variants: int = VARIANTS,
    groups: Groups | None = None,
    tables: Path | str | None = None,
    in_real_time: bool = False,
    progress: Progress | None = None,
) -> Planner:
    """Measure what pruning a model changes on a target, and by how much each part of it would be missed.

    Args:
        model: the dense model, in any mode.
        args: positional example inputs; their sequence length is the one that is timed.
        kwargs: keyword example inputs.
        target: what the model is to be fast on.
        folder: exists; exported models are put there, and stay.
        loss: the loss of a model on calibration data, the same every time; never on test data. With it the
            losses of levers are measured; without it they follow from the scores alone.
        scores: of the groups, by name; default by ``criterion``, which then needs no data.
        criterion: of the scores.
        granularity: kinds of units that may go; default channels, neurons, heads and layers.
        only: patterns of groups, as in ``Groups.select``.
        ignore: patterns of groups that are kept whole.
        limits: what no group may be pruned beyond.
        per_group: limits of groups that match a pattern.
        most_levels: widths of each group to choose from.
        variants: whole models that the latency model is fitted to.
        groups: of the model, where they were found before; then ``args`` and ``kwargs`` are not used.
        tables: folder in which times of operations are kept, by target and way of timing; processes may share
            it. Default ``prunekit`` in the user's cache.
        in_real_time: time with real-time scheduling where the process may.
        progress: called with (what is done, steps done, of how many).

    Raises:
        MeasurementError: this machine does not have the target; says what to do.
        TraceError: torch.export cannot follow the model.
        SelectionError: nothing may be pruned, or a limit cannot be.
        StorageError: an operation has to be timed, and its time cannot be kept in ``tables``.
        CalibrationError: a ``loss`` that raises, or that is not one finite number.
    """
    _check_asked(model, target, Path(folder), variants)
    groups = groups or find_groups(trace(model, args, kwargs))
    chosen = groups.select(granularity=granularity or _present(groups), only=only, ignore=ignore)
    raw = scores
    if scores is None:
        raw = score(model, chosen, criterion, normalization="none")
        scores = score(model, chosen, criterion)
    of = model_digest(model, groups)
    rig = rig_for(groups.graph, target, Path(folder), of=of, in_real_time=in_real_time)
    digest = timing_digest(target, in_real_time=in_real_time)
    times = load_operator_times(digest, Path(tables or _tables()) / f"{digest}.json")
    _check_levers(find_levers(chosen.prunable, scores, limits=limits, per_group=per_group), groups)
    held = _Held(limits, per_group, most_levels)
    tell = partial(partial, progress) if progress else lambda _: None
    widths = rewarded_widths(groups, chosen, scores, rig, times, **vars(held), progress=tell("widths"))
    plain = find_levers(chosen.prunable, scores, **vars(held))
    levers = find_levers(chosen.prunable, scores, **vars(held), widths=widths)
    costs = measure_costs(
        model, groups, levers, rig, times, examples=plain, variants=variants, progress=progress
    )
    sensitivities = None
    if loss is not None:
        sensitivities = measure_unit_sensitivity(model, levers, groups, loss, progress=tell("losses"))
    curves = loss_curves(levers, scores, sensitivities)
    return Planner(model, groups, costs, curves, rig, criterion, raw)


def _check_asked(model: nn.Module, target: Target, folder: Path, variants: int) -> None:
    """Refuse what would only show after minutes of timing."""
    if not isinstance(target, Target):
        raise MeasurementError(f"The target is {target!r}", expected="a Target", where="target")
    check_target(target)
    if variants < 1:
        raise SelectionError(
            f"{variants} whole models were asked for", expected="1 or more", where="variants"
        )
    if not folder.is_dir():
        raise StorageError(
            "There is no such folder",
            expected="a folder that exists",
            where=str(folder),
            remedy="Make it first, or give a temporary one",
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
            where="granularity",
            remedy=f"The model has groups of the kinds: {kinds}. Name one of them, or loosen the limits; "
            "prunekit inspect says what is frozen and why",
        )


@dataclass(frozen=True)
class _Held:
    """What says which widths there are."""

    limits: Limits
    per_group: Mapping[str, Limits] | None
    most_levels: int


def _present(groups: Groups) -> list[str]:
    """Of the kinds that are pruned by default, those that the model has."""
    kinds = {group.granularity.value for group in groups}
    return [kind for kind in WIDTHS_AND_DEPTH if kind in kinds]


def _tables() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "prunekit" / "tables"
