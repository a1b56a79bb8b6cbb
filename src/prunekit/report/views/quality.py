"""Where quality changed: per class and slice with intervals, and which examples flipped."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.report.charts import Scale, Tick, Whisker, scale_over, whisker
from prunekit.report.figures import Figure, Metric, confidence, count, probability
from prunekit.report.reading import Entry, RunRecord

SHOWN_AT_FIRST = 40
"""Rows that are open; the others can be opened, and are printed."""


@dataclass(frozen=True)
class SliceRow:
    """One class or slice, dense against pruned.

    Attributes:
        mood: ``worse`` where the whole interval lies below 0, ``better`` where it lies above, else ``even``.
    """

    name: str
    kind: str
    n: Figure
    dense: Figure
    pruned: Figure
    change: Figure
    low: Figure
    high: Figure
    too_few: bool
    mood: str
    whisker: Whisker | None


@dataclass(frozen=True)
class Slices:
    """All classes and slices, the worst first, on one scale.

    Attributes:
        limit: where the drop that a gate allows lies on the scale; None without such a gate.
        ticks: of the scale.
        shipped: what was evaluated in the place of the pruned model; "" where it was the pruned model itself.
    """

    overall: SliceRow | None
    rows: tuple[SliceRow, ...]
    ticks: tuple[Tick, ...]
    zero: float
    limit: float | None
    limit_text: str
    interval: str
    empty: tuple[str, ...]
    note: str
    shipped: str

    @property
    def first_rows(self) -> tuple[SliceRow, ...]:
        """The worst ones."""
        return self.rows[:SHOWN_AT_FIRST]

    @property
    def other_rows(self) -> tuple[SliceRow, ...]:
        """The rest."""
        return self.rows[SHOWN_AT_FIRST:]


@dataclass(frozen=True)
class FlipCounts:
    """Examples that the two models treat differently."""

    n: Figure
    lost: Figure
    gained: Figure
    prediction_changed: Figure
    p_value: Figure
    test: str


def slices(run: RunRecord, metric: Metric) -> Slices:
    """List the changes of every class and slice, the worst first."""
    evaluation = run.result("evaluate")
    entries = sorted(evaluation.at("slices").elements(), key=_badness)
    overall = evaluation.at("overall")
    limit = _slice_limit(run)
    scale = _scale([*entries, overall], limit)
    rows = tuple(_row(entry, metric, scale) for entry in entries)
    factor = 100.0 if metric.is_share else 1.0
    return Slices(
        overall=_row(overall, metric, scale) if overall.known else None,
        rows=rows,
        ticks=scale.ticks(5, factor=factor),
        zero=scale.at(0.0),
        limit=None if limit is None else scale.at(-limit),
        limit_text="" if limit is None else f"{metric.change_text(-limit, None)} {metric.change_unit}",
        interval=confidence(evaluation.at("confidence")).strip(),
        empty=tuple(entry.text for entry in evaluation.at("empty_slices").elements()),
        note=evaluation.at("note").text,
        shipped=evaluation.at("shipped", "statement").text,
    )


def flips(run: RunRecord) -> FlipCounts | None:
    """Count the examples that were lost and gained; None where nothing was evaluated."""
    entry = run.result("evaluate").at("flips")
    if not entry.known:
        return None
    return FlipCounts(
        n=count(entry.at("n")),
        lost=count(entry.at("lost")),
        gained=count(entry.at("gained")),
        prediction_changed=count(entry.at("prediction_changed")),
        p_value=probability(entry.at("p_value")),
        test=entry.at("test").text or "exact McNemar",
    )


def _badness(entry: Entry) -> tuple[float, float]:
    change, low = entry.at("change").number, entry.at("low").number
    return (float("inf") if change is None else change, float("inf") if low is None else low)


def _slice_limit(run: RunRecord) -> float | None:
    """The drop that a gate allows the worst slice."""
    gates = run.result("gate").at("gates").elements()
    limits = [gate.at("limit").number for gate in gates if gate.at("name").text == "max_slice_drop"]
    return next((limit for limit in limits if limit is not None), None)


def _scale(entries: list[Entry], limit: float | None) -> Scale:
    values = [
        value
        for entry in entries
        for key in ("low", "change", "high")
        if (value := entry.at(key).number) is not None
    ]
    return scale_over([*values, 0.0], padding=0.06, include=() if limit is None else (-limit,))


def _row(entry: Entry, metric: Metric, scale: Scale) -> SliceRow:
    kind, full = entry.at("kind").text, entry.at("name").text
    n = entry.at("n").number
    low, high, change = (entry.at(key).number for key in ("low", "high", "change"))
    return SliceRow(
        name=(full.removeprefix(f"{kind}:") if kind else full) or "unnamed",
        kind=kind,
        n=count(entry.at("n")),
        dense=metric.level(entry.at("dense"), n),
        pruned=metric.level(entry.at("pruned"), n),
        change=metric.change(entry.at("change"), n),
        low=metric.change(entry.at("low"), n),
        high=metric.change(entry.at("high"), n),
        too_few=entry.at("too_few").flag is True,
        mood=_mood(low, high),
        whisker=None if low is None or high is None or change is None else whisker(low, high, change, scale),
    )


def _mood(low: float | None, high: float | None) -> str:
    if high is not None and high < 0:
        return "worse"
    if low is not None and low > 0:
        return "better"
    return "even"
