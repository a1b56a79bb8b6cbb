"""What a model costs on a target at any levels of its levers, and how that was found out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import nn

from prunekit.graph import Groups
from prunekit.graph.operations import Operations
from prunekit.measure import LatencyComparison, compare_latency
from prunekit.plan.figures import (
    Figure,
    Limit,
    OperationTerm,
    cache_figure,
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
from prunekit.types import IntArray, KeepMask

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
        cache_bytes: of what one call hands to the next; 0 where there is nothing.
        dense_ms: measured, of one call of the dense model.
        seconds: that timing operations, exporting and timing whole models took.
        terms: the operators at any levels.
        operations: of the model.
        batch: examples in a call; None where the model takes one size only.
    """

    levers: Levers
    latency: LatencyModel
    ms: Figure
    macs: Figure
    params: Figure
    param_bytes: Figure
    cache_bytes: Figure
    dense_ms: float
    seconds: dict[str, float]
    terms: tuple[OperationTerm, ...]
    operations: Operations
    batch: int | None

    @property
    def sizes(self) -> list[int]:
        """How many levels each lever has."""
        return [len(lever) for lever in self.levers]

    def speedup(self, levels: IntArray) -> float:
        """Predicted milliseconds of the dense model over those at these levels."""
        return self.ms.at(np.zeros_like(levels)) / self.ms.at(levels)

    def learnt(self, measured: Iterable[tuple[KeepMask, float]]) -> Costs:
        """The costs once the latency model is fitted to more models: what they keep, and their speed-ups."""
        more = [
            WholeModel(self.operations.at(keep, batch=self.batch), self.dense_ms / speedup, tag(keep))
            for keep, speedup in measured
        ]
        latency = fit_latency_model(self.latency.times, [*self.latency.models, *more])
        return replace(self, latency=latency, ms=_ms(self.terms, latency))


