"""One test under the LoadGen protocol: MLCommons' load generator asks, a runner answers."""

from __future__ import annotations

import importlib.metadata
import math
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure.answering import Answering, AtOnce, Queued, Queueing
from prunekit.measure.batches import Batches, failed
from prunekit.measure.collector import collector_resting
from prunekit.measure.loadlog import LoadLatency, Verdict, read_verdict
from prunekit.measure.runtimes import Runner
from prunekit.measure.standing import begin

Scenario = Literal["single_stream", "multi_stream", "server", "offline"]

SCENARIOS: Mapping[Scenario, str] = {
    "single_stream": "SingleStream",
    "multi_stream": "MultiStream",
    "server": "Server",
    "offline": "Offline",
}
"""Our names of the scenarios -> LoadGen's."""

PACKAGE = "mlcommons_loadgen"
LIBRARY_SAMPLES = 1024
"""Samples in LoadGen's library; all are the same inputs here, so the number changes nothing."""

_TIMED_SECONDS = 0.1
_OUTSTANDING_SECONDS = 1.0
_OUTSTANDING_BOUNDS = 4.0
_MORE_QUERIES = 2.0
_MORE_SAMPLES = 1.3
_LONGEST_PLAN = 5_000_000

_one_at_a_time = threading.Lock()
"""LoadGen keeps its state in the process: tests run one after another."""


@dataclass(frozen=True)
class LoadSettings:
    """One load.

    Attributes:
        scenario: one of :data:`SCENARIOS`.
        target_qps: requests per second on average (Poisson arrivals); Server only, and required there.
        bound_ms: the latency that ``percentile`` of the answers must keep; Server only, required there.
        percentile: of the latency, in (0, 1); LoadGen judges and stops by it.
        min_seconds: the test lasts at least this long.
        min_queries: and has at least this many queries.
        samples_per_query: MultiStream only.
        max_batch: samples of one call of the model; None = the batch of the runner's inputs. More than
            that, or fewer samples without padding, need a model whose batch is open.
        max_wait_ms: Server only: how long a call waits for its batch to fill.
        seed: of the arrivals.
    """

    scenario: Scenario
    target_qps: float | None = None
    bound_ms: float | None = None
    percentile: float = 0.99
    min_seconds: float = 5.0
    min_queries: int = 1000
    samples_per_query: int = 8
    max_batch: int | None = None
    max_wait_ms: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class LoadResult:
    """What one test found.

    Attributes:
        model: the runner's name.
        settings: the load.
        valid: LoadGen's own verdict under these settings.
        reasons: LoadGen's own words where it is not valid.
        latency: of a sample; of a whole query in MultiStream. In Offline every sample is due at the start, so
            it says when samples were done and nothing about how long one takes.
        per_second: samples per second. Server: completed; Offline: LoadGen's figure; the streams: samples of
            a query over the mean latency.
        queries: issued by LoadGen.
        issued: samples that LoadGen asked for.
        answered: samples that were answered; equal to ``issued``.
        calls: of the model; fewer than samples where batches were formed.
        served: samples that the model ran on; fewer than answered only where the test was cut short.
        late: of those, answered later than the bound, by our own clock; 0 where there is no bound.
        cut_short: ended early because so many answers were late that the bound could no longer be kept;
            its latencies then mean nothing.
        version: of LoadGen.
    """

    model: str
    settings: LoadSettings
    valid: bool
    reasons: tuple[str, ...]
    latency: LoadLatency
    per_second: float
    queries: int
    issued: int
    answered: int
    calls: int
    served: int
    late: int
    cut_short: bool
    version: str


def run_load(model: Runner | Batches, settings: LoadSettings, *, give_up: bool = False) -> LoadResult:
    """Run one test under the LoadGen protocol.

    The arrivals, the clock, the percentiles and the verdict are LoadGen's; the latency of a Server sample
    counts from the moment LoadGen scheduled it, so waiting in the queue is in it. LoadGen runs on a thread of
    its own and the garbage collector rests meanwhile.

    This is not an audited benchmark result and must not be called one: durations, query counts and inputs
    are the caller's.

    Args:
        model: a runner, or its batches where several tests share their warm-up.
        settings: the load.
        give_up: end a Server test as soon as more answers are late than the percentile allows.

    Raises:
        MeasurementError: settings that cannot be, LoadGen is not installed, or the model failed.
        KeyboardInterrupt: after LoadGen has ended, which takes a moment.
    """
    check_settings(settings)
    loadgen = load_loadgen()
    batches = model if isinstance(model, Batches) else Batches(model, settings.max_batch)
    _check_sizes(batches, settings)
    planned = _plan(loadgen, settings, batches)

    def complete(identities: Sequence[int]) -> None:
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(one, 0, 0) for one in identities])

    with _one_at_a_time, tempfile.TemporaryDirectory(prefix="prunekit-load-") as directory:
        answering = _answering(batches, complete, settings, give_up)
        _start(loadgen, planned, answering, Path(directory))
        tally = answering.tally
        if tally.failure is not None:
            raise failed(batches.runner, tally.failure) from tally.failure
        verdict = read_verdict(Path(directory), settings.scenario)
    return LoadResult(
        model=batches.runner.name,
        settings=settings,
        valid=verdict.valid,
        reasons=verdict.reasons,
        latency=verdict.latency,
        per_second=_per_second(verdict, settings),
        queries=verdict.queries,
        issued=tally.issued,
        answered=tally.answered,
        calls=tally.calls,
        served=tally.served,
        late=tally.late,
        cut_short=tally.stopped,
        version=importlib.metadata.version(PACKAGE),
    )


