"""Numbers as they are shown: with a unit, with no more digits than are known, and with their source.

Measured quantities get three significant figures (whole numbers are never rounded to tens). A share of
examples gets one decimal in percent, two from 10,000 examples on. Counts and what the user set are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from prunekit.report.reading import Entry

SIGNIFICANT = 3
NOT_MEASURED = "not measured"
NARROW_SPACE = "\u202f"
MINUS = "\u2212"
TIMES = "\u00d7"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
QUALITY_NAMES = {"correct": "accuracy"}
"""What the evidence column that is the quality is called for readers; other columns keep their name."""


@dataclass(frozen=True)
class Figure:
    """One number on the page.

    Attributes:
        text: what is shown, unit included.
        raw: the number in full; "" where nothing was measured.
        source: where it stands in the run directory, or what it was worked out from.
    """

    text: str
    raw: str
    source: str

    @property
    def measured(self) -> bool:
        """Whether there is a number."""
        return bool(self.raw)

    @property
    def title(self) -> str:
        """The number in full and its source, for the reader who points at it."""
        return f"{self.raw} · {self.source}" if self.raw else self.source


def missing(*entries: Entry) -> Figure:
    """Say that a number was not measured."""
    return Figure(NOT_MEASURED, "", _sources(*entries))


def shown(entry: Entry, text: str) -> Figure:
    """Show a recorded number as ``text``."""
    return Figure(text, str(entry.value), entry.source)


def derived(value: float, text: str, *entries: Entry) -> Figure:
    """Show a number worked out from recorded ones."""
    return Figure(text, f"{value:.6g}", f"from {_sources(*entries)}")


def significant(value: float, digits: int = SIGNIFICANT) -> str:
    """Write a number with this many significant figures, whole numbers never rounded to tens.

    ``0.01234 -> 0.0123``, ``1.999 -> 2.00``, ``12345.6 -> 12,346``; below 0.001 with a power of ten.
    """
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if magnitude < -3 or magnitude > 14:
        return _scientific(f"{value:.{digits - 1}e}")
    return _minus(f"{value:,.{max(0, digits - 1 - magnitude)}f}")


def as_set(value: float) -> str:
    """Write a number that somebody chose as they may have written it: ``2``, ``0.05``, ``10⁻⁴``."""
    text = f"{value:.6g}"
    return _scientific(text).removeprefix(f"1 {TIMES} ") if "e" in text else _minus(text)


def signed(value: float, decimals: int) -> str:
    """Write a change with its sign; a zero has none."""
    text = f"{value:+,.{decimals}f}"
    return _minus(text) if float(text.replace(",", "")) else text.lstrip("+-")


def share_decimals(n: float | None) -> int:
    """Decimals of a percentage over ``n`` examples: two where one example moves it by 0.01 or less."""
    return 2 if n and n >= 10_000 else 1


def measured(entry: Entry, unit: str = "") -> Figure:
    """Show a measured quantity with three significant figures."""
    if entry.number is None:
        return _unusable(entry)
    return shown(entry, _with_unit(significant(entry.number), unit))


def chosen(entry: Entry, unit: str = "") -> Figure:
    """Show a number that somebody chose, such as a tolerance."""
    if entry.number is None:
        return _unusable(entry)
    return shown(entry, _with_unit(as_set(entry.number), unit))


def count(entry: Entry) -> Figure:
    """Show a count exactly, with separators."""
    if entry.number is None:
        return _unusable(entry)
    return shown(entry, f"{entry.number:,}")


def scaled(entry: Entry, unit: str = "") -> Figure:
    """Show a large count or number of bytes with a decimal prefix: ``12.3 M``, ``4.56 MB``."""
    if entry.number is None:
        return _unusable(entry)
    return shown(entry, scaled_text(entry.number, unit))


def scaled_text(value: float, unit: str = "") -> str:
    """Write a large number with three significant figures and a decimal prefix (k = 1000)."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor * 0.9995:
            return f"{significant(value / factor)}{NARROW_SPACE}{prefix}{unit}"
    return _with_unit(f"{value:,.0f}", unit)


