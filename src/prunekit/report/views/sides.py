"""The dense parent and the pruned model side by side."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.report.figures import TIMES, Figure, Metric, measured, relative_change, removed_share, scaled
from prunekit.report.reading import Entry, RunRecord
from prunekit.report.views.decision import change_interval, costs, overall_change, speedup_interval


@dataclass(frozen=True)
class Side:
    """One line of dense against pruned.

    Attributes:
        name: the quantity.
        dense: of the dense parent; None where the line only has a change.
        pruned: of the pruned model.
        change: from dense to pruned.
        note: interval and basis.
        bar: the pruned figure as percent of the dense one, where that says something; else None.
    """

    name: str
    dense: Figure | None
    pruned: Figure | None
    change: Figure
    note: str = ""
    bar: float | None = None


def sides(run: RunRecord, metric: Metric) -> tuple[Side, ...]:
    """Set the dense parent and the pruned model side by side."""
    evaluation = run.result("evaluate")
    overall = evaluation.at("overall")
    n = overall.at("n").number
    quality = Side(
        name=metric.name.capitalize(),
        dense=metric.level(overall.at("dense"), n),
        pruned=metric.level(overall.at("pruned"), n),
        change=overall_change(evaluation, metric),
        note=" · ".join(
            part
            for part in (
                change_interval(evaluation, metric),
                f"n\u00a0=\u00a0{n:,} test examples" if n is not None else "",
            )
            if part
        ),
    )
    return (quality, *_latency_sides(run), *_cost_sides(run))


def _latency_sides(run: RunRecord) -> list[Side]:
    latency = run.result("validate").at("latency")
    rows = []
    for key in ("p50", "p90", "p99"):
        dense, pruned = latency.at("dense", f"{key}_ms"), latency.at("pruned", f"{key}_ms")
        rows.append(
            Side(f"Latency {key}", measured(dense, "ms"), measured(pruned, "ms"), *_change(dense, pruned))
        )
    speedup = latency.at("speedup")
    pairs = speedup.at("pairs").number
    note = " · ".join(
        part for part in (speedup_interval(speedup), f"{pairs:,} pairs" if pairs is not None else "") if part
    )
    rows.append(Side("Speed-up, median of pairs", None, None, measured(speedup.at("median"), TIMES), note))
    return rows


def _cost_sides(run: RunRecord) -> list[Side]:
    cost, validate = costs(run), run.result("validate")
    size, memory = validate.at("size"), validate.at("memory")
    lines = [
        ("MACs, one example", cost.dense.at("macs"), cost.pruned.at("macs"), ""),
        ("Parameters", cost.dense.at("params"), cost.pruned.at("params"), ""),
        ("Size on disk, exported", size.at("dense_bytes"), size.at("pruned_bytes"), "B"),
        ("Peak memory of the process", memory.at("dense_bytes"), memory.at("pruned_bytes"), "B"),
    ]
    added = memory.at("dense", "added_bytes"), memory.at("pruned", "added_bytes")
    if any(entry.known for entry in added):
        lines.append(("Memory that the model adds", *added, "B"))
    return [
        Side(name, scaled(dense, unit), scaled(pruned, unit), *_change(dense, pruned))
        for name, dense, pruned, unit in lines
    ]


def _change(dense: Entry, pruned: Entry) -> tuple[Figure, str, float | None]:
    share = removed_share(dense, pruned)
    bar = None if share is None else round(100 * min(1.0, max(0.0, 1 - share)), 1)
    return relative_change(dense, pruned), "", bar
