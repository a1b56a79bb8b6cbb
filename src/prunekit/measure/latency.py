"""How much faster one model is than another, measured in pairs so that the machine's drift cancels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunekit.errors import MeasurementError
from prunekit.measure.collector import collector_resting
from prunekit.measure.intervals import CONFIDENCE, Times, interval_of_percentile
from prunekit.measure.runtimes import Runner, held
from prunekit.types import Speedup

Progress = Callable[[int, int], None]

MOST_PAIRS = 4000
"""That are timed to fill a time."""

STEADY = 0.05
"""Above this relative median absolute deviation of the speed-ups a measurement is called noisy."""

_WARMUP_SHARE = 0.2


@dataclass(frozen=True)
class Percentiles:
    """Times of one model, per call.

    Attributes:
        p50_ms: half of the calls were faster.
        p90_ms: nine of ten calls were faster.
        p99_ms: 99 of 100 calls were faster; the slowest call or close to it below 100 pairs.
        mean_ms: arithmetic mean.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float


@dataclass(frozen=True)
class Noise:
    """How far measurements of the same thing lie apart: median absolute deviations over the median.

    Attributes:
        dense: of the dense model's times.
        pruned: of the pruned model's times.
        speedup: of the paired speed-ups; the one that matters, since what slows both cancels in it.
        steady: ``speedup`` is at most :data:`STEADY`.
        statement: the same as a sentence.
    """

    dense: float
    pruned: float
    speedup: float
    steady: bool
    statement: str


@dataclass(frozen=True, eq=False)
class LatencyComparison:
    """Two models, timed in pairs.

    Attributes:
        dense: times of the dense model.
        pruned: times of the pruned model.
        speedup: paired.
        noise: how steady the machine was.
        warmup: untimed calls of each model beforehand.
        seconds: that timing took, warm-up included.
        stopped_early: fewer pairs than asked for, because the time was up.
        dense_ms: ``[pairs]`` float64, each call of the dense model.
        pruned_ms: ``[pairs]`` float64, each call of the pruned model.
        dense_first: ``[pairs]`` bool, which of the two went first.
    """

    dense: Percentiles
    pruned: Percentiles
    speedup: Speedup
    noise: Noise
    warmup: int
    seconds: float
    stopped_early: bool
    dense_ms: Times
    pruned_ms: Times
    dense_first: npt.NDArray[np.bool_]

    def summary(self) -> dict[str, Any]:
        """All but the raw times, as plain JSON."""
        return {
            "dense": asdict(self.dense),
            "pruned": asdict(self.pruned),
            "speedup": asdict(self.speedup),
            "noise": asdict(self.noise),
            "warmup": self.warmup,
            "seconds": self.seconds,
            "stopped_early": self.stopped_early,
        }

    def columns(self) -> dict[str, np.ndarray]:
        """The raw times as columns of a table, one row per pair."""
        return {
            "pair": np.arange(len(self.dense_ms)),
            "dense_ms": self.dense_ms,
            "pruned_ms": self.pruned_ms,
            "dense_first": self.dense_first,
        }


def compare_latency(
    dense: Runner,
    pruned: Runner,
    *,
    pairs: int = 200,
    warmup: int = 20,
    seed: int = 0,
    min_pairs: int = 20,
    min_seconds: float = 0.0,
    max_seconds: float = 120.0,
    progress: Progress | None = None,
) -> LatencyComparison:
    """Time two runners in pairs, one call of each, in an order drawn anew for every pair.

    Both are open at the same time and alternate, so whatever slows the machine for longer than one pair
    slows both; the garbage collector rests meanwhile. The speed-up is that of :func:`paired_speedup`.

    Args:
        dense: the parent.
        pruned: the model it is compared with.
        pairs: how many to time.
        warmup: untimed calls of each beforehand; fewer (at least one) where they would take more than a
            fifth of ``max_seconds``.
        seed: of the orders.
        min_pairs: timed even when the time is up.
        min_seconds: before which, after warm-up, timing goes on beyond ``pairs``, to :data:`MOST_PAIRS` at
            most: what drifts over seconds is only seen in seconds.
        max_seconds: after which no further pair is begun.
        progress: called with (pairs done, pairs asked for) between pairs.

    Raises:
        MeasurementError: fewer than two pairs, or a call too short for the clock.
    """
    if min(pairs, min_pairs) < 2 or warmup < 1:
        raise MeasurementError(
            f"{pairs} pairs, at least {min_pairs}, after {warmup} warm-up calls were asked for",
            expected="two pairs or more and one warm-up call or more",
        )
    rng = np.random.default_rng(seed)
    order = rng.random(max(pairs, MOST_PAIRS) if min_seconds > 0 else pairs) < 0.5
    with collector_resting(), held(dense, pruned):
        begin = time.perf_counter()
        warmed = _warm_up(dense, pruned, warmup, begin + _WARMUP_SHARE * max_seconds)
        length = _Length(pairs, min_pairs, time.perf_counter() + min_seconds, begin + max_seconds)
        times = _time_pairs(dense, pruned, order, length, progress)
        seconds = time.perf_counter() - begin
    if times.min() <= 0:
        raise MeasurementError(
            "A call took no time that the clock could see",
            expected="models that take a microsecond or more",
            remedy="Measure a larger batch",
        )
    done = times.shape[1]
    return _comparison(times, order[:done], warmed, round(seconds, 3), stopped_early=done < pairs)


