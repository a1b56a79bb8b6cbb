"""What the user asked for, and when it counts as reached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeGuard, get_args

from prunekit.errors import GoalError

GoalKind = Literal["sparsity", "macs", "params"]
MeasuredKind = Literal[
    "speedup",
    "latency_ms",
    "throughput",
    "memory_bytes",
    "size_bytes",
    "kv_cache_bytes",
    "quality_drop",
]

GOAL_KINDS: dict[GoalKind, str] = {
    "sparsity": "prunable units",
    "macs": "multiply-accumulates of one example",
    "params": "parameters of the whole model",
}
"""What each kind of goal counts."""

MEASURED_KINDS: dict[MeasuredKind, str] = {
    "speedup": "times as fast as the dense model, at least",
    "latency_ms": "milliseconds of one call, at most",
    "throughput": "examples in a second, at least",
    "memory_bytes": "bytes of memory at the most while serving, at most",
    "size_bytes": "bytes of the exported model, at most",
    "kv_cache_bytes": "bytes of the caches of one call, at most",
    "quality_drop": "increase of the calibration loss, at most; the latency is made least",
}
"""What each kind of goal that a target decides is; see :mod:`prunekit.targeting`."""

KINDS: dict[str, str] = {**GOAL_KINDS, **MEASURED_KINDS}
"""All of them."""

assert set(GOAL_KINDS) == set(get_args(GoalKind))
assert set(MEASURED_KINDS) == set(get_args(MeasuredKind))


@dataclass(frozen=True)
class Goal:
    """How much is to go.

    Give exactly one of ``remove`` and ``reach``. A goal in ``macs`` or ``params``, and a global ``sparsity``,
    is reached when ``|left - asked| <= tolerance * asked``, where ``asked`` is the figure that should be
    left: ``reach``, or ``figure before * (1 - remove)``. A uniform ``sparsity`` is met by rounding in every
    group: see :func:`prunekit.plan.allocate`.

    Attributes:
        kind: ``sparsity`` (of the prunable units), ``macs`` or ``params`` (of the whole model, frozen parts
            included).
        remove: fraction removed, in ``[0, 1)``; 0 removes nothing.
        reach: the figure to be left, > 0; for ``macs`` and ``params`` a whole number, and the figure to reach
            of a kind in :data:`MEASURED_KINDS`, which only a target decides
            (:func:`prunekit.targeting.measure_target`); a ``speedup`` is at least 1.
        tolerance: how far the figure may lie from the asked one, relative to the asked one, in ``[0, 1)``.
        percentile: of ``latency_ms``, in (0, 100); None = the median.

    Raises:
        GoalError: a value outside these ranges.
    """

    kind: GoalKind | MeasuredKind
    remove: float | None = None
    reach: float | None = None
    tolerance: float = 0.02
    percentile: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise GoalError(f"The goal is '{self.kind}'", expected=f"one of {list(KINDS)}", where="kind")
        if self.is_measured and self.remove is not None:
            raise GoalError(
                f"The goal '{self.kind}' is to remove {self.remove}",
                expected="reach, a figure",
                where="remove",
            )
        if self.percentile is not None:
            self._check_percentile(self.percentile)
        if (self.remove is None) == (self.reach is None):
            raise GoalError(
                f"The goal '{self.kind}' has remove={self.remove} and reach={self.reach}",
                expected="exactly one of them",
            )
        if self.remove is not None and not _is_share(self.remove):
            raise GoalError(
                f"The fraction of {self.kind} to remove is {self.remove!r}",
                expected="a number from 0 (remove nothing) to below 1",
                where="remove",
            )
        if self.remove is not None:  # a NumPy number would not go into JSON
            object.__setattr__(self, "remove", float(self.remove))
        if self.reach is not None:
            self._check_reach(self.reach)
            if not isinstance(self.reach, int | float):
                object.__setattr__(self, "reach", float(self.reach))
        if not _is_share(self.tolerance):
            raise GoalError(
                f"The tolerance is {self.tolerance!r}",
                expected="a number from 0 to below 1",
                where="tolerance",
            )

    @property
    def is_measured(self) -> bool:
        """Whether only a target can say if it is reached."""
        return self.kind in MEASURED_KINDS

    def _check_percentile(self, percentile: float) -> None:
        if self.kind != "latency_ms" or not (_is_number(percentile) and 0 < percentile < 100):
            raise GoalError(
                f"The percentile of the goal '{self.kind}' is {percentile!r}",
                expected="a number above 0 and below 100, for latency_ms alone",
                where="percentile",
            )

    def _check_reach(self, reach: float) -> None:
        if self.kind == "sparsity":
            raise GoalError(
                "A sparsity was given as an absolute figure", expected="remove, a fraction", where="reach"
            )
        if self.is_measured:
            if not _is_number(reach) or not 0 < reach < math.inf:
                raise GoalError(
                    f"The {self.kind} to reach is {reach!r}", expected="a number above 0", where="reach"
                )
            if self.kind == "speedup" and reach < 1:
                raise GoalError(
                    f"The speedup to reach is {reach!r}, slower than the dense model",
                    expected="1 or more: 2 is twice as fast",
                    where="reach",
                )
        elif isinstance(reach, bool) or not isinstance(reach, int) or reach <= 0:
            raise GoalError(
                f"The {self.kind} to reach are {reach!r}", expected="an integer above 0", where="reach"
            )

    @property
    def removes_nothing(self) -> bool:
        """Whether the goal is 0."""
        return self.remove == 0

    def asked(self, before: int) -> int:
        """Return the figure that should be left of ``before``, a half rounded up (nothing too much goes)."""
        assert not self.is_measured
        if self.reach is not None:
            return int(self.reach)
        assert self.remove is not None
        return math.floor(round(before * (1 - self.remove), 6) + 0.5)

    def is_reached(self, left: int, asked: int) -> bool:
        """Say whether ``left`` is within the tolerance of ``asked``."""
        return abs(left - asked) <= self.tolerance * asked

    def __str__(self) -> str:
        if self.reach is not None:
            at = f" at the {self.percentile:g}th percentile" if self.percentile is not None else ""
            return f"{self.reach:,} {self.kind}{at}"
        return (
            f"sparsity {self.remove:g}" if self.kind == "sparsity" else f"{self.remove:g} fewer {self.kind}"
        )


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= float(value) < 1


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)