def percent(entry: Entry, decimals: int = 1) -> Figure:
    """Show a share in [0, 1] as a percentage."""
    if entry.number is None:
        return _unusable(entry)
    return shown(entry, percent_text(entry.number, decimals))


def percent_text(value: float, decimals: int = 1) -> str:
    """Write a share in [0, 1] as a percentage."""
    return _minus(f"{100 * value:.{decimals}f}{NARROW_SPACE}%")


def removed(before: Entry, after: Entry) -> Figure:
    """Work out the share that is gone, ``1 - after / before``, as a percentage."""
    share = removed_share(before, after)
    return missing(before, after) if share is None else derived(share, percent_text(share), before, after)


def removed_share(before: Entry, after: Entry) -> float | None:
    """``1 - after / before``, or None where one of them is unknown or before is 0."""
    if before.number is None or after.number is None or before.number == 0:
        return None
    return 1 - after.number / before.number


def relative_change(before: Entry, after: Entry) -> Figure:
    """Work out ``after / before - 1`` as a signed percentage."""
    share = removed_share(before, after)
    if share is None:
        return missing(before, after)
    return derived(-share, f"{signed(-100 * share, 1)}{NARROW_SPACE}%", before, after)


def probability(entry: Entry) -> Figure:
    """Show a p-value with two significant figures, very small ones as a bound."""
    if entry.number is None:
        return _unusable(entry)
    return shown(entry, "< 0.001" if entry.number < 0.001 else significant(entry.number, 2))


@dataclass(frozen=True)
class Metric:
    """How the quality is written.

    Attributes:
        name: what readers call it.
        is_share: it is a share of examples, written in percent and its changes in points.
    """

    name: str
    is_share: bool

    @property
    def change_unit(self) -> str:
        """The unit of a change."""
        return "points" if self.is_share else self.name

    def level(self, entry: Entry, n: float | None) -> Figure:
        """Show a quality measured on ``n`` examples."""
        if entry.number is None:
            return _unusable(entry)
        return percent(entry, share_decimals(n)) if self.is_share else measured(entry)

    def change(self, entry: Entry, n: float | None) -> Figure:
        """Show a difference of two qualities measured on ``n`` examples, with its sign, without its unit."""
        return _unusable(entry) if entry.number is None else shown(entry, self.change_text(entry.number, n))

    def change_text(self, value: float, n: float | None) -> str:
        """Write a difference of two qualities, with its sign, without its unit."""
        if self.is_share:
            return signed(100 * value, share_decimals(n))
        return ("+" if value > 0 else "") + significant(value)


def metric_of(evaluation: Entry, baseline: Entry) -> Metric:
    """Find out what the quality is called and whether it is a share of examples."""
    column = evaluation.at("metric").text or baseline.at("quality", "metric").text or "quality"
    binary = evaluation.at("binary").flag
    return Metric(QUALITY_NAMES.get(column, column), column in QUALITY_NAMES if binary is None else binary)


def confidence(entry: Entry) -> str:
    """Say which interval: ``95 % interval `` or "" where it is not recorded."""
    return "" if entry.number is None else f"{100 * entry.number:.3g}{NARROW_SPACE}% interval "


def readable(moment: str) -> str:
    """Write an ISO 8601 moment as people do, in UTC; anything else as it is."""
    try:
        return datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return moment


def _unusable(entry: Entry) -> Figure:
    """Something that is not a finite number: nothing, or an infinite or not-a-number result."""
    if isinstance(entry.value, float) and not math.isfinite(entry.value):
        return Figure("not finite", str(entry.value), entry.source)
    return missing(entry)


def _scientific(text: str) -> str:
    """Write ``1.23e-05`` as people do, with a power of ten."""
    mantissa, _, exponent = text.partition("e")
    return f"{_minus(mantissa)} {TIMES} 10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def _with_unit(text: str, unit: str) -> str:
    if not unit:
        return text
    return f"{text}{unit}" if unit == TIMES else f"{text}{NARROW_SPACE}{unit}"


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


def _sources(*entries: Entry) -> str:
    return " and ".join(dict.fromkeys(entry.source for entry in entries))
