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
from prunekit.measure import compare_latency
from prunekit.measure.runtimes import NodeTime
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
from prunekit.targeting.in_context import parts_of
from prunekit.targeting.latency_model import LatencyModel, WholeModel, fit_latency_model
from prunekit.targeting.operator_times import OperatorTimes
from prunekit.targeting.rig import Rig
from prunekit.targeting.timing import TIMED_SECONDS
from prunekit.types import IntArray, KeepMask

SMALLEST = 0.15
"""The share of the MACs that the smallest variant keeps, where it can go so far."""

PAIRS, LEAST_PAIRS = 40, 8
"""Of timing one of them beside the dense model, which goes on for as long as the rig says."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Seen:
    """A model that was timed beside the dense one.

    Attributes:
        keep: what it keeps.
        speedup: how many times as fast as the dense model it is.
        nodes: what its operators took, where the runtime tells.
    """

    keep: KeepMask
    speedup: float
    nodes: tuple[NodeTime, ...] = ()


@dataclass(frozen=True, eq=False)
class Computation:
    """What a model computes, at any levels of its levers.

    Attributes:
        levers: what a plan decides.
        operations: of the model, with its groups.
        batch: examples in a call; None where the model takes one size only.
        terms: the operators at any levels.
    """

    levers: Levers
    operations: Operations
    batch: int | None
    terms: tuple[OperationTerm, ...]

    @classmethod
    def of(cls, levers: Levers, groups: Groups, batch: int | None) -> Computation:
        """Find out what a model computes; nothing is timed.

        Args:
            levers: of a plan.
            groups: of the model.
            batch: of the target.
        """
        operations = Operations(groups)
        terms = operation_terms(operations, levers, groups, batch=batch)
        return cls(levers, operations, batch, tuple(terms))


@dataclass(frozen=True, eq=False)
class Costs:
    """The figures of a plan on a target.

    Attributes:
        computation: what the model computes there.
        latency: how the milliseconds of a model are told from its operations.
        ms: of one call, as predicted.
        macs: of one call.
        params: number of parameters.
        param_bytes: their bytes.
        cache_bytes: of what one call hands to the next; 0 where there is nothing.
        dense_ms: measured, of one call of the dense model.
        seconds: that timing operations, exporting and timing whole models took.
    """

    computation: Computation
    latency: LatencyModel
    ms: Figure
    macs: Figure
    params: Figure
    param_bytes: Figure
    cache_bytes: Figure
    dense_ms: float
    seconds: dict[str, float]

    @property
    def levers(self) -> Levers:
        """What a plan decides."""
        return self.computation.levers

    @property
    def operations(self) -> Operations:
        """Of the model."""
        return self.computation.operations

    @property
    def sizes(self) -> list[int]:
        """How many levels each lever has."""
        return [len(lever) for lever in self.levers]

    def speedup(self, levels: IntArray) -> float:
        """Predicted milliseconds of the dense model over those at these levels."""
        return self.ms.at(np.zeros_like(levels)) / self.ms.at(levels)

    def learnt(self, rig: Rig, measured: Iterable[Seen]) -> Costs:
        """The costs once the latency model is fitted to more models.

        Args:
            rig: of the target. Operations of these models that were not timed are (an operator that reads
                many groups is timed at some of its widths); they are remembered here, and in no file.
            measured: these models.
        """
        more = [_whole(self.operations, rig.batch, self.dense_ms, each) for each in measured]
        times = replace(self.latency.times, path=None)
        times.measure(rig, [[one for one in model.operations if one.is_timed] for model in more])
        latency = fit_latency_model(times, [*self.latency.models, *more])
        return replace(self, latency=latency, ms=_ms(self.computation, latency))


def measure_costs(
    model: nn.Module,
    groups: Groups,
    levers: Levers,
    rig: Rig,
    times: OperatorTimes,
    variants: Sequence[KeepMask],
    *,
    progress: Progress | None = None,
) -> Costs:
    """Time what a plan on ``levers`` can choose from, and fit the latency model to a few whole models.

    Every operation is timed at all combinations of the widths that change it (:class:`OperatorTimes`, kept
    by target, so that a second call takes no time there). Then the ``variants`` are carried out, exported
    and timed beside the dense model.

    Args:
        model: the dense model.
        groups: of the model.
        levers: from :func:`prunekit.plan.levers.find_levers` on some of these groups.
        rig: where models are timed.
        times: of this rig's target.
        variants: what whole models keep, at least one (:func:`spread_plans`). Those on levers that do not
            depend on the target let one folder of exported models serve many targets.
        progress: called with (what is done, steps done, of how many).
    """
    spent: dict[str, float] = {}
    begin = time.perf_counter()
    computation = Computation.of(levers, groups, rig.batch)
    operations = computation.operations
    times.measure(
        rig, _classes(computation.terms), progress=partial(progress, "operations") if progress else None
    )
    spent["operations"] = time.perf_counter() - begin
    seen, dense_ms, spent["exporting"] = _compare(model, groups, variants, rig, progress)
    models = [_whole(operations, rig.batch, dense_ms, each) for each in seen]
    times.measure(rig, [[one for one in model.operations if one.is_timed] for model in models])
    latency = fit_latency_model(times, models)
    spent["all"] = time.perf_counter() - begin
    return costs_of(computation, latency, dense_ms=dense_ms, seconds=spent)


def costs_of(
    computation: Computation, latency: LatencyModel, *, dense_ms: float, seconds: dict[str, float]
) -> Costs:
    """The costs where the latency model is fitted already; nothing is timed.

    Args:
        computation: of the model.
        latency: fitted on the target.
        dense_ms: measured.
        seconds: spent.
    """
    levers, operations = computation.levers, computation.operations
    groups = operations.groups
    return Costs(
        computation=computation,
        latency=latency,
        ms=_ms(computation, latency),
        macs=valued(computation.terms, lambda operation: operation.macs),
        params=parameter_figure(levers, groups),
        param_bytes=parameter_figure(levers, groups, in_bytes=True),
        cache_bytes=cache_figure(operations, levers, groups, batch=computation.batch),
        dense_ms=dense_ms,
        seconds=seconds,
    )


def _ms(computation: Computation, latency: LatencyModel) -> Figure:
    """The milliseconds of a call at any levels."""
    ms = valued(computation.terms, latency.ms_of)
    return replace(ms, constant=ms.constant + latency.rest)


def _compare(
    model: nn.Module,
    groups: Groups,
    plans: Sequence[KeepMask],
    rig: Rig,
    progress: Progress | None,
) -> tuple[list[Seen], float, float]:
    """The dense model and that of each plan, its milliseconds, and the seconds that exporting took."""
    begin = time.perf_counter()
    artifact = rig.artifact(model, "dense")
    exporting = time.perf_counter() - begin
    with rig.quietly():
        dense = rig.open_artifact(artifact)
    seen, dense_ms = [Seen({}, 1.0, rig.node_times(artifact))], []
    for done, keep in enumerate(plans):
        if progress is not None:
            progress("whole models", done, len(plans))
        begin = time.perf_counter()
        fitted = rig.fitted(groups, keep)
        artifact = fitted.artifact(reduced_graph(model, keep, groups), f"variant-{tag(keep)}")
        exporting += time.perf_counter() - begin
        with rig.quietly():
            pruned = fitted.open_artifact(artifact)
            found = compare_latency(
                dense,
                pruned,
                pairs=PAIRS,
                min_pairs=LEAST_PAIRS,
                min_seconds=rig.seconds,
                max_seconds=max(TIMED_SECONDS, rig.seconds),
                warmup=3,
            )
        seen.append(Seen(keep, found.speedup.median, fitted.node_times(artifact)))
        dense_ms.append(found.dense.p50_ms)
    return seen, float(np.median(dense_ms)), exporting


def _whole(operations: Operations, batch: int | None, dense_ms: float, seen: Seen) -> WholeModel:
    """A model that was timed, in terms of its operations."""
    left, ms = operations.at(seen.keep, batch=batch), dense_ms / seen.speedup
    name = tag(seen.keep) if seen.keep else "dense"
    return WholeModel(left, ms, name, parts_of(left, seen.nodes, ms))


def spread_plans(levers: Levers, operations: Operations, count: int, seed: int = 0) -> list[KeepMask]:
    """Plans that keep a falling share of the MACs, each of another random preference; none twice.

    Args:
        levers: that they differ in.
        operations: of the model.
        count: of plans, at most.
        seed: of the preferences.
    """
    macs = valued(operation_terms(operations, levers, operations.groups), lambda operation: operation.macs)
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
