"""Planning over several cycles: every plan is one for the dense parent and continues the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from prunekit.errors import PlanError
from prunekit.graph import Groups
from prunekit.plan import Goal, PruningPlan
from prunekit.types import BoolArray, Cost, FloatArray, Group, KeepMask, Scores


class Continued:
    """The groups of the parent as planning sees them when ``earlier`` is carried out already.

    Sizes and limits are those of the parent, so that a goal and a limit mean the same in every cycle; the
    cost of a choice is the cost with the units of ``earlier`` gone as well.
    """

    def __init__(self, groups: Groups, earlier: PruningPlan | None) -> None:
        self._groups = groups
        self._gone = earlier.keep_mask() if earlier else {}

    @property
    def fingerprint(self) -> str:
        """Digest of what the groups were found on."""
        return self._groups.fingerprint

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    def cost(self, keep: KeepMask | None = None) -> Cost:
        """Cost of the parent for no choice at all, else with ``earlier`` carried out as well."""
        return self._groups.cost(self.both(keep) if keep else None)

    def both(self, keep: KeepMask) -> dict[str, BoolArray]:
        """Keep what ``keep`` and ``earlier`` both keep."""
        both = dict(keep)
        for name, mask in self._gone.items():
            both[name] = both[name] & mask if name in both else mask
        return both


def continued_scores(groups: Groups, scores: Scores, earlier: PruningPlan | None) -> dict[str, FloatArray]:
    """Scores of the parent's units from scores of the smaller model's: units that are gone go first again.

    Args:
        groups: of the parent.
        scores: by group name ``[units left]``, >= 0; a group may be absent if it has a single unit left.
        earlier: what made the smaller model; None = the parent itself.

    Returns:
        By group name ``[units]``; -1 for units that are gone.
    """
    whole: dict[str, FloatArray] = {}
    for group in groups:
        left = list(earlier.keep.get(group.name, range(group.size))) if earlier else list(range(group.size))
        values = np.full(group.size, -1, dtype=np.float32)
        values[left] = scores.get(group.name, 1.0)
        whole[group.name] = values
    return whole


def joined(plan: PruningPlan, groups: Continued) -> PruningPlan:
    """The plan with the units of the earlier one gone as well; ``plan.after`` already is its cost."""
    keep = groups.both(plan.keep_mask())
    return replace(plan, keep={name: tuple(np.flatnonzero(mask).tolist()) for name, mask in keep.items()})


def step(earlier: PruningPlan | None, plan: PruningPlan, groups: Groups) -> PruningPlan:
    """What ``plan`` removes beyond ``earlier``, as a plan for the model that ``earlier`` gives.

    Law: ``earlier.then(step(earlier, plan, groups))`` keeps what ``plan`` keeps.

    Args:
        earlier: None = nothing is gone yet.
        plan: for the parent, keeping nothing that ``earlier`` removes.
        groups: of the model that ``earlier`` gives.

    Raises:
        PlanError: the groups are not those of that model.
    """
    if earlier is None:
        return plan
    keep: dict[str, tuple[int, ...]] = {}
    sizes: Mapping[str, int] = {group.name: group.size for group in groups}
    for name, units in plan.keep.items():
        before = earlier.keep.get(name, tuple(range(plan.sizes[name])))
        if units == before:
            continue
        if sizes.get(name) != len(before):
            raise PlanError(
                f"The smaller model has {sizes.get(name, 'no')} units there",
                expected=f"the {len(before)} units that the earlier plan leaves",
                where=f"group '{name}'",
            )
        place = {unit: index for index, unit in enumerate(before)}
        keep[name] = tuple(place[unit] for unit in units)
    return replace(plan, keep=keep, sizes=dict(sizes), fingerprint=groups.fingerprint, before=earlier.after)


def goal_of_cycle(goal: Goal, share: float, dense: Cost) -> Goal:
    """The goal after a cycle that reaches ``share`` of the whole way, for the parent.

    Args:
        goal: of the whole run.
        share: in (0, 1]; 1 = the goal itself.
        dense: cost of the parent.
    """
    if share == 1:
        return goal
    if goal.reach is None:
        assert goal.remove is not None
        return replace(goal, remove=goal.remove * share)
    figure = dense.macs if goal.kind == "macs" else dense.params
    return replace(goal, reach=max(1, round(figure - (figure - goal.reach) * share)))