def measure_costs(
    model: nn.Module,
    groups: Groups,
    levers: Levers,
    rig: Rig,
    times: OperatorTimes,
    *,
    examples: Levers | None = None,
    variants: int = VARIANTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Costs:
    """Time what a plan on ``levers`` can choose from, and fit the latency model to a few whole models.

    Every operation is timed at all combinations of the widths that change it (:class:`OperatorTimes`, kept
    by target, so that a second call takes no time there). Then ``variants`` plans for a falling share of the
    MACs, of random preference, are carried out, exported and timed beside the dense model.

    Args:
        model: the dense model.
        groups: of the model.
        levers: from :func:`prunekit.plan.levers.find_levers` on some of these groups.
        rig: where models are timed.
        times: of this rig's target.
        examples: levers that the whole models differ in; default ``levers``. Those that do not depend on the
            target let one folder of exported models serve many targets.
        variants: whole models beside the dense one, at least 1.
        seed: of their preferences.
        progress: called with (what is done, steps done, of how many).
    """
    spent: dict[str, float] = {}
    begin = time.perf_counter()
    operations = Operations(groups)
    terms = operation_terms(operations, levers, groups, batch=rig.batch)
    times.measure(rig, _classes(terms), progress=partial(progress, "operations") if progress else None)
    spent["operations"] = time.perf_counter() - begin
    examples = levers if examples is None else examples
    plans = spread_plans(examples, operations, groups, variants, seed)
    compared, spent["exporting"] = _compare(model, groups, plans, rig, progress)
    dense_ms = float(np.median([comparison.dense.p50_ms for comparison in compared]))
    models = [WholeModel(operations.at({}, batch=rig.batch), dense_ms, "dense")]
    for keep, comparison in zip(plans, compared, strict=True):
        left = operations.at(keep, batch=rig.batch)
        models.append(WholeModel(left, dense_ms / comparison.speedup.median, tag(keep)))
    times.measure(rig, [[one for one in model.operations if one.is_timed] for model in models])
    latency = fit_latency_model(times, models)
    spent["all"] = time.perf_counter() - begin
    return costs_of(
        levers,
        groups,
        latency,
        terms,
        operations=operations,
        batch=rig.batch,
        dense_ms=dense_ms,
        seconds=spent,
    )


def costs_of(
    levers: Levers,
    groups: Groups,
    latency: LatencyModel,
    terms: tuple[OperationTerm, ...],
    *,
    operations: Operations,
    batch: int | None,
    dense_ms: float,
    seconds: dict[str, float],
) -> Costs:
    """All figures, from a latency model that is fitted already; nothing is timed.

    Args:
        levers: of the plan.
        groups: of the model.
        latency: fitted on the target.
        terms: see :class:`Costs`, as the others are.
        operations: of the model.
        batch: of the target.
        dense_ms: measured.
        seconds: spent.
    """
    return Costs(
        levers=levers,
        latency=latency,
        ms=_ms(terms, latency),
        macs=valued(terms, lambda operation: operation.macs),
        params=parameter_figure(levers, groups),
        param_bytes=parameter_figure(levers, groups, in_bytes=True),
        cache_bytes=cache_figure(operations, levers, groups, batch=batch),
        dense_ms=dense_ms,
        seconds=seconds,
        terms=terms,
        operations=operations,
        batch=batch,
    )


def _ms(terms: Sequence[OperationTerm], latency: LatencyModel) -> Figure:
    """The milliseconds of a call at any levels."""
    ms = valued(terms, latency.ms_of)
    return replace(ms, constant=ms.constant + latency.rest)


def _compare(
    model: nn.Module,
    groups: Groups,
    plans: Sequence[KeepMask],
    rig: Rig,
    progress: Progress | None,
) -> tuple[list[LatencyComparison], float]:
    """Time each plan's model beside the dense one; and the seconds that exporting took."""
    begin = time.perf_counter()
    artifact = rig.artifact(model, "dense")
    exporting = time.perf_counter() - begin
    with rig.quietly():
        dense = rig.open_artifact(artifact)
    compared = []
    for done, keep in enumerate(plans):
        if progress is not None:
            progress("whole models", done, len(plans))
        begin = time.perf_counter()
        fitted = rig.fitted(groups, keep)
        artifact = fitted.artifact(reduced_graph(model, keep, groups), f"variant-{tag(keep)}")
        exporting += time.perf_counter() - begin
        with rig.quietly():
            pruned = fitted.open_artifact(artifact)
            compared.append(
                compare_latency(
                    dense, pruned, pairs=PAIRS, min_pairs=LEAST_PAIRS, max_seconds=SECONDS, warmup=3
                )
            )
    return compared, exporting


def spread_plans(
    levers: Levers, operations: Operations, groups: Groups, count: int, seed: int
) -> list[KeepMask]:
    """Plans that keep a falling share of the MACs, each of another random preference; none twice."""
    macs = valued(operation_terms(operations, levers, groups), lambda operation: operation.macs)
    rng = np.random.default_rng(seed)
    sizes = [len(lever) for lever in levers]
    last = levers.last
    whole, least = macs.at(np.zeros_like(last)), macs.at(last)
    found: dict[bytes, KeepMask] = {}
    for share in np.linspace(0.9, max(SMALLEST, least / whole * 1.02), count):
        weights = rng.lognormal(size=len(sizes))
        losses = [weight * _bent(size) for weight, size in zip(weights, sizes, strict=True)]
        chosen = descend(loss_figure(losses), [Limit(macs, max(share * whole, least))], sizes)
        if chosen is not None:
            found[chosen.levels.tobytes()] = levers.masks(chosen.levels)
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


def tag(keep: KeepMask) -> str:
    """A short name for what is kept, the same every time."""
    digest = hashlib.sha256()
    for name in sorted(keep):
        digest.update(name.encode() + np.packbits(keep[name]).tobytes())
    return digest.hexdigest()[:12]