def load_loadgen() -> ModuleType:
    """The module of MLCommons' LoadGen.

    Raises:
        MeasurementError: it is not installed.
    """
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise MeasurementError(
            f"The LoadGen protocol needs the package mlcommons-loadgen: {error}",
            remedy='Install it: pip install "prunekit[loadgen]"',
        ) from error
    return mlperf_loadgen


def least_queries(percentile: float) -> int:
    """The fewest queries after which LoadGen can call a Server test successful.

    With none of ``n`` answers late it asks for ``percentile ** n <= 1 - 0.99``: were ``1 - percentile`` of
    the answers late in the long run, no late one among ``n`` would be an event of 1 % or less.

    Source: MLCommons, LoadGen 6.0, ``early_stopping.cc`` and ``results.cc`` (confidence 0.99, tolerance 0),
    https://github.com/mlcommons/inference/tree/master/loadgen. Deviation: the closed form for no late answer.
    """
    return math.ceil(math.log(1 - 0.99) / math.log(percentile))


def check_settings(settings: LoadSettings) -> None:
    """Refuse a load that cannot be.

    Raises:
        MeasurementError: says which value and what it may be.
    """
    if settings.scenario not in SCENARIOS:
        raise MeasurementError(
            f"The scenario {settings.scenario!r} was asked for", expected=f"one of {', '.join(SCENARIOS)}"
        )
    wanted: list[tuple[str, float | None, bool, str]] = [
        ("percentile", settings.percentile, 0 < settings.percentile < 1, "a number between 0 and 1"),
        ("min_seconds", settings.min_seconds, 0.001 <= settings.min_seconds < math.inf, "0.001 or more"),
        ("min_queries", settings.min_queries, settings.min_queries >= 1, "1 or more"),
        ("samples_per_query", settings.samples_per_query, settings.samples_per_query >= 1, "1 or more"),
        ("max_wait_ms", settings.max_wait_ms, 0 <= settings.max_wait_ms < math.inf, "0 or more"),
        ("seed", settings.seed, settings.seed >= 0, "0 or more"),
    ]
    for name in ("target_qps", "bound_ms"):
        value = getattr(settings, name)
        if settings.scenario == "server":
            wanted.append((name, value, value is not None and 0 < value < math.inf, "a number above 0"))
        else:
            wanted.append((name, value, value is None, "nothing: only the server scenario has one"))
    for name, value, fits, expected in wanted:
        if not fits:
            raise MeasurementError(f"{name} is {value}", expected=expected, where=settings.scenario)


def _check_sizes(batches: Batches, settings: LoadSettings) -> None:
    """One sample at a time is one call of one sample, not a padded one."""
    alone = settings.scenario in ("single_stream", "server")
    if alone and batches.own > 1 and not batches.open:
        raise MeasurementError(
            f"Its inputs hold {batches.own} samples, and {settings.scenario} sends one at a time",
            expected="inputs of one sample",
            where=batches.runner.name,
            remedy="Open the model on one sample, or set max_batch where its batch is open",
        )


def _answering(batches: Batches, complete: Any, settings: LoadSettings, give_up: bool) -> Answering:
    if settings.scenario != "server":
        return AtOnce(batches, complete)
    assert settings.bound_ms is not None
    assert settings.target_qps is not None
    # Poisson arrivals: the test may get more queries than planned, by far less than a half and a hundred.
    most = 1.5 * max(settings.min_queries, settings.target_qps * settings.min_seconds) + 100
    queueing = Queueing(settings.max_wait_ms / 1e3, settings.bound_ms / 1e3)
    if give_up:
        most_late, waiting = (1 - settings.percentile) * most, _most_waiting(settings, batches)
        queueing = replace(queueing, most_late=most_late, most_waiting=waiting)
    return Queued(batches, complete, queueing)


