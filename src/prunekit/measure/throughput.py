"""How many requests per second a model answers within a latency bound, and by how much pruning raised it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure.batches import Batches
from prunekit.measure.latency import paired_speedup
from prunekit.measure.loadgen import (
    LoadResult,
    LoadSettings,
    check_settings,
    least_queries,
    load_loadgen,
    run_load,
)
from prunekit.measure.runtimes import Runner
from prunekit.types import Speedup

LoadProgress = Callable[[LoadResult], None]

SERVER = LoadSettings("server")
PRECISION = 0.05

_FIRST_SHARE = 0.5
_STEP_UP = 1.6
_STEP_DOWN = 2.0
_LEAST_SHARE = 0.04
_BOUNDS_LONG = 20.0
_FAILURES = 2
_MOST_PROBES = 60


@dataclass(frozen=True)
class Throughput:
    """The most requests per second at which a bound on the latency held.

    Attributes:
        model: the runner's name.
        p99_ms: the bound: 99 of 100 answers within it.
        passing_qps: the highest rate tried at which LoadGen called the test valid; the answer.
        failing_qps: the lowest rate tried above it at which LoadGen did not, twice.
        precision: asked for: ``failing_qps / passing_qps <= 1 + precision``.
        call_ms: median time of one sample alone.
        probes: every test in the order they were run.
    """

    model: str
    p99_ms: float
    passing_qps: float
    failing_qps: float
    precision: float
    call_ms: float
    probes: tuple[LoadResult, ...]


@dataclass(frozen=True)
class ThroughputComparison:
    """Two models under the same bound, searched in turns.

    Attributes:
        dense: of the parent.
        pruned: of the model it is compared with.
        gain: pruned over dense, of the highest rates that passed.
        low: the least it can be: the pruned model's passing rate over the dense model's failing one.
        high: the most it can be: the pruned model's failing rate over the dense model's passing one.
    """

    dense: Throughput
    pruned: Throughput
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class LoadComparison:
    """Two models under the same load, in turns.

    Attributes:
        dense: a test of the parent in each round.
        pruned: a test of the other model in each round.
        speedup: dense over pruned: of the median latency; in Offline, of the time per sample.
        tail: dense over pruned of the 99th percentile of the latency; None in Offline.
        valid: LoadGen called every test valid.
    """

    dense: tuple[LoadResult, ...]
    pruned: tuple[LoadResult, ...]
    speedup: Speedup
    tail: Speedup | None
    valid: bool


def max_throughput(
    runner: Runner,
    *,
    p99_ms: float,
    precision: float = PRECISION,
    settings: LoadSettings = SERVER,
    progress: LoadProgress | None = None,
) -> Throughput:
    """Search the Server scenario for the highest rate whose 99th percentile keeps a bound.

    The rate is raised or lowered by a factor until one rate passes and a higher one fails, then halved
    between the two in the logarithm. A rate passes when LoadGen calls a test valid that has at least
    ``min_seconds``, 20 bounds and ``min_queries`` (so that a queue that grows without end shows). The failing
    rate that ends the search must fail again, later and with other arrivals; if it passes then, a hiccup of
    the machine had made it fail, and the search goes on above it. The same seed gives the same arrivals at
    every rate, only closer together.

    Args:
        runner: the model.
        p99_ms: 99 of 100 answers within this time, waiting included.
        precision: relative distance of the passing and the failing rate at the end.
        settings: durations, counts, batching and seed; rate, bound and percentile are set here.
        progress: called with each test.

    Raises:
        MeasurementError: a bound below the time of one call, too few queries for a verdict, no rate that
            passes or none that fails, LoadGen is not installed, or the model failed.
    """
    search = _Search(runner, _settings(settings, p99_ms, precision), precision)
    while (rate := search.rate()) is not None:
        search.probe(rate, progress)
    return search.result()


def compare_throughput(
    dense: Runner,
    pruned: Runner,
    *,
    p99_ms: float,
    precision: float = PRECISION,
    settings: LoadSettings = SERVER,
    progress: LoadProgress | None = None,
) -> ThroughputComparison:
    """The search of :func:`max_throughput` for two models, one test of each in turns.

    Both searches cover the same stretch of time, so drift of the machine that is slower than a test falls on
    both.

    Args:
        dense: the parent.
        pruned: the model it is compared with.
        p99_ms: as for :func:`max_throughput`.
        precision: as for :func:`max_throughput`.
        settings: the same for both.
        progress: called with each test.

    Raises:
        MeasurementError: as for :func:`max_throughput`.
    """
    load = _settings(settings, p99_ms, precision)
    searches = [_Search(runner, load, precision) for runner in (dense, pruned)]
    busy = True
    while busy:
        busy = False
        for search in searches:
            if (rate := search.rate()) is not None:
                search.probe(rate, progress)
                busy = True
    of_dense, of_pruned = (search.result() for search in searches)
    return ThroughputComparison(
        dense=of_dense,
        pruned=of_pruned,
        gain=of_pruned.passing_qps / of_dense.passing_qps,
        low=of_pruned.passing_qps / of_dense.failing_qps,
        high=of_pruned.failing_qps / of_dense.passing_qps,
    )


def compare_scenarios(
    dense: Runner,
    pruned: Runner,
    settings: LoadSettings,
    *,
    rounds: int = 5,
    progress: LoadProgress | None = None,
) -> LoadComparison:
    """Two models under one load: a test of each in every round, in an order drawn anew for every round.

    The speed-up is the median over rounds of the paired figures, as
    :func:`prunekit.measure.paired_speedup` has it; with up to eight rounds its interval is their range.

    Args:
        dense: the parent.
        pruned: the model it is compared with.
        settings: of one test, the same for both.
        rounds: tests of each, >= 2.
        progress: called with each test.

    Raises:
        MeasurementError: as for :func:`prunekit.measure.run_load`, or fewer than two rounds.
    """
    if rounds < 2:
        raise MeasurementError(f"{rounds} rounds were asked for", expected="2 or more")
    check_settings(settings)
    load_loadgen()
    both = [Batches(runner, settings.max_batch) for runner in (dense, pruned)]
    results: tuple[list[LoadResult], list[LoadResult]] = ([], [])
    dense_first = np.random.default_rng(settings.seed).random(rounds) < 0.5
    for round_, first in enumerate(dense_first):
        load = replace(settings, seed=settings.seed + round_)
        for which in (0, 1) if first else (1, 0):
            results[which].append(run_load(both[which], load))
            if progress is not None:
                progress(results[which][-1])

    def paired(figure: Callable[[LoadResult], float]) -> Speedup:
        times = [np.array([figure(result) for result in side]) for side in results]
        return paired_speedup(times[0], times[1])

    offline = settings.scenario == "offline"
    return LoadComparison(
        dense=tuple(results[0]),
        pruned=tuple(results[1]),
        speedup=paired((lambda one: 1 / one.per_second) if offline else (lambda one: one.latency.p50_ms)),
        tail=None if offline else paired(lambda one: one.latency.p99_ms),
        valid=all(result.valid for side in results for result in side),
    )


class _Search:
    """One model's search: which rate to try next, and what came of those tried."""

    def __init__(self, runner: Runner, settings: LoadSettings, precision: float) -> None:
        self._settings, self._precision = settings, precision
        self._batches = Batches(runner, settings.max_batch)
        self._call_ms = self._batches.call_ms()
        self._probes: list[LoadResult] = []
        self._passing = 0.0
        self._failed: dict[float, int] = {}
        bound = _bound(settings)
        if bound <= self._call_ms:
            raise MeasurementError(
                f"The bound is {bound:g} ms, and one sample alone takes {self._call_ms:.3g} ms",
                expected=f"a bound above {self._call_ms:.3g} ms",
                where=runner.name,
                remedy="Prune further, use more threads, or allow more time: no rate can meet this bound",
            )
        largest = self._batches.largest
        self._capacity = 1e3 * max(1 / self._call_ms, largest / self._batches.call_ms(largest))

    def rate(self) -> float | None:
        """Requests per second to try next; None when the answer is precise enough and stood a second test."""
        if not self._probes:
            return _FIRST_SHARE * self._capacity
        failing = self._failing()
        if len(self._probes) >= _MOST_PROBES:
            raise self._lost(f"After {_MOST_PROBES} tests there is no rate that passes below one that fails")
        if failing == math.inf:
            return self._passing * _STEP_UP
        if self._passing == 0 and failing > _LEAST_SHARE * self._capacity:
            return failing / _STEP_DOWN
        if self._passing > 0 and failing > self._passing * (1 + self._precision):
            return math.sqrt(self._passing * failing)
        if self._failed[failing] < _FAILURES:
            return failing
        if self._passing == 0:
            raise self._lost(f"Even {failing:.3g} requests per second did not keep the bound")
        return None

    def probe(self, rate: float, progress: LoadProgress | None) -> None:
        """Test one rate; a rate that failed before meets other arrivals."""
        failures = self._failed.get(rate, 0)
        settings = replace(self._settings, target_qps=rate, seed=self._settings.seed + failures)
        result = run_load(self._batches, settings, give_up=True)
        self._probes.append(result)
        if result.valid:
            self._passing = max(self._passing, rate)
        else:
            self._failed[rate] = failures + 1
        if progress is not None:
            progress(result)

    def _failing(self) -> float:
        """The lowest rate that failed above those that passed."""
        return min((rate for rate in self._failed if rate > self._passing), default=math.inf)

    def result(self) -> Throughput:
        """The answer."""
        return Throughput(
            model=self._batches.runner.name,
            p99_ms=_bound(self._settings),
            passing_qps=self._passing,
            failing_qps=self._failing(),
            precision=self._precision,
            call_ms=self._call_ms,
            probes=tuple(self._probes),
        )

    def _lost(self, given: str) -> MeasurementError:
        last = self._probes[-1]
        return MeasurementError(
            f"{given}: one sample alone takes {self._call_ms:.3g} ms, the bound is "
            f"{_bound(self._settings):g} ms, and {last.late} of {last.served} answers of "
            f"the last test came later",
            where=last.model,
            remedy="Allow more time, or measure when the machine is idle",
        )


def _settings(settings: LoadSettings, p99_ms: float, precision: float) -> LoadSettings:
    """The load of every test of a search, but for its rate."""
    if not 0.001 <= precision < 1:
        raise MeasurementError(f"The precision is {precision}", expected="a number from 0.001 to below 1")
    if settings.scenario != "server":
        raise MeasurementError(
            f"The scenario is {settings.scenario!r}", expected="'server', the one with a rate and a bound"
        )
    load = replace(settings, bound_ms=p99_ms, percentile=0.99)
    check_settings(replace(load, target_qps=1.0))
    load_loadgen()
    least = least_queries(0.99)
    if load.min_queries < least:
        raise MeasurementError(
            f"min_queries is {load.min_queries}",
            expected=f"{least} or more: below that LoadGen calls no test on a 99th percentile valid",
        )
    return replace(load, min_seconds=max(load.min_seconds, _BOUNDS_LONG * p99_ms / 1e3))


def _bound(settings: LoadSettings) -> float:
    assert settings.bound_ms is not None
    return settings.bound_ms
