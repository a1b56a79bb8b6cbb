"""What goals mean on one target: the figure each one bounds, what is predicted of it and what is measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from prunekit.errors import GoalError
from prunekit.measure import LatencyComparison, file_size
from prunekit.measure.runtimes import TargetRunner
from prunekit.plan import Goal
from prunekit.plan.figures import Figure, Limit
from prunekit.plan.goal import MEASURED_KINDS
from prunekit.targeting.costs import Costs
from prunekit.targeting.measuring import timed_figure
from prunekit.targeting.rig import Rig
from prunekit.types import IntArray

AT_LEAST = frozenset({"speedup", "throughput"})
"""Goals that a larger figure meets; all others are met by a smaller one."""

TIMED_KINDS = frozenset({"speedup", "latency_ms", "throughput"})
"""Goals that are measured by timing."""

KNOWN = frozenset({*MEASURED_KINDS, "macs", "params"})
"""Kinds of goals that can be reached here."""


class GoalFigures:
    """The dense model on its target, and what goals ask of a smaller one.

    Attributes:
        losses: what each lever loses at its levels.
        costs: of the target; replaced where attempts taught more about them.
        rig: the same target.
        dense: the dense model, open there.
    """

    def __init__(self, losses: Figure, costs: Costs, rig: Rig, model: nn.Module) -> None:
        self.losses, self.costs, self.rig = losses, costs, rig
        self._nothing = np.zeros(len(costs.levers), dtype=np.int64)
        self._dense_artifact = rig.artifact(model, "dense")
        with rig.quietly():
            self.dense: TargetRunner = rig.open_artifact(self._dense_artifact)
        self._dense_bytes = stored_bytes(self._dense_artifact, model)
        self._dense_memory: int | None = None

    def problem(self, goals: tuple[Goal, ...], correction: Mapping[str, float]) -> tuple[Figure, list[Limit]]:
        """What to make least, and for each goal what to keep within which bound.

        Args:
            goals: checked by :func:`check_goals`.
            correction: by goal, how many times its prediction the figure measured.
        """
        limits = [Limit(self.figure(goal), self._bound(goal, correction[str(goal)])) for goal in goals]
        turned = any(goal.kind == "quality_drop" for goal in goals)
        return (self.costs.ms if turned else self.losses), limits

    def figure(self, goal: Goal) -> Figure:
        """What a plan has to keep low for a goal."""
        if goal.kind == "quality_drop":
            return self.losses
        if goal.kind == "params":
            return self.costs.params
        if goal.kind == "macs":
            return self.costs.macs
        if goal.kind == "kv_cache_bytes":
            return self.costs.cache_bytes
        if goal.kind in ("size_bytes", "memory_bytes"):
            return self.costs.param_bytes
        return self.costs.ms

    def _bound(self, goal: Goal, correction: float) -> float:
        if goal.kind == "quality_drop":
            return float(goal.reach or 0)
        costs, reach = self.costs, float(goal.reach or 0) / correction
        if goal.kind in ("params", "macs"):
            return self._asked(goal) * self._counted_at_once(goal) / correction
        if goal.kind == "speedup":
            return costs.ms.at(self._nothing) / float(goal.reach or 0) / correction
        if goal.kind == "throughput":
            return 1000 * self.rig.target.batch / float(goal.reach or 0) / correction
        if goal.kind in ("latency_ms", "kv_cache_bytes"):
            return reach
        stored = self._dense_bytes / costs.param_bytes.at(self._nothing)
        if goal.kind == "size_bytes":
            return reach / stored
        beside = self._memory_beside()
        if reach <= beside:
            raise GoalError(
                f"The goal is {goal}, and the runtime and what it computes on take {beside:,.0f} bytes",
                expected="a memory above that",
                where="goal",
                remedy="Ask for more memory, a smaller batch or a shorter sequence",
            )
        return (reach - beside) / stored

    def _asked(self, goal: Goal) -> float:
        """The figure that a goal wants reached; of ``macs`` and ``params`` it may be told as a fraction."""
        if goal.kind not in ("params", "macs"):
            return float(goal.reach or 0)
        before = self.figure(goal).at(self._nothing) / self._counted_at_once(goal)
        return float(goal.asked(round(before)))

    def _counted_at_once(self, goal: Goal) -> int:
        """Examples that a figure is about; a goal in ``macs`` is about one, a call about the batch."""
        return self.rig.target.batch if goal.kind == "macs" else 1

    def _memory_beside(self) -> float:
        """Peak memory of serving the dense model without what it stores."""
        if self._dense_memory is None:
            self._dense_memory = self.rig.peak_bytes(self._dense_artifact)
        return self._dense_memory - self._dense_bytes

    def _stored(self, levels: IntArray) -> float:
        """Bytes of the stored model: those of its parameters, by a factor fewer where it is quantized."""
        params = self.costs.param_bytes
        return self._dense_bytes * params.at(levels) / params.at(self._nothing)

    def measured(
        self,
        goal: Goal,
        comparison: LatencyComparison,
        artifact: object,
        small: nn.Module,
        levels: IntArray,
    ) -> float:
        """What a goal asks about, as it was measured; what no run can tell is counted.

        Args:
            goal: of any kind in :data:`KNOWN`.
            comparison: of the smaller model beside the dense one.
            artifact: of the smaller model.
            small: the smaller model.
            levels: it was made from.
        """
        groups, keep = self.costs.operations.groups, self.costs.levers.masks(levels)
        timed = timed_figure(goal, comparison, self.rig.target.batch)
        if timed is not None:
            return timed
        if goal.kind == "size_bytes":
            return float(stored_bytes(artifact, small))
        if goal.kind == "memory_bytes":
            return float(self.rig.fitted(groups, keep).peak_bytes(artifact))
        if goal.kind in ("macs", "params"):
            cost = groups.cost(keep)
            return float(cost.macs if goal.kind == "macs" else cost.params)
        return self.predicted(goal, levels)

    def predicted(self, goal: Goal, levels: IntArray) -> float:
        """The same figure as the model of cost tells it."""
        costs = self.costs
        if goal.kind == "quality_drop":
            return self.losses.at(levels)
        if goal.kind == "speedup":
            return costs.speedup(levels)
        if goal.kind == "throughput":
            return 1000 * self.rig.target.batch / costs.ms.at(levels)
        if goal.kind == "size_bytes":
            return self._stored(levels)
        if goal.kind == "memory_bytes":
            return self._memory_beside() + self._stored(levels)
        return self.figure(goal).at(levels) / self._counted_at_once(goal)

    def wrong(self, goal: Goal, measured: float, levels: IntArray) -> float:
        """How many times its prediction a goal's figure measured; above 1 it was worse than predicted."""
        predicted = self.predicted(goal, levels)
        return predicted / measured if goal.kind in AT_LEAST else measured / max(predicted, 1e-300)

    def corrected(self, goal: Goal, levels: IntArray, wrong: float) -> float:
        """What is expected of a goal's figure where its prediction is ``wrong``, as :meth:`wrong` says it."""
        predicted = self.predicted(goal, levels)
        return predicted / wrong if goal.kind in AT_LEAST else predicted * wrong

    def surplus(self, goal: Goal, measured: float) -> float:
        """How much better than asked, relative to what was asked; below 0 it is missed."""
        asked = self._asked(goal)
        return measured / asked - 1 if goal.kind in AT_LEAST else 1 - measured / asked


