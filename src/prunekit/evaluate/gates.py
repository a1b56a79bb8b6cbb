"""Rules that a pruned model must meet to ship; each result is a value with a reason and its evidence.

A new gate is a frozen dataclass, a judging function and one row of ``GATES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from prunekit.errors import UsageError
from prunekit.evaluate.compare import Change, Comparison
from prunekit.evaluate.facts import EVALUATION, VALIDATION, Facts

By = Literal["interval", "point"]
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class MaxQualityDrop:
    """The quality over all examples may fall by at most ``limit``.

    Attributes:
        limit: in units of the metric, >= 0; 0.01 = one point of accuracy.
        by: ``interval``: even the pessimistic end of the interval is within the limit; ``point``: the
            estimate is.
    """

    limit: float
    by: By = "interval"

    def __post_init__(self) -> None:
        _check_number(
            self, self.limit, "a drop in units of the metric, 0 or more (0.01 = one point)", lambda x: x >= 0
        )
        _check_by(self, self.by)


@dataclass(frozen=True)
class MaxSliceDrop:
    """The quality of every class and slice may fall by at most ``limit``.

    Attributes:
        limit: in units of the metric, >= 0.
        by: as for :class:`MaxQualityDrop`; a small slice has a wide interval and fails by it.
        min_examples: slices with fewer examples are not judged, and the reason counts them; 0 = judge all.
    """

    limit: float
    by: By = "interval"
    min_examples: int = 0

    def __post_init__(self) -> None:
        _check_number(
            self, self.limit, "a drop in units of the metric, 0 or more (0.01 = one point)", lambda x: x >= 0
        )
        _check_by(self, self.by)
        _check_number(self, self.min_examples, "min_examples of 0 or more", lambda x: x >= 0)


@dataclass(frozen=True)
class MinSpeedup:
    """The measured speed-up, dense time over pruned time, is at least ``limit``.

    Attributes:
        limit: 2 = twice as fast; > 0.
        by: ``interval``: the low end of the interval reaches the limit; ``point``: the median does.
    """

    limit: float
    by: By = "interval"

    def __post_init__(self) -> None:
        _check_number(self, self.limit, "a speed-up above 0 (2 = twice as fast)", lambda x: x > 0)
        _check_by(self, self.by)


@dataclass(frozen=True)
class MaxLatencyMs:
    """The pruned model's latency is at most ``limit`` milliseconds.

    Attributes:
        limit: milliseconds, > 0.
        percentile: of the measured calls: 50, 90 or 99.
    """

    limit: float
    percentile: int = 50

    def __post_init__(self) -> None:
        _check_number(self, self.limit, "milliseconds above 0", lambda x: x > 0)
        _check_number(self, self.percentile, f"a percentile out of {PERCENTILES}", lambda x: x in PERCENTILES)


@dataclass(frozen=True)
class MaxSizeBytes:
    """The pruned model's exported file has at most ``limit`` bytes.

    Attributes:
        limit: bytes, > 0.
    """

    limit: int

    def __post_init__(self) -> None:
        _check_number(self, self.limit, "bytes above 0", lambda x: x > 0)


@dataclass(frozen=True)
class MinSizeReduction:
    """The exported file shrank by at least this fraction of the dense parent's.

    Attributes:
        limit: in [0, 1); 0.5 = half of the bytes are gone.
    """

    limit: float

    def __post_init__(self) -> None:
        _check_number(self, self.limit, "a fraction in [0, 1)", lambda x: 0 <= x < 1)


@dataclass(frozen=True)
class MaxMemoryBytes:
    """The pruned model's peak memory while it runs is at most ``limit`` bytes.

    Attributes:
        limit: bytes, > 0.
    """

    limit: int

    def __post_init__(self) -> None:
        _check_number(self, self.limit, "bytes above 0", lambda x: x > 0)


Gate = (
    MaxQualityDrop
    | MaxSliceDrop
    | MinSpeedup
    | MaxLatencyMs
    | MaxSizeBytes
    | MinSizeReduction
    | MaxMemoryBytes
)


@dataclass(frozen=True)
class GateResult:
    """What a gate found.

    Attributes:
        name: the kind of gate, its row in ``GATES``.
        passed: whether the model may ship as far as this gate goes.
        observed: what was compared with the limit; None = not measured.
        limit: the gate's limit.
        unit: of both: ``fraction``, the metric's name, ``x``, ``ms`` or ``bytes``.
        reason: one sentence with the numbers.
        evidence: where the number stands: ``file#key``, relative to the run directory.
    """

    name: str
    passed: bool
    observed: float | None
    limit: float
    unit: str
    reason: str
    evidence: str


@dataclass(frozen=True)
class Finding:
    """What a judging function says: a :class:`GateResult` without what the gate itself knows."""

    passed: bool
    observed: float | None
    unit: str
    reason: str
    evidence: str


@dataclass(frozen=True)
class GateKind:
    """One row of ``GATES``.

    Attributes:
        make: the gate's dataclass.
        judge: compares the gate's limit with the facts; changes nothing.
    """

    make: type[Any]
    judge: Callable[[Any, Facts], Finding]


def judge(gates: Sequence[Gate], facts: Facts) -> list[GateResult]:
    """Judge every gate; a gate whose fact was not measured fails.

    Args:
        gates: any of the kinds in ``GATES``.
        facts: what was evaluated and measured.

    Returns:
        One result per gate, in order.

    Raises:
        UsageError: something in ``gates`` is not a gate.
    """
    kinds = {kind.make: (name, kind.judge) for name, kind in GATES.items()}
    results = []
    for gate in gates:
        if type(gate) not in kinds:
            raise UsageError(f"{gate!r} is not a gate", expected=f"one of {', '.join(GATES)}")
        name, find = kinds[type(gate)]
        results.append(GateResult(name=name, limit=gate.limit, **vars(find(gate, facts))))
    return results


def make_gate(kind: str, **settings: Any) -> Gate:
    """Make a gate from its name in ``GATES`` and its settings, as a recipe gives them.

    Raises:
        UsageError: no such gate, no such setting, or a value out of range.
    """
    if kind not in GATES:
        raise UsageError(f"There is no gate {kind!r}", expected=f"one of {', '.join(GATES)}")
    make = GATES[kind].make
    try:
        return make(**settings)
    except TypeError as error:
        raise UsageError(
            f"The settings {settings} do not fit",
            expected=f"limit, and at most {', '.join(make.__dataclass_fields__)}",
            where=kind,
        ) from error


def _judge_quality_drop(gate: MaxQualityDrop, facts: Facts) -> Finding:
    key = f"{EVALUATION}#overall.{_end(gate.by)}"
    if facts.comparison is None:
        return _missing("fraction", "No evaluation was found", key)
    subject = f"Overall, {facts.comparison.metric}"
    return _drop(gate, facts.comparison, facts.comparison.overall, subject, key)


def _judge_slice_drop(gate: MaxSliceDrop, facts: Facts) -> Finding:
    comparison, key = facts.comparison, f"{EVALUATION}#slices"
    if comparison is None:
        return _missing("fraction", "No evaluation was found", key)
    if comparison.empty_slices and gate.min_examples == 0:
        empty = ", ".join(comparison.empty_slices)
        return _missing(_unit(comparison), f"No evaluated example is in {empty}", key)
    judged = [i for i, part in enumerate(comparison.slices) if part.n >= gate.min_examples]
    if not judged:
        return _missing(_unit(comparison), f"No slice has {gate.min_examples} examples or more", key)
    end = _end(gate.by)
    worst = min(judged, key=lambda i: getattr(comparison.slices[i], end))
    change = comparison.slices[worst]
    skipped = len(comparison.slices) - len(judged) + len(comparison.empty_slices)
    aside = f" ({skipped} with fewer than {gate.min_examples} examples not judged)" if skipped else ""
    few = ", too few to say much" if change.too_few else ""
    subject = f"{change.name} (n = {change.n}{few}), the worst of {len(judged)} slices{aside},"
    return _drop(gate, comparison, change, subject, f"{key}.{worst}.{end}")


def _judge_speedup(gate: MinSpeedup, facts: Facts) -> Finding:
    by_interval = gate.by == "interval"
    key = f"{VALIDATION}#latency.speedup.{'low' if by_interval else 'median'}"
    speedup = facts.speedup
    if speedup is None or not _known(observed := speedup.low if by_interval else speedup.median):
        return _missing("x", "No speed-up was measured", key)
    passed = observed >= gate.limit
    basis = f"the low end of its {speedup.confidence:.0%} interval, {observed:.3g}x," if by_interval else "it"
    reason = (
        f"The median speed-up over {speedup.pairs} pairs is {speedup.median:.3g}x; {basis} "
        f"{'reaches' if passed else 'is below'} the {gate.limit:.3g}x asked for."
    )
    return Finding(passed, observed, "x", reason, key)


def _judge_latency(gate: MaxLatencyMs, facts: Facts) -> Finding:
    percentile = f"p{gate.percentile}"
    observed = (facts.latency_ms or {}).get(percentile)
    key = f"{VALIDATION}#latency.pruned.{percentile}_ms"
    return _at_most(gate.limit, observed, "ms", f"The {percentile} latency of the pruned model", key)


def _judge_size(gate: MaxSizeBytes, facts: Facts) -> Finding:
    observed = facts.size.pruned if facts.size else None
    subject = "The size of the pruned model's exported file"
    return _at_most(gate.limit, observed, "bytes", subject, f"{VALIDATION}#size.pruned_bytes")


def _judge_size_reduction(gate: MinSizeReduction, facts: Facts) -> Finding:
    size, key = facts.size, f"{VALIDATION}#size"
    if size is None or size.dense <= 0:
        return _missing("fraction", "The sizes of the exported files were not measured", key)
    observed = 1 - size.pruned / size.dense
    passed = observed >= gate.limit
    reason = (
        f"The exported file went from {size.dense:,} to {size.pruned:,} bytes, "
        f"a reduction of {observed:.2%}, "
        f"which {'reaches' if passed else 'is below'} the {gate.limit:.2%} asked for."
    )
    return Finding(passed, observed, "fraction", reason, key)


def _judge_memory(gate: MaxMemoryBytes, facts: Facts) -> Finding:
    observed = facts.memory.pruned if facts.memory else None
    subject = "The peak memory of the pruned model"
    return _at_most(gate.limit, observed, "bytes", subject, f"{VALIDATION}#memory.pruned_bytes")


GATES: dict[str, GateKind] = {
    "max_quality_drop": GateKind(MaxQualityDrop, _judge_quality_drop),
    "max_slice_drop": GateKind(MaxSliceDrop, _judge_slice_drop),
    "min_speedup": GateKind(MinSpeedup, _judge_speedup),
    "max_latency_ms": GateKind(MaxLatencyMs, _judge_latency),
    "max_size_bytes": GateKind(MaxSizeBytes, _judge_size),
    "min_size_reduction": GateKind(MinSizeReduction, _judge_size_reduction),
    "max_memory_bytes": GateKind(MaxMemoryBytes, _judge_memory),
}


def _drop(
    gate: MaxQualityDrop | MaxSliceDrop, comparison: Comparison, change: Change, subject: str, key: str
) -> Finding:
    end = getattr(change, _end(gate.by))
    if not _known(end):
        return _missing(_unit(comparison), f"The change of {comparison.metric} is not a number", key)
    observed = -end + 0.0
    passed = observed <= gate.limit
    scale, points = (100, " points") if comparison.binary else (1, "")
    basis = (
        f"the pessimistic end of its {comparison.confidence:.0%} interval, {scale * end:+.3g}{points},"
        if gate.by == "interval"
        else "it"
    )
    reason = (
        f"{subject} changed by {scale * change.change:+.3g}{points} "
        f"({change.lost} lost, {change.gained} gained); {basis} is {'within' if passed else 'beyond'} "
        f"the drop of {scale * gate.limit:.3g}{points} allowed."
    )
    return Finding(passed, observed, _unit(comparison), reason, key)


def _at_most(limit: float, observed: float | None, unit: str, subject: str, key: str) -> Finding:
    if not _known(observed):
        return _missing(unit, f"{subject} was not measured", key)
    passed = observed <= limit
    figure = ",.0f" if unit == "bytes" else ".4g"
    verdict = f"{'within' if passed else 'above'} the limit of {limit:{figure}} {unit}"
    reason = f"{subject} is {observed:{figure}} {unit}, {verdict}."
    return Finding(passed, observed, unit, reason, key)


def _missing(unit: str, what: str, key: str) -> Finding:
    return Finding(False, None, unit, f"{what}, so this gate cannot pass.", key)


def _end(by: By) -> Literal["low", "change"]:
    return "low" if by == "interval" else "change"


def _unit(comparison: Comparison) -> str:
    return "fraction" if comparison.binary else comparison.metric


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _check_number(gate: Any, value: Any, expected: str, accept: Callable[[float], bool]) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and accept(value)):
        raise UsageError(f"{type(gate).__name__} was given {value!r}", expected=expected)


def _check_by(gate: Any, by: Any) -> None:
    if by not in ("interval", "point"):
        raise UsageError(f"{type(gate).__name__} was given by={by!r}", expected="'interval' or 'point'")
