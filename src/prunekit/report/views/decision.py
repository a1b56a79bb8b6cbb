"""What decides: the verdict, the gates, goal against reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from prunekit.report.figures import (
    NARROW_SPACE,
    NOT_MEASURED,
    TIMES,
    Figure,
    Metric,
    as_set,
    confidence,
    count,
    derived,
    measured,
    missing,
    percent_text,
    relative_change,
    removed_share,
    scaled,
    shown,
    significant,
)
from prunekit.report.reading import Cycle, Entry, RunRecord
from prunekit.report.views.target import asked_figure, figure_of, name_of

State = Literal["accepted", "refused", "open"]

GATE_NAMES = {
    "max_quality_drop": "Overall quality drop, at most",
    "max_slice_drop": "Drop of the worst class or slice, at most",
    "min_speedup": "Speed-up, at least",
    "max_latency_ms": "Latency of the pruned model, at most",
    "max_size_bytes": "Size of the exported file, at most",
    "min_size_reduction": "Reduction of the exported file, at least",
    "max_memory_bytes": "Peak memory, at most",
}
GOAL_NAMES = {
    "sparsity": "prunable units",
    "macs": "MACs of one example",
    "params": "parameters of the whole model",
}


@dataclass(frozen=True)
class GateRow:
    """One gate: its name for readers, what it found, and where its evidence stands."""

    name: str
    passed: bool | None
    observed: Figure
    limit: Figure
    reason: str
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """The answer, and the figures that an engineer asks for first.

    Attributes:
        state: ``open`` where the gates have not been judged.
        word: the answer in a word.
        sentence: why.
        gates: every gate, the failed ones first.
        headlines: (what it is, the figure, its interval or basis).
        source: where the verdict stands.
    """

    state: State
    word: str
    sentence: str
    gates: tuple[GateRow, ...]
    headlines: tuple[tuple[str, Figure, str], ...]
    source: str


@dataclass(frozen=True)
class Goal:
    """What was asked, what was reached, and whether that is within the tolerance."""

    asked: str
    asked_source: str
    reached: Figure
    left: Figure
    tolerance: str
    within: bool | None
    criterion: str
    scope: str
    cycles: int


@dataclass(frozen=True)
class Costs:
    """Where the cost of both models is recorded."""

    dense: Entry
    pruned: Entry


def costs(run: RunRecord) -> Costs:
    """Find the cost of the dense parent and of the pruned model after the last cycle."""
    plans = [cycle.plan for cycle in run.cycles if cycle.plan.known]
    baseline = run.result("baseline").at("cost")
    dense = baseline if baseline.known or not plans else plans[0].at("before")
    pruned = plans[-1].at("after") if plans else Entry(None, "stages/cycle-01/plan/result.json#after")
    return Costs(dense, pruned)


def verdict(run: RunRecord, metric: Metric) -> Verdict:
    """Say whether the model may ship, and by which gates."""
    gate = run.result("gate")
    rows = [_gate_row(entry) for entry in gate.at("gates").elements()]
    failed = [row for row in rows if row.passed is not True]
    accepted = gate.at("accepted").flag
    if accepted is None:
        state, word = "open", "No verdict"
        sentence = "The gates have not been judged: the run has not come that far, or was stopped before."
    elif accepted:
        state, word = "accepted", "Accepted"
        sentence = _passed_sentence(rows, failed)
    else:
        state, word = "refused", "Refused"
        sentence = (
            f"{len(failed)} of {len(rows)} gates {'fails' if len(failed) == 1 else 'fail'}."
            if failed
            else "The run recorded a refusal, but no failed gate."
        )
    return Verdict(
        state=state,
        word=word,
        sentence=sentence,
        gates=tuple(sorted(rows, key=lambda row: row.passed is True)),
        headlines=_headlines(run, metric),
        source=gate.at("accepted").source,
    )


def _passed_sentence(rows: list[GateRow], failed: list[GateRow]) -> str:
    if not rows:
        return "No gate was set, so nothing was asked of the pruned model."
    if failed:
        return f"The run recorded an acceptance although {len(failed)} of {len(rows)} gates did not pass."
    return "The only gate passes." if len(rows) == 1 else f"All {len(rows)} gates pass."


def _gate_row(entry: Entry) -> GateRow:
    kind = entry.at("name").text
    unit = entry.at("unit").text
    return GateRow(
        name=GATE_NAMES.get(kind, kind or "unnamed gate"),
        passed=entry.at("passed").flag,
        observed=_gate_figure(entry.at("observed"), kind, unit, significant),
        limit=_gate_figure(entry.at("limit"), kind, unit, as_set),
        reason=entry.at("reason").text,
        evidence=entry.at("evidence").text,
    )


def _gate_figure(entry: Entry, kind: str, unit: str, write: Callable[[float], str]) -> Figure:
    value = entry.number
    if value is None:
        return measured(entry)
    if unit == "fraction" and kind in ("max_quality_drop", "max_slice_drop"):
        return shown(entry, f"{write(100 * value)}{NARROW_SPACE}points")
    if unit == "fraction":
        return shown(entry, f"{write(100 * value)}{NARROW_SPACE}%")
    if unit == "bytes":
        return scaled(entry, "B")
    return shown(entry, f"{write(value)}{TIMES}" if unit == "x" else f"{write(value)}{NARROW_SPACE}{unit}")


def _headlines(run: RunRecord, metric: Metric) -> tuple[tuple[str, Figure, str], ...]:
    evaluation = run.result("evaluate")
    speedup = run.result("validate").at("latency", "speedup")
    size = run.result("validate").at("size")
    cost = costs(run)
    macs = relative_change(cost.dense.at("macs"), cost.pruned.at("macs"))
    change = overall_change(evaluation, metric)
    return (
        ("Speed-up", measured(speedup.at("median"), TIMES), speedup_interval(speedup)),
        (
            f"{metric.name.capitalize()} change",
            change,
            change_interval(evaluation, metric),
        ),
        ("MACs", macs, "counted, one example"),
        (
            "Exported file",
            relative_change(size.at("dense_bytes"), size.at("pruned_bytes")),
            "bytes on disk",
        ),
    )


def speedup_interval(speedup: Entry) -> str:
    """Write the interval of the speed-up; "" where it is not recorded."""
    low, high = speedup.at("low").number, speedup.at("high").number
    if low is None or high is None:
        return ""
    return f"{confidence(speedup.at('confidence'))}{significant(low)} to {significant(high)}{TIMES}"


def overall_change(evaluation: Entry, metric: Metric) -> Figure:
    """Show the overall change of quality with its unit."""
    overall = evaluation.at("overall")
    change = metric.change(overall.at("change"), overall.at("n").number)
    if not (change.measured and metric.is_share):
        return change
    return replace(change, text=f"{change.text}{NARROW_SPACE}{metric.change_unit}")


def change_interval(evaluation: Entry, metric: Metric) -> str:
    """Write the interval of the overall change of quality; "" where it is not recorded."""
    change = evaluation.at("overall")
    low, high, n = change.at("low").number, change.at("high").number, change.at("n").number
    unit = f"{NARROW_SPACE}points" if metric.is_share else ""
    if low is None or high is None:
        return ""
    which = confidence(evaluation.at("confidence"))
    return f"{which}{metric.change_text(low, n)} to {metric.change_text(high, n)}{unit}"


def goal(run: RunRecord) -> Goal | None:
    """Set what was asked against what was reached; None where no plan was made."""
    cycles = [cycle for cycle in run.cycles if cycle.plan.known]
    if not cycles:
        return None
    plan = cycles[-1].plan
    if plan.at("attempts").known:
        return _measured_goal(run, cycles)
    asked = plan.at("goal")
    kind = asked.at("kind").text
    reached, left, share = _reached(run, kind)
    tolerance = asked.at("tolerance")
    return Goal(
        asked=_asked(asked, kind),
        asked_source=asked.source,
        reached=reached,
        left=left,
        tolerance=f"{as_set(100 * tolerance.number)}{NARROW_SPACE}%" if tolerance.number is not None else "",
        within=_within(asked, kind, share, costs(run)),
        criterion=cycles[-1].score.at("criterion").text,
        scope=plan.at("scope").text,
        cycles=len(cycles),
    )


def _measured_goal(run: RunRecord, cycles: list[Cycle]) -> Goal:
    """The same for goals that a target decides: what counts is what validation measured."""
    plan, judged = cycles[-1].plan, run.result("validate").at("goals")
    goals = list(plan.at("goals").elements())
    met = [goal.at("met").flag for goal in judged.elements()]
    tolerance = goals[0].at("tolerance").number if len(goals) == 1 else None
    macs = count(costs(run).pruned.at("macs"))
    return Goal(
        asked="; ".join(f"{name_of(goal)} {asked_figure(goal).text}" for goal in goals),
        asked_source=plan.at("goals").source,
        reached=figure_of(judged.at(0, "validated"), goals[0].at("kind").text),
        left=replace(macs, text=f"{macs.text} MACs") if macs.measured else macs,
        tolerance=f"{as_set(100 * tolerance)}{NARROW_SPACE}%" if tolerance is not None else "",
        within=all(met) if met and None not in met else None,
        criterion=cycles[-1].score.at("criterion").text,
        scope="",
        cycles=len(cycles),
    )


def _asked(asked: Entry, kind: str) -> str:
    """The goal as a sentence part."""
    what = GOAL_NAMES.get(kind, kind.replace("_", " "))
    remove, reach = asked.at("remove").number, asked.at("reach").number
    if remove is not None:
        return f"{as_set(100 * remove)}{NARROW_SPACE}% fewer {what}"
    if reach is not None:
        return f"{reach:,} {what}"
    return asked.text or NOT_MEASURED


def _reached(run: RunRecord, kind: str) -> tuple[Figure, Figure, float | None]:
    """What was reached, what is left in absolute terms, and the share removed."""
    cost = costs(run)
    if kind in ("macs", "params"):
        before, after = cost.dense.at(kind), cost.pruned.at(kind)
        share = removed_share(before, after)
        figure = missing(before, after) if share is None else _fewer(share, before, after)
        left = count(after)
        unit = "MACs" if kind == "macs" else "parameters"
        return figure, replace(left, text=f"{left.text} {unit}") if left.measured else left, share
    if kind == "sparsity":
        baseline_groups = run.result("baseline").at("groups")
        before, after, entry = _units(run)
        share = 1 - after / before if before else None
        figure = missing(entry) if share is None else _fewer(share, entry, baseline_groups)
        left = missing(entry) if share is None else derived(after, f"{after:,} of {before:,} units", entry)
        return figure, left, share
    validate = run.result("validate")
    places = {
        "speedup": measured(validate.at("latency", "speedup", "median"), TIMES),
        "latency_ms": measured(validate.at("latency", "pruned", "p50_ms"), "ms"),
        "size_bytes": scaled(validate.at("size", "pruned_bytes"), "B"),
        "memory_bytes": scaled(validate.at("memory", "pruned_bytes"), "B"),
    }
    figure = places.get(kind, missing(validate))
    return figure, figure, None


def _fewer(share: float, *entries: Entry) -> Figure:
    return derived(share, f"{percent_text(share, 2)} fewer", *entries)


def _units(run: RunRecord) -> tuple[int, int, Entry]:
    """Units of all groups before the first and after the last cycle, and where the widths stand."""
    plans = [cycle.plan.at("widths") for cycle in run.cycles if cycle.plan.known]
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for widths in plans:
        for name, pair in widths.items():
            first, last = pair.at(0).number, pair.at(1).number
            if first is not None and last is not None:
                before.setdefault(name, int(first))
                after[name] = int(last)
    return sum(before.values()), sum(after.values()), plans[-1]


def _within(asked: Entry, kind: str, share: float | None, cost: Costs) -> bool | None:
    """Whether the goal is reached: ``|left - asked| <= tolerance * asked``."""
    tolerance, remove, reach = (asked.at(key).number for key in ("tolerance", "remove", "reach"))
    if tolerance is None or share is None:
        return None
    if remove is not None:
        wanted, left = 1 - remove, 1 - share
    elif reach is not None and (now := cost.pruned.at(kind).number) is not None:
        wanted, left = reach, now
    else:
        return None
    return abs(left - wanted) <= tolerance * wanted + 1e-12
