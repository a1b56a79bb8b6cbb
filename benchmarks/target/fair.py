"""What ways of choosing are compared by: the same scores, the same loss, the same mending, the same speed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit.errors import GoalError
from prunekit.measure import LatencyComparison
from prunekit.targeting import Planner, Reached, refine
from prunekit.targeting.costs import tag
from prunekit.targeting.measuring import check_steady, enough_to_tell, measure_beside, tells

OURS = "knapsack"
"""The way that may be faster than asked, where what loses least is: that is to its own disadvantage."""

REFINED = "knapsack, refined"
"""The same, and then a search on the loss among plans predicted to be no slower; it may be faster, too."""

PEER = "Torch-Pruning, uniform"
"""The way that is not prunekit's."""

TOLERANCE = 0.03
TRIES = 10
TRIALS = 60
"""Of the search."""

Loss = Callable[[nn.Module], float]


def mended(model: nn.Module, batches: Sequence[pk.Batch]) -> nn.Module:
    """The model with the running statistics of its batch norms recomputed: pruning makes them wrong."""
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        pk.recalibrate_norms(model, batches)
    return model.eval()


def divergence(dense: nn.Module, on: Sequence[pk.Batch], mending: Sequence[pk.Batch]) -> Loss:
    """The mean KL divergence of a model's classes from the dense model's, both mended.

    Few pictures tell running statistics badly. Where only the pruned model had them, those of the dense one
    would be a loss that pruning seems to make good.

    Args:
        dense: gives logits ``[batch, classes]``.
        on: what both are asked.
        mending: what the running statistics are recomputed on.
    """

    def logits(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(*batch.args, **batch.kwargs) for batch in on]).log_softmax(1)

    right = logits(mended(copy.deepcopy(dense), mending))

    def loss(small: nn.Module) -> float:
        found = logits(mended(copy.deepcopy(small), mending))
        return float(nn.functional.kl_div(found, right, reduction="batchmean", log_target=True))

    return loss


def scores(
    model: nn.Module, groups: pk.Groups, granularity: Sequence[str], batches: Sequence[pk.Batch]
) -> Mapping[str, Any]:
    """Wanda's for widths, or norms where no weights read a unit; block influence for layers."""
    chosen = groups.select(granularity=granularity)
    needs = pk.needs_of("wanda", "block_influence")
    stats = pk.collect(model, batches, groups=chosen, needs=needs)
    found: dict[str, Any] = {}
    for criterion, fallback, depth in (("wanda", "l2", False), ("block_influence", None, True)):
        some = [group for group in chosen if group.is_depth == depth]
        if some:
            found |= pk.score(model, some, criterion, stats=stats, fallback=fallback)
    return found


@dataclass(frozen=True)
class Equal:
    """A model of the speed that was asked for, or the nearest that a way came to it.

    Attributes:
        model: pruned, not mended.
        comparison: beside the dense model.
        macs_left: the share of the dense model's.
        counts: it is as fast as asked, or faster where that is to its own disadvantage (:data:`OURS`).
    """

    model: nn.Module
    comparison: LatencyComparison
    macs_left: float
    counts: bool = True


def as_fast(
    planner: Planner, speedup: float, way: str, example: Tensor | None = None, loss: Loss | None = None
) -> Equal:
    """The model that a way of choosing makes that fast, or the nearest where it makes faster ones alone.

    Args:
        planner: of the dense model.
        speedup: to be measured.
        way: an allocation of prunekit's, :data:`REFINED` or :data:`PEER`.
        example: the input of a model that Torch-Pruning prunes.
        loss: that the search asks.

    Raises:
        PrunekitError: it cannot be that fast; of Torch-Pruning, that no sparsity was near.
    """
    if way == PEER:
        assert example is not None
        return _torch_pruning(planner, example, speedup)
    goal = pk.Goal("speedup", reach=speedup, tolerance=TOLERANCE)
    found = _reached(planner, goal, OURS if way == REFINED else way)
    comparison = found.comparison
    if way == REFINED:
        assert loss is not None
        found = replace(found, plan=refine(planner, found, loss, trials=TRIALS).plan)
    model = planner.remove(found)[0].model
    if way == REFINED:
        comparison = _beside(planner, model, f"plan-{tag(found.plan.keep_mask())}", goal)
        check_steady(comparison, goal)
    may_be_faster = way in (OURS, REFINED) and comparison.speedup.median > speedup
    counts = _is_near(comparison, speedup) or may_be_faster
    return Equal(model, comparison, found.plan.after.macs / found.plan.before.macs, counts)


@cache
def _reached(planner: Planner, goal: pk.Goal, way: str) -> Reached:
    """By this planner once, so that what is refined is what was judged."""
    return planner.reach(goal, allocation=way)  # pyright: ignore[reportArgumentType]


def _beside(planner: Planner, small: nn.Module, name: str, goal: pk.Goal) -> LatencyComparison:
    """What a model measures beside the dense one; again where it measures well, as of attempts."""
    artifact = planner.rig.artifact(small, name)
    with planner.rig.quietly():
        whole = planner.rig.open_artifact(planner.rig.artifact(planner.model, "dense"))
        runner = planner.rig.open_artifact(artifact)
        measure = partial(
            measure_beside,
            whole,
            runner,
            tolerance=TOLERANCE,
            goals=[goal],
            least_seconds=planner.rig.seconds,
        )
        found = measure()
        if not _is_near(found, goal.reach or 1.0):
            return found
        found = measure(effort=enough_to_tell(found, [goal]), seed=1)
        if tells(found, [goal]):
            return found
        return measure(effort=enough_to_tell(found, [goal], counts=True), known=found, seed=2)


def _is_near(found: LatencyComparison, speedup: float) -> bool:
    return abs(found.speedup.median / speedup - 1) <= TOLERANCE


def told(found: Equal) -> dict[str, float]:
    """How fast it measured, and what is left of the MACs."""
    speedup = found.comparison.speedup
    return {
        "measured": round(speedup.median, 4),
        "low": round(speedup.low, 4),
        "high": round(speedup.high, 4),
        "macs_left": round(found.macs_left, 4),
    }


def _torch_pruning(planner: Planner, example: Tensor, speedup: float) -> Equal:
    """At the uniform channel sparsity that measures that fast, found by bisection."""
    before, goal = _macs(planner.model, example), pk.Goal("speedup", reach=speedup, tolerance=TOLERANCE)
    low, high = 0.0, 0.95
    for _ in range(TRIES):
        sparsity = (low + high) / 2
        small = _uniform(planner.model, example, sparsity)
        found = _beside(planner, small, f"torch-pruning-{sparsity:.6f}", goal)
        if _is_near(found, speedup):
            check_steady(found, goal)
            return Equal(small, found, _macs(small, example) / before)
        low, high = (sparsity, high) if found.speedup.median < speedup else (low, sparsity)
    raise GoalError(f"No sparsity measured {speedup:g}x within {TOLERANCE:.0%}", where=PEER)


def _macs(model: nn.Module, example: Tensor) -> float:
    import torch_pruning as tp

    return float(tp.utils.count_ops_and_params(model, example)[0])


def _uniform(model: nn.Module, example: Tensor, sparsity: float) -> nn.Module:
    import torch_pruning as tp

    small = copy.deepcopy(model).eval()
    classifier = [module for module in small.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.MagnitudePruner(
        small,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=sparsity,
        ignored_layers=[classifier],
    )
    pruner.step()
    return small.eval()
