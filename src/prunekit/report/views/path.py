"""The way there: quality over the cycles, recovery training, widths before and after."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.report.charts import (
    Line,
    Mark,
    Plot,
    Rule,
    Scale,
    describe_range,
    polyline,
    scale_over,
)
from prunekit.report.figures import (
    Figure,
    Metric,
    as_set,
    chosen,
    count,
    derived,
    measured,
    missing,
    percent,
    percent_text,
    removed,
    removed_share,
    significant,
)
from prunekit.report.reading import Cycle, Entry, RunRecord
from prunekit.report.views.decision import costs

LEARNT_FROM = {
    "logits": "the dense parent's outputs",
    "hidden": "its hidden states",
    "attention": "its attention maps",
    "task": "the labels",
}
"""The terms of a distillation, in words."""


@dataclass(frozen=True)
class CycleRow:
    """One cycle in numbers."""

    number: int
    target: Figure
    macs_removed: Figure
    params_removed: Figure
    before: Figure
    after: Figure
    epochs: Figure
    budget: Figure
    seconds: Figure


@dataclass(frozen=True)
class Cycles:
    """Quality over the cycles: a chart where there is something to draw, and the same as rows."""

    dense: Figure
    basis: str
    learnt_from: str
    rows: tuple[CycleRow, ...]
    plot: Plot | None


def cycles(run: RunRecord, metric: Metric) -> Cycles:
    """Show what every cycle removed, and the validation quality before and after its recovery."""
    dense = run.result("baseline").at("quality")
    n = dense.at("n").number
    rows = tuple(_cycle_row(run, cycle, metric) for cycle in run.cycles)
    basis = f"{dense.at('split').text or 'validation'} split" + (f", n = {n:,}" if n is not None else "")
    return Cycles(metric.level(dense.at("value"), n), basis, _learnt_from(run), rows, _curve(run, metric))


def _learnt_from(run: RunRecord) -> str:
    """What recovery learnt from, as a sentence; "" where nothing was trained."""
    trained = [
        cycle.recover for cycle in run.cycles if list(cycle.recover.at("training", "epochs").elements())
    ]
    if not trained:
        return ""
    weights = [
        (text, entry.number)
        for name, text in LEARNT_FROM.items()
        if (entry := trained[-1].at("distilled", name)).number
    ]
    if not weights:
        return "Recovery learnt from the labels."
    terms = ", ".join(f"{text} (weight {as_set(weight)})" for text, weight in weights if weight)
    return f"Recovery learnt from {terms}."


def _cycle_row(run: RunRecord, cycle: Cycle, metric: Metric) -> CycleRow:
    dense = costs(run).dense
    after = cycle.plan.at("after")
    log = list(cycle.recover.at("training", "epochs").elements())
    passes = log[-1].at("epoch") if log else cycle.recover.at("budget", "epochs")
    return CycleRow(
        number=cycle.number,
        target=percent(cycle.plan.at("target_remove")),
        macs_removed=removed(dense.at("macs"), after.at("macs")),
        params_removed=removed(dense.at("params"), after.at("params")),
        before=_quality(cycle.prune, metric),
        after=_quality(cycle.recover, metric),
        epochs=chosen(passes),
        budget=percent(cycle.recover.at("budget", "share_of_original")),
        seconds=measured(cycle.recover.at("training", "seconds"), "s"),
    )


def _quality(stage: Entry, metric: Metric) -> Figure:
    return metric.level(stage.at("quality", "value"), stage.at("quality", "n").number)


def _curve(run: RunRecord, metric: Metric) -> Plot | None:
    """Quality against the share of MACs removed, from the dense parent on."""
    dense = run.result("baseline").at("quality", "value").number
    macs = costs(run).dense.at("macs")
    before: list[tuple[float, Entry]] = []
    after: list[tuple[float, Entry]] = []
    for cycle in run.cycles:
        share = removed_share(macs, cycle.plan.at("after", "macs"))
        for stage, series in ((cycle.prune, before), (cycle.recover, after)):
            if share is not None and stage.at("quality", "value").number is not None:
                series.append((share, stage.at("quality")))
    points = [(share, _value(quality)) for share, quality in before + after]
    if not points:
        return None
    levels = [value for _, value in points]
    y = scale_over(levels, include=() if dense is None else (dense,))
    x = Scale(0.0, max(0.05, *(share for share, _ in points)) * 1.06)
    start = [] if dense is None else [(0.0, dense)]
    recovered = start + [(share, _value(quality)) for share, quality in after]
    factor, suffix = (100.0, "%") if metric.is_share else (1.0, "")
    falls = [
        Line(polyline([(share, _value(quality)), (share, _value(again))], x, y), "faint")
        for (share, quality), (other, again) in zip(before, after, strict=False)
        if share == other
    ]
    return Plot(
        title=f"Validation {metric.name} against the share of MACs removed",
        description=_curve_description(metric, before, after, dense),
        x_label="MACs removed",
        y_label=f"{metric.name}",
        x_ticks=x.ticks(5, factor=100, suffix="%"),
        y_ticks=y.ticks(4, factor=factor, suffix=suffix),
        lines=(*falls, Line(polyline(recovered, x, y), "solid")),
        marks=(
            *(_mark(share, quality, x, y, metric, "hollow") for share, quality in before),
            *(_mark(share, quality, x, y, metric, "pruned") for share, quality in after),
        ),
        rows=() if dense is None else (Rule(100 - y.at(dense), "", "dense"),),
        keys=(
            ("dense", "dense parent"),
            ("hollow", "pruned, before recovery"),
            ("pruned", "pruned, after recovery"),
        ),
    )


def _value(quality: Entry) -> float:
    return quality.at("value").number or 0.0


def _mark(share: float, quality: Entry, x: Scale, y: Scale, metric: Metric, style: str) -> Mark:
    level = metric.level(quality.at("value"), quality.at("n").number)
    label = f"{percent_text(share)} of MACs removed: {level.text} ({level.title})"
    return Mark(x.at(share), 100 - y.at(_value(quality)), label, style)


def _curve_description(
    metric: Metric,
    before: list[tuple[float, Entry]],
    after: list[tuple[float, Entry]],
    dense: float | None,
) -> str:
    def level(quality: Entry) -> str:
        return metric.level(quality.at("value"), quality.at("n").number).text

    parts = [] if dense is None else ["The dense parent is the line across."]
    if before:
        parts.append(f"Before recovery the last cycle has {level(before[-1][1])}.")
    if after:
        share, quality = after[-1]
        parts.append(f"After recovery, with {percent_text(share)} of MACs removed, {level(quality)}.")
    return " ".join(parts)


@dataclass(frozen=True)
class Epoch:
    """One line of a cycle's training log.

    Attributes:
        cycle: its cycle.
        place: epochs of recovery up to here, those of earlier cycles included.
        record: the line.
        kept: the model has the weights of this line.
    """

    cycle: int
    place: float
    record: Entry
    kept: bool


@dataclass(frozen=True)
class Series:
    """A column of the training log: its key, its style on the chart, and what it is called."""

    key: str
    style: str
    name: str


def training(run: RunRecord, metric: Metric) -> tuple[Plot, ...]:
    """Draw loss and validation quality over all epochs of recovery, the cycles one after the other."""
    every = _log(run)
    loss = _training_plot(
        every,
        title="Loss during recovery",
        y_label="loss",
        series=(
            Series("train_loss", "dashed", "training"),
            Series("validation_loss", "solid", "validation"),
        ),
    )
    quality = _training_plot(
        every,
        title=f"Validation {metric.name} during recovery",
        y_label=metric.name,
        series=(Series("validation_metric", "solid", "validation"),),
        in_percent=metric.is_share,
    )
    return tuple(plot for plot in (loss, quality) if plot)


def _log(run: RunRecord) -> list[Epoch]:
    """All lines of all cycles; the first line of a cycle is the model as pruning left it."""
    every: list[Epoch] = []
    offset = 0.0
    for cycle in run.cycles:
        best = cycle.recover.at("training", "best").number
        place = offset
        for i, record in enumerate(cycle.recover.at("training", "epochs").elements()):
            passes = record.at("epoch").number
            place = offset + (i if passes is None else max(0.0, passes))
            every.append(Epoch(cycle.number, place, record, best == i))
        offset = place
    return every


def _training_plot(
    every: list[Epoch], *, title: str, y_label: str, series: tuple[Series, ...], in_percent: bool = False
) -> Plot | None:
    found = {
        one.key: [(epoch, value) for epoch in every if (value := epoch.record.at(one.key).number) is not None]
        for one in series
    }
    levels = [value for points in found.values() for _, value in points]
    if not levels:
        return None
    x, y = Scale(0.0, max(every[-1].place, 1e-3) * 1.02), scale_over(levels)
    numbers = tuple(dict.fromkeys(epoch.cycle for epoch in every))
    lines: list[Line] = []
    marks: list[Mark] = []
    for one in series:
        for number in numbers:
            part = [(epoch.place, value) for epoch, value in found[one.key] if epoch.cycle == number]
            lines.append(Line(polyline(part, x, y), one.style))
        marks += [_epoch_mark(one, epoch, value, x, y) for epoch, value in found[one.key]]
    parts = [
        f"{one.name} from {describe_range([value for _, value in found[one.key]])}"
        for one in series
        if found[one.key]
    ]
    return Plot(
        title=title,
        description="; ".join(parts),
        x_label="epochs of recovery, all cycles one after the other",
        y_label=y_label,
        x_ticks=x.ticks(8, least=1.0 if x.high > 2 else 0.0),
        y_ticks=y.ticks(4, factor=100, suffix="%") if in_percent else y.ticks(4),
        lines=tuple(lines),
        marks=tuple(marks),
        columns=_cycle_columns(every, x) if len(numbers) > 1 else (),
        keys=(
            *((one.style, one.name) for one in series if len(series) > 1),
            *((("dot", "the weights that were kept"),) if any(epoch.kept for epoch in every) else ()),
        ),
    )


def _epoch_mark(one: Series, epoch: Epoch, value: float, x: Scale, y: Scale) -> Mark:
    kept = epoch.kept and one.style == "solid"
    label = f"cycle {epoch.cycle}, {one.name}: {significant(value, 4)} ({epoch.record.at(one.key).source})"
    return Mark(x.at(epoch.place), 100 - y.at(value), label, "pruned", 5.0 if kept else 2.2)


def _cycle_columns(every: list[Epoch], x: Scale) -> tuple[Rule, ...]:
    """A line where each cycle begins, named."""
    begins: dict[int, float] = {}
    for epoch in every:
        begins.setdefault(epoch.cycle, epoch.place)
    return tuple(Rule(x.at(place), f"cycle {number}", "cycle") for number, place in begins.items())


@dataclass(frozen=True)
class WidthRow:
    """One group: its width before and after; bars in percent of the widest group."""

    name: str
    granularity: str
    before: Figure
    after: Figure
    kept: Figure
    before_bar: float
    after_bar: float


def widths(run: RunRecord) -> tuple[WidthRow, ...]:
    """List every group's width before the first and after the last cycle, in the model's order."""
    groups = {entry.at("name").text: entry for entry in run.result("baseline").at("groups").elements()}
    before = {name: entry.at("size") for name, entry in groups.items()}
    after: dict[str, Entry] = {}
    for cycle in run.cycles:
        for name, pair in cycle.plan.at("widths").items():
            before.setdefault(name, pair.at(0))
            after[name] = pair.at(1)
    planned = bool(after)
    pairs = [(name, size, after.get(name, size)) for name, size in before.items() if size.number]
    widest = max((size.number or 0 for _, size, _ in pairs), default=1)
    return tuple(
        _width_row(name, groups.get(name), size, left, widest) for name, size, left in pairs if planned
    )


def _width_row(name: str, group: Entry | None, before: Entry, after: Entry, widest: float) -> WidthRow:
    share = removed_share(before, after)
    kept = missing(before, after)
    if share is not None:
        kept = derived(1 - share, percent_text(1 - share, 0), before, after)
    return WidthRow(
        name=name,
        granularity=group.at("granularity").text if group else "",
        before=count(before),
        after=count(after),
        kept=kept,
        before_bar=round(100 * (before.number or 0) / widest, 2),
        after_bar=round(100 * min(after.number or 0, before.number or 0) / widest, 2),
    )
