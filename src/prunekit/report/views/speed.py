"""How fast: the distributions of both latencies on one axis."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.report.charts import (
    Line,
    Plot,
    Rule,
    Scale,
    histogram,
    latency_axis,
)
from prunekit.report.figures import measured, percent_text
from prunekit.report.reading import Entry, LatencyTimes, RunRecord

PERCENTILES = ("p50", "p90", "p99")
FEWEST_BINS, MOST_BINS = 24, 96
RIGHT_SIDE = 62.0
"""Percent of the axis beyond which labels stand left of their line."""


@dataclass(frozen=True)
class Latency:
    """The latency charts, one per model, and what was measured.

    Attributes:
        setting: runtime, threads and batch, in words.
        noise: how steady the machine was, and whether fewer pairs were timed than asked for, in words.
        beyond: what lies beyond the end of the axis, in words; "" if nothing does.
        source: the file of the raw times.
    """

    plots: tuple[Plot, ...]
    setting: str
    noise: str
    beyond: str
    source: str


def latency(run: RunRecord) -> Latency | None:
    """Draw both distributions on the same axis, with p50, p90 and p99; None without raw times."""
    times = run.latency
    if times is None:
        return None
    recorded = run.result("validate").at("latency")
    scale = latency_axis(times.dense_ms, times.pruned_ms)
    bins = _bins(times, scale)
    plots, beyond = [], []
    for side, values in (("dense", times.dense_ms), ("pruned", times.pruned_ms)):
        outline, share = histogram(values, scale, bins)
        rules = _percentiles(recorded.at(side), scale, side)
        if share:
            beyond.append(f"{percent_text(share)} of the {side} calls")
        plots.append(
            Plot(
                title="Dense parent" if side == "dense" else "Pruned model",
                description=f"{len(values):,} timed calls; "
                + (", ".join(rule.text for rule in rules) or "no percentiles recorded"),
                x_label="milliseconds per call",
                y_label="",
                x_ticks=scale.ticks(6),
                lines=(Line(outline, f"area {side}"),),
                columns=tuple(rules),
            )
        )
    return Latency(
        plots=tuple(plots),
        setting=setting(run),
        noise=_noise(recorded),
        beyond=f"Beyond the right end of the axis: {' and '.join(beyond)}." if beyond else "",
        source=times.source,
    )


def setting(run: RunRecord) -> str:
    """Say on what runtime, in what precision, with how many threads and what batch, latency was measured."""
    entry = run.result("validate").at("latency")
    threads, batch = entry.at("threads").number, entry.at("batch").number
    parts = [
        entry.at("runtime").text,
        entry.at("precision").text,
        "" if threads is None else f"{threads:g} thread{'' if threads == 1 else 's'}",
        "" if batch is None else f"batch {batch:g}",
        processor(run.result("validate").at("environment")),
    ]
    return ", ".join(part for part in parts if part)


def processor(environment: Entry) -> str:
    """Name the processor, where it is recorded."""
    return environment.at("cpu", "model").text


def _noise(recorded: Entry) -> str:
    parts = [recorded.at("noise", "statement").text.rstrip(".")]
    if recorded.at("stopped_early").flag:
        parts.append("Fewer pairs were timed than asked for, because the time was up")
    return " ".join(f"{part}." for part in parts if part)


def _bins(times: LatencyTimes, scale: Scale) -> int:
    """Bins of a width (Freedman-Diaconis, the narrower of both models) that shows the shape of both."""
    widths = []
    for values in (times.dense_ms, times.pruned_ms):
        ordered = sorted(values)
        spread = ordered[(3 * len(ordered)) // 4] - ordered[len(ordered) // 4]
        if spread > 0:
            widths.append(2 * spread / len(ordered) ** (1 / 3))
    wanted = (scale.high - scale.low) / min(widths) if widths else FEWEST_BINS
    return int(min(MOST_BINS, max(FEWEST_BINS, wanted)))


def _percentiles(recorded: Entry, scale: Scale, side: str) -> list[Rule]:
    """Label the percentiles so that no label lies on a line: each line begins at the row of its own label."""
    found = [
        (scale.at(entry.number), f"{name} {measured(entry, 'ms').text}")
        for name in PERCENTILES
        if (entry := recorded.at(f"{name}_ms")).number is not None
    ]
    all_left = bool(found) and found[0][0] > RIGHT_SIDE
    rows = range(len(found) - 1, -1, -1) if all_left else range(len(found))
    return [
        Rule(at, text, f"{side} percentile", row, start=row * 11.5, leftward=at > RIGHT_SIDE)
        for row, (at, text) in zip(rows, found, strict=True)
    ]