def check_goals(goals: tuple[Goal, ...], costs: Costs) -> None:
    """Refuse goals that are not reached here.

    Raises:
        GoalError: no goal, or a kind that no figure of a plan on a target stands for; caches of a model that
            has none; a timed goal to be met exactly.
    """
    if not goals:
        raise GoalError("No goal was given", expected="at least one", where="goals")
    for goal in goals:
        if not isinstance(goal, Goal):
            raise GoalError(f"The goal is {goal!r}", expected="a Goal, or several", where="goals")
        if goal.kind not in KNOWN:
            raise GoalError(
                f"The goal is {goal}",
                expected=f"one of {', '.join(sorted(KNOWN))}",
                where="goals",
                remedy="A sparsity is planned by allocate(); for what a target stores or computes give one "
                "of these",
            )
        if goal.kind in TIMED_KINDS and goal.tolerance <= 0:
            raise GoalError(
                f"The tolerance of the goal {goal} is {goal.tolerance}",
                expected="one above 0, because a time is never measured exactly",
                where="tolerance",
            )
        if goal.kind == "kv_cache_bytes" and not costs.cache_bytes.at([0] * len(costs.levers)):
            raise GoalError(
                f"The goal is {goal}, and the model hands no cache to its next call",
                expected="a model whose outputs hold past_key_values",
                where="goals",
                remedy="Trace it with use_cache=True, or ask for another figure",
            )


def stored_bytes(artifact: object, module: nn.Module) -> int:
    """Bytes of an exported file, or of the tensors of a module that is not exported."""
    path = getattr(artifact, "path", None)
    if path is not None:
        return file_size(path)
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