def _most_waiting(settings: LoadSettings, batches: Batches) -> int:
    """LoadGen ends a Server test with more samples outstanding: the queue grows without end."""
    assert settings.bound_ms is not None
    assert settings.target_qps is not None
    seconds = max(_OUTSTANDING_SECONDS, _OUTSTANDING_BOUNDS * settings.bound_ms / 1e3)
    return math.ceil(settings.target_qps * seconds) + 4 * batches.largest


def _plan(loadgen: ModuleType, settings: LoadSettings, batches: Batches) -> Any:
    """LoadGen's own settings.

    It makes all queries before the test starts, from the rate it is told to expect; the streams and Offline
    are told more than was measured, since they would end too soon on a machine that became faster.
    """
    test = loadgen.TestSettings()
    test.scenario = getattr(loadgen.TestScenario, SCENARIOS[settings.scenario])
    test.mode = loadgen.TestMode.PerformanceOnly
    test.min_duration_ms = math.ceil(settings.min_seconds * 1e3)
    test.min_query_count = settings.min_queries
    seeds = np.random.SeedSequence(settings.seed).generate_state(3, np.uint64)
    test.qsl_rng_seed, test.sample_index_rng_seed, test.schedule_rng_seed = map(int, seeds)
    per_second = 0.0
    if settings.scenario == "server":
        assert settings.target_qps is not None
        assert settings.bound_ms is not None
        test.server_target_qps = per_second = settings.target_qps
        test.server_target_latency_ns = round(settings.bound_ms * 1e6)
        test.server_target_latency_percentile = settings.percentile
        test.server_max_async_queries = _most_waiting(settings, batches)
    elif settings.scenario == "offline":
        per_second = _MORE_SAMPLES * batches.largest / _seconds(batches, batches.largest)
        test.offline_expected_qps = per_second
        test.min_query_count = 1  # One query holds all samples.
    else:
        stream = settings.scenario.removesuffix("_stream")
        samples = settings.samples_per_query if stream == "multi" else 1
        expected = _seconds(batches, samples) / _MORE_QUERIES
        per_second = 1 / expected
        setattr(test, f"{stream}_stream_expected_latency_ns", max(1, round(expected * 1e9)))
        setattr(test, f"{stream}_stream_target_latency_percentile", settings.percentile)
        test.multi_stream_samples_per_query = settings.samples_per_query
    queries = max(per_second * settings.min_seconds, settings.min_queries)
    if queries > _LONGEST_PLAN:
        raise MeasurementError(
            f"{queries:.3g} queries would have to be planned",
            expected=f"{_LONGEST_PLAN:,} or fewer",
            remedy="Ask for a shorter test, or a lower rate",
        )
    return test


def _seconds(batches: Batches, samples: int) -> float:
    try:
        return batches.call_ms(samples, seconds=_TIMED_SECONDS) / 1e3
    except Exception as error:
        raise failed(batches.runner, error) from error


def _start(loadgen: ModuleType, test: Any, answering: Answering, directory: Path) -> None:
    """Run the test on another thread, so that Ctrl-C arrives here and not inside of a callback."""
    log = loadgen.LogSettings()
    log.enable_trace = False
    log.log_output.outdir = str(directory)
    # No such file: without it, LoadGen would obey an audit.config of the current folder.
    absent = str(directory / "no-audit.config")

    def drive() -> None:
        try:
            asked = loadgen.ConstructSUT(answering.issue, answering.flush)
            library = loadgen.ConstructQSL(
                LIBRARY_SAMPLES, LIBRARY_SAMPLES, lambda _samples: None, lambda _samples: None
            )
            loadgen.StartTestWithLogSettings(asked, library, test, log, absent)
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(asked)
        finally:
            answering.close()

    with collector_resting():
        broken = _ended(begin("prunekit-loadgen", drive), answering)
    if broken is not None:
        raise MeasurementError(f"LoadGen failed: {broken}") from broken


def _ended(test: Future[None], answering: Answering) -> BaseException | None:
    """Wait for the end, and give what it raised; Ctrl-C stops the test and comes out once it has ended."""
    try:
        return test.exception()
    except BaseException:  # What a signal's handler raises here, whatever that is.
        answering.stop()
        test.exception()
        raise


def _per_second(verdict: Verdict, settings: LoadSettings) -> float:
    if verdict.per_second is not None:
        return verdict.per_second
    samples = settings.samples_per_query if settings.scenario == "multi_stream" else 1
    return samples * 1e3 / verdict.latency.mean_ms
