"""How a target is timed, and where what that takes is kept."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from prunekit.errors import MeasurementError

VARIANTS = 8
"""Whole models that the latency model is fitted to, beside the dense one."""

TIMED_SECONDS = 5.0
"""That timing a model beside the dense one takes at least."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How models are timed, and where what that takes is kept.

    Attributes:
        real_time: time with real-time scheduling where the process may
            (:func:`prunekit.measure.priority.real_time`), for machines that others use too.
        variants: pruned models that the latency model is fitted to, >= 1, beside the dense one.
        seconds: that timing one of these, or a plan for a goal of a time, beside the dense model takes at
            least, >= 0, in at most 4,000 pairs; what neighbours on the machine do to one model more than to
            another shows over seconds.
        folder: exists; exported models are put there and stay, and a second planner of the same model finds
            them again. Default a temporary one, which goes with the planner.
        tables: where times of operations are kept, one file for each target; default ``prunekit/tables`` in
            the user's cache.

    Raises:
        MeasurementError: fewer than one variant, or seconds below 0 or without end.
    """

    real_time: bool = False
    variants: int = VARIANTS
    seconds: float = TIMED_SECONDS
    folder: Path | str | None = None
    tables: Path | str | None = None

    def __post_init__(self) -> None:
        count = self.variants
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise MeasurementError(
                f"{count!r} whole models were asked for",
                expected="an integer of at least 1",
                where="variants",
            )
        length = self.seconds
        if isinstance(length, bool) or not isinstance(length, int | float) or not 0 <= length < math.inf:
            raise MeasurementError(
                f"{length!r} seconds for each measurement were asked for",
                expected="a number of at least 0",
                where="seconds",
            )

    def table(self, digest: str) -> Path:
        """The file with the times of operations on a target of this digest."""
        if self.tables is not None:
            return Path(self.tables) / f"{digest}.json"
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "prunekit" / "tables" / f"{digest}.json"
