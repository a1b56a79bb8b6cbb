"""Measured goals over several cycles: what each of them has to reach, on the model that it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prunekit.plan import Goal
from prunekit.targeting.goal_figures import stored_bytes
from prunekit.targeting.planner import Planner

ON_THE_WAY = frozenset({"latency_ms", "memory_bytes", "size_bytes", "kv_cache_bytes", "macs", "params"})
"""Kinds whose figure falls from that of the dense parent to what is asked."""


def dense_figures(goals: Sequence[Goal], planner: Planner) -> dict[str, float]:
    """What the goals measure, of the dense parent: by kind; kinds that nobody can tell are absent.

    The latency is the median whatever the percentile: it only says where the way of a latency begins.

    Args:
        goals: of the whole run.
        planner: of the dense parent.
    """
    rig, costs = planner.rig, planner.costs
    cost = planner.groups.cost()
    artifact = rig.artifact(planner.model, "dense")
    found: dict[str, float] = {
        "latency_ms": costs.dense_ms,
        "throughput": 1000 * rig.target.batch / costs.dense_ms,
        "size_bytes": float(stored_bytes(artifact, planner.model)),
        "kv_cache_bytes": costs.cache_bytes.at([0] * len(costs.levers)),
        "macs": float(cost.macs),
        "params": float(cost.params),
    }
    if any(goal.kind == "memory_bytes" for goal in goals):
        found["memory_bytes"] = float(rig.peak_bytes(artifact))
    return found


def goals_of_cycle(
    goals: Sequence[Goal],
    share: float,
    earlier: float,
    dense: Mapping[str, float],
    now: Mapping[str, float],
    speedup: float = 1.0,
) -> tuple[Goal, ...]:
    """The goals of a cycle that goes ``share`` of the whole way, for the model that it starts from.

    The way of a speed-up S is the time that is to go: after ``share`` of it the model is
    ``s = 1 / (1 - (1 - 1 / S) * share)`` times as fast as the parent, so the cycle asks for ``s / speedup``,
    or for 1 where that is there already.
    A throughput goes the same way. Other figures fall in a straight line from the parent's to the asked one,
    and a quality drop is shared out among the cycles. What is not known of the parent, and whatever the
    parent meets already, is asked for whole.

    Args:
        goals: of the whole run, relative to the dense parent.
        share: of the way after this cycle, in (0, 1]; 1 = the goals themselves.
        earlier: the share before it.
        dense: figures of the parent, by kind (:func:`dense_figures`).
        now: ``macs`` and ``params`` of the model that the cycle starts from.
        speedup: of that model over the parent, as measured.

    Source: budgets that tighten from step to step: Yang et al., 2018, NetAdapt,
    https://arxiv.org/abs/1804.03230. Deviation: few steps, whose shares the schedule's curve says.
    """
    return tuple(_of_cycle(goal, share, earlier, dense, now, speedup) for goal in goals)


def _of_cycle(
    goal: Goal,
    share: float,
    earlier: float,
    dense: Mapping[str, float],
    now: Mapping[str, float],
    speedup: float,
) -> Goal:
    if goal.kind in ("macs", "params"):
        # Relative to the model at hand, which holds for a batch of any size.
        before = dense[goal.kind]
        asked = before - (before - goal.asked(round(before))) * share
        return replace(goal, reach=None, remove=max(0.0, 1 - asked / now[goal.kind]))
    asked = float(goal.reach or 0)
    if goal.kind == "speedup":
        # Never below 1: an earlier cycle may have done what this one was to do.
        return replace(goal, reach=_rounded(max(1.0, _faster(asked, share) / speedup)))
    if goal.kind == "quality_drop":
        return replace(goal, reach=_rounded(asked * (share - earlier)))
    before = dense.get(goal.kind)
    if share == 1 or before is None:
        return goal
    if goal.kind == "throughput":
        return (
            goal
            if asked <= before
            else replace(goal, reach=_rounded(before * _faster(asked / before, share)))
        )
    assert goal.kind in ON_THE_WAY, goal.kind
    return replace(goal, reach=_rounded(max(asked, before - (before - asked) * share)))


def _faster(speedup: float, share: float) -> float:
    """The speed-up after a share of the time that a whole speed-up saves."""
    return 1 / (1 - (1 - 1 / speedup) * share)


def _rounded(figure: float) -> float:
    """Six digits, far finer than any tolerance, so that messages can be read."""
    return float(f"{figure:.6g}")
