"""What a model costs on a target at any levels of its levers, and how that was found out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from prunekit.graph import Groups
from prunekit.graph.operations import Operations
from prunekit.measure import LatencyComparison, compare_latency
from prunekit.plan.figures import (
    Figure,
    Limit,
    OperationTerm,
    loss_figure,
    operation_terms,
    parameter_figure,
    valued,
)
from prunekit.plan.knapsack import descend
from prunekit.plan.levers import Levers
from prunekit.surgery import reduced_graph
from prunekit.targeting.latency_model import LatencyModel, WholeModel, fit_latency_model
from prunekit.targeting.operator_times import OperatorTimes
from prunekit.targeting.rig import Rig
from prunekit.types import IntArray

VARIANTS = 8
"""Whole models that the latency model is fitted to, beside the dense one."""

SMALLEST = 0.15
"""The share of the MACs that the smallest of them keeps, where it can go so far."""

PAIRS, LEAST_PAIRS, SECONDS = 40, 8, 5.0
"""Of timing one of them beside the dense model."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Costs:
    """The figures of a plan on a target.

    Attributes:
        levers: what a plan decides.
        latency: how the milliseconds of a model are told from its operations.
        ms: of one call, as predicted.
        macs: of one call.
        params: number of parameters.
        param_bytes: their bytes.
        dense_ms: measured, of one call of the dense model.
        seconds: that timing operations, exporting and timing whole models took.
    """

    levers: Levers
    latency: LatencyModel
    ms: Figure
    macs: Figure
    params: Figure
    param_bytes: Figure
    dense_ms: float
    seconds: dict[str, float]

    @property
    def sizes(self) -> list[int]:
        """How many levels each lever has."""
        return [len(lever) for lever in self.levers]

    def speedup(self, levels: IntArray) -> float:
        """Predicted milliseconds of the dense model over those at these levels."""
        return self.ms.at(np.zeros_like(levels)) / self.ms.at(levels)


def measure_costs(
    model: nn.Module,
    groups: Groups,
    levers: Levers,
    rig: Rig,
    times: OperatorTimes,
    *,
    variants: int = VARIANTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Costs:
    """Time what a plan on ``levers`` can choose from, and fit the latency model to a few whole models.

    Every operation is timed at all combinations of the widths that change it (:class:`OperatorTimes`, kept
    by target, so that a second call takes no time there). Then widths that a wider one is as fast as are
    taken out. Then ``variants`` plans for a falling share of the MACs, of random preference, are carried out
    without values, exported and timed beside the dense model.

    Args:
        model: the dense model.
        groups: of the model.
        levers: from :func:`prunekit.plan.levers.find_levers` on some of these groups.
        rig: where models are timed.
        times: of this rig's target.
        variants: whole models beside the dense one, at least 1.
        seed: of their preferences.
        progress: called with (what is done, steps done, of how many).
    """
    spent: dict[str, float] = {}
    begin = time.perf_counter()
    operations = Operations(groups)
    batch = rig.target.batch if groups.graph.batch_is_open else None
    terms = operation_terms(operations, levers, groups, batch=batch)
    times.measure(
        rig,
        _classes(terms),
        progress=None if progress is None else lambda done, of: progress("operations", done, of),
    )
    spent["operations"] = time.perf_counter() - begin
    macs = valued(terms, lambda operation: operation.macs)
    models = [WholeModel(operations.at({}, batch=batch), 1.0, "dense")]
    dense_artifact = rig.artifact(model, "dense")
    with rig.quietly():
        dense = rig.open_artifact(dense_artifact)
    found: list[LatencyComparison] = []
    plans = spread_plans(levers, macs, variants, seed)
    exporting = 0.0
    for done, levels in enumerate(plans):
        if progress is not None:
            progress("whole models", done, len(plans))
        keep = levers.masks(levels)
        before = time.perf_counter()
        artifact = rig.artifact(reduced_graph(model, keep, groups), f"variant-{done}-{_tag(levels)}")
        exporting += time.perf_counter() - before
        with rig.quietly():
            found.append(
                compare_latency(
                    dense,
                    rig.open_artifact(artifact),
                    pairs=PAIRS,
                    min_pairs=LEAST_PAIRS,
                    max_seconds=SECONDS,
                    warmup=3,
                )
            )
        share = 1 / found[-1].speedup.median
        models.append(WholeModel(operations.at(keep, batch=batch), share, _tag(levels)))
    dense_ms = float(np.median([comparison.dense.p50_ms for comparison in found]))
    latency = fit_latency_model(times, [replace(model, ms=model.ms * dense_ms) for model in models])
    spent |= {"exporting": exporting, "all": time.perf_counter() - begin}
    ms = valued(terms, latency.ms_of)
    return Costs(
        levers=levers,
        latency=latency,
        ms=replace(ms, constant=ms.constant + latency.rest),
        macs=macs,
        params=parameter_figure(levers, groups),
        param_bytes=parameter_figure(levers, groups, in_bytes=True),
        dense_ms=dense_ms,
        seconds=spent,
    )


def spread_plans(levers: Levers, macs: Figure, count: int, seed: int) -> list[IntArray]:
    """Plans that keep a falling share of the MACs, each of another random preference; none twice."""
    rng = np.random.default_rng(seed)
    sizes = [len(lever) for lever in levers]
    last = levers.last
    whole, least = macs.at(np.zeros_like(last)), macs.at(last)
    found: dict[bytes, IntArray] = {}
    for share in np.linspace(0.9, max(SMALLEST, least / whole * 1.02), count):
        weights = rng.lognormal(size=len(sizes))
        losses = [weight * _bent(size) for weight, size in zip(weights, sizes, strict=True)]
        chosen = descend(loss_figure(losses), [Limit(macs, max(share * whole, least))], sizes)
        if chosen is not None:
            found[chosen.levels.tobytes()] = chosen.levels
    return list(found.values())


def _bent(levels: int) -> np.ndarray:
    return (np.arange(levels) / max(1, levels - 1)) ** 1.5


def _classes(terms: Sequence[OperationTerm]) -> list[list]:
    """The timed operations of each operator, those of equal operators once."""
    found = {}
    for term in terms:
        operations = [each for each in term.operations.ravel() if each is not None and each.is_timed]
        found.setdefault(frozenset(operations), operations)
    return [operations for operations in found.values() if operations]


def _tag(levels: IntArray) -> str:
    return hashlib.sha256(levels.astype(np.int64).tobytes()).hexdigest()[:12]
