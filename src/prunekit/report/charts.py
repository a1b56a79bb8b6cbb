"""Numbers -> places on a chart, in percent of its area; the templates draw them and know no numbers.

Lines live in a 100 x 100 box that is stretched to the area, so text keeps its size at every width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunekit.report.figures import significant

Floats = npt.NDArray[np.float64]
Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A value on an axis: ``at`` in percent, and how it is written."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point: place in percent from the top left, its label, CSS class and radius in px."""

    x: float
    y: float
    label: str
    style: str
    radius: float = 4.5


@dataclass(frozen=True)
class Line:
    """A line or, closed, an area: ``points`` as SVG writes them, and its CSS class."""

    points: str
    style: str


@dataclass(frozen=True)
class Rule:
    """A straight line across the chart at ``at`` percent, with a label.

    Attributes:
        row: how many lines of text the label lies below the top.
        start: where an upright line begins, in percent from the top.
        leftward: the label lies left of the line.
    """

    at: float
    text: str
    style: str
    row: int = 0
    start: float = 0.0
    leftward: bool = False


@dataclass(frozen=True)
class Plot:
    """A chart.

    Attributes:
        title: what it shows, its visible name.
        description: the same in a sentence with the main numbers, for those who don't see it.
        x_label: what runs to the right, with unit.
        y_label: what runs upwards, with unit; "" hides the axis.
        keys: what the styles mean: (style, meaning).
    """

    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...] = ()
    lines: tuple[Line, ...] = ()
    marks: tuple[Mark, ...] = ()
    columns: tuple[Rule, ...] = ()
    rows: tuple[Rule, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high``, mapped to 0 .. 100 percent."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the place of ``value`` in percent, kept inside the chart."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)

    def ticks(
        self, about: int = 5, *, factor: float = 1.0, suffix: str = "", least: float = 0.0
    ) -> tuple[Tick, ...]:
        """Return round values on the scale, at least ``least`` apart, written times ``factor``."""
        step = max(least, round_step((self.high - self.low) * factor / about))
        first = math.ceil(self.low * factor / step - 1e-9)
        last = math.floor(self.high * factor / step + 1e-9)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return tuple(
            Tick(self.at(i * step / factor), f"{i * step:.{decimals}f}".replace("-", "\u2212") + suffix)
            for i in range(first, last + 1)
        )


def round_step(step: float) -> float:
    """Return the 1, 2 or 5 times a power of ten that is nearest to ``step`` (> 0), as a proportion."""
    power = 10.0 ** math.floor(math.log10(step))
    return min((factor * power for factor in (1, 2, 5, 10)), key=lambda near: abs(math.log(near / step)))


def scale_over(values: Sequence[float], *, padding: float = 0.08, include: Sequence[float] = ()) -> Scale:
    """Return a scale over the values with some room on both sides; finite values only, at least one."""
    every = [*values, *include]
    low, high = min(every), max(every)
    room = (high - low) * padding or max(abs(high) * padding, 1e-9)
    return Scale(low - room, high + room)


def polyline(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """Return the points as SVG writes them, y upwards."""
    return " ".join(f"{x.at(a):g},{round(100 - y.at(b), 2):g}" for a, b in points)


def histogram(times: Floats, scale: Scale, bins: int) -> tuple[str, float]:
    """Return the outline of a histogram over ``scale``, and the share of times beyond its upper end.

    Heights are relative to the tallest bin, which fills 70 percent of the chart: labels stand above.
    """
    edges = np.linspace(scale.low, scale.high, bins + 1)
    counts, _ = np.histogram(times, bins=edges)
    heights = 70 * counts / max(1, int(counts.max()))
    points: list[Point] = [(0.0, 100.0)]
    for i, height in enumerate(heights):
        points += [(100 * i / bins, 100 - height), (100 * (i + 1) / bins, 100 - height)]
    points.append((100.0, 100.0))
    outline = " ".join(f"{a:.2f},{b:.2f}" for a, b in points)
    return outline, float(np.count_nonzero(times > scale.high)) / len(times)


def latency_axis(dense: Floats, pruned: Floats) -> Scale:
    """Return one axis for both: from 0, so that lengths compare, to just beyond the 99th percentiles."""
    top = max(float(np.percentile(times, 99)) for times in (dense, pruned))
    return Scale(0.0, max(top, 1e-9) * 1.08)


@dataclass(frozen=True)
class Whisker:
    """An interval in a table row: its ends and its point, in percent of the cell."""

    low: float
    high: float
    at: float


def whisker(low: float, high: float, at: float, scale: Scale) -> Whisker:
    """Return the place of an interval on a scale shared by all rows."""
    return Whisker(scale.at(low), scale.at(high), scale.at(at))


def describe_range(values: Sequence[float], unit: str = "") -> str:
    """Say from where to where values run, for chart descriptions."""
    return f"{significant(min(values))} to {significant(max(values))}{unit}"