def joined(first: LatencyComparison, second: LatencyComparison) -> LatencyComparison:
    """The pairs of two measurements of the same two models, one after the other, as one measurement.

    Whether there is to be a second one may depend on how noisy the first was, and not on how fast.
    """
    both = (first, second)
    times = np.concatenate([np.stack([each.dense_ms, each.pruned_ms]) for each in both], axis=1)
    return _comparison(
        times,
        np.concatenate([each.dense_first for each in both]),
        first.warmup + second.warmup,
        round(first.seconds + second.seconds, 3),
        stopped_early=second.stopped_early,
    )


def _comparison(
    times: Times, dense_first: npt.NDArray[np.bool_], warmup: int, seconds: float, *, stopped_early: bool
) -> LatencyComparison:
    """What ``[2, pairs]`` milliseconds come to: dense, pruned."""
    dense_ms, pruned_ms = times
    return LatencyComparison(
        dense=percentiles(dense_ms),
        pruned=percentiles(pruned_ms),
        speedup=paired_speedup(dense_ms, pruned_ms),
        noise=_noise(dense_ms, pruned_ms),
        warmup=warmup,
        seconds=seconds,
        stopped_early=stopped_early,
        dense_ms=dense_ms,
        pruned_ms=pruned_ms,
        dense_first=dense_first,
    )


def percentiles(times_ms: Times) -> Percentiles:
    """The usual figures of ``[n]`` times in milliseconds (linear interpolation between calls)."""
    p50, p90, p99 = np.quantile(times_ms, [0.5, 0.9, 0.99])
    return Percentiles(float(p50), float(p90), float(p99), float(times_ms.mean()))


def paired_speedup(dense_ms: Times, pruned_ms: Times, *, confidence: float = CONFIDENCE) -> Speedup:
    """Median of ``dense_ms / pruned_ms`` over pairs, with its interval.

    What slows both models of a pair alike cancels; neighbours on the machine slow one that waits for memory
    and one that computes differently, slowly over seconds, and that does not. So pairs that resemble their
    neighbours count for less (:func:`prunekit.measure.interval_of_percentile`). Drift slower than the
    measurement is not seen: time for seconds.

    With too few pairs for an end the interval goes to the least or the largest quotient: up to eight pairs,
    such as rounds of a load test, give their range, which of n independent ones holds the true median with
    ``1 - 2 ** (1 - n)``, so two pairs with one half.

    Args:
        dense_ms: ``[pairs]`` milliseconds, > 0, in the order in which they were measured.
        pruned_ms: ``[pairs]`` milliseconds, > 0, of the same pairs.
        confidence: in (0, 1).

    Source: as of :func:`prunekit.measure.interval_of_percentile`, at the 50th. Deviation: the range, where
    that has no end.
    """
    paired = dense_ms / pruned_ms
    found = interval_of_percentile(paired, 50.0, confidence=confidence)
    low = found.low if found.low > 0 else float(paired.min())
    high = found.high if math.isfinite(found.high) else float(paired.max())
    return Speedup(found.value, low, high, confidence, len(paired))


def _warm_up(dense: Runner, pruned: Runner, calls: int, until: float) -> int:
    for done in range(1, calls + 1):
        dense()
        pruned()
        if time.perf_counter() > until:
            return done
    return calls


@dataclass(frozen=True)
class _Length:
    """When there are pairs enough: as many as asked and as late as asked; sooner where the time is up."""

    pairs: int
    min_pairs: int
    not_before: float
    until: float

    def is_reached(self, done: int) -> bool:
        if done < min(self.pairs, self.min_pairs):
            return False
        now = time.perf_counter()
        return now > self.until or (done >= self.pairs and now >= self.not_before)


def _time_pairs(
    dense: Runner, pruned: Runner, order: np.ndarray, length: _Length, progress: Progress | None
) -> Times:
    """``[2, pairs done]`` milliseconds: dense, pruned."""
    times_ns = np.empty((2, len(order)), dtype=np.int64)
    clock, done = time.perf_counter_ns, 0
    for pair, dense_goes_first in enumerate(order.tolist()):
        first, second = (dense, pruned) if dense_goes_first else (pruned, dense)
        begin = clock()
        first()
        middle = clock()
        second()
        end = clock()
        spent = (middle - begin, end - middle)
        times_ns[:, pair] = spent if dense_goes_first else spent[::-1]
        done = pair + 1
        if progress is not None:
            progress(done, max(done, length.pairs))
        if length.is_reached(done):
            break
    return times_ns[:, :done] / 1e6


def _noise(dense_ms: Times, pruned_ms: Times) -> Noise:
    of_dense, of_pruned, of_pairs = map(_relative_deviation, (dense_ms, pruned_ms, dense_ms / pruned_ms))
    steady = of_pairs <= STEADY
    return Noise(
        dense=of_dense,
        pruned=of_pruned,
        speedup=of_pairs,
        steady=steady,
        statement=(
            f"Half of the pairs lie within {of_pairs:.1%} of the median speed-up; the machine was "
            + ("steady" if steady else "noisy, so measure again when it is idle")
        ),
    )


def _relative_deviation(values: Times) -> float:
    """Median absolute deviation over the median."""
    middle = np.median(values)
    return float(np.median(np.abs(values - middle)) / middle)
