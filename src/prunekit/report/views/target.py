"""The measured goal: asked, planned and validated; every attempt; what the cost model knew; the front."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.report.charts import Line, Mark, Plot, Point, Rule, Scale, polyline, scale_over
from prunekit.report.figures import (
    NARROW_SPACE,
    TIMES,
    Figure,
    as_set,
    chosen,
    confidence,
    count,
    derived,
    measured,
    missing,
    percent,
    percent_text,
    scaled,
    significant,
)
from prunekit.report.reading import Cycle, Entry, RunRecord

KINDS: dict[str, tuple[str, str]] = {
    "speedup": ("speed-up, at least", TIMES),
    "latency_ms": ("latency of a call, at most", "ms"),
    "throughput": ("examples in a second, at least", "/s"),
    "memory_bytes": ("peak memory while serving, at most", "B"),
    "size_bytes": ("size of the exported model, at most", "B"),
    "kv_cache_bytes": ("caches of a call, at most", "B"),
    "quality_drop": ("increase of the calibration loss, at most", ""),
    "macs": ("MACs of one example, at most", ""),
    "params": ("parameters, at most", ""),
}
"""By kind of goal: what it is for readers, and its unit."""


@dataclass(frozen=True)
class GoalRow:
    """One goal: what was asked, what planning measured, what validation measured on the model that ships.

    Attributes:
        interval: of what was validated, where it is a time; else "".
        met: by what validation measured; None where it has not been.
    """

    name: str
    asked: Figure
    tolerance: str
    planned: Figure
    validated: Figure
    interval: str
    met: bool | None


@dataclass(frozen=True)
class AttemptRow:
    """One plan that was exported and timed; one figure for each goal.

    Attributes:
        intervals: of what was measured, where it is a time; else "".
    """

    number: int
    asked: tuple[Figure, ...]
    predicted: tuple[Figure, ...]
    measured: tuple[Figure, ...]
    intervals: tuple[str, ...]
    error: Figure
    loss: Figure
    seconds: Figure


@dataclass(frozen=True)
class Reaching:
    """How one cycle reached its goal.

    Attributes:
        number: of the cycle.
        attempts: in order; the last is the plan.
        facts: (what it is, the figure, its basis) about the cost model and its table.
        limiting: (name of the group, share of the predicted time that depends on it), the largest first.
        plot: the front, or None where it is not recorded.
        overdone: every goal is more than met, because all plans nearer to them that were tried missed one.
    """

    number: int
    attempts: tuple[AttemptRow, ...]
    facts: tuple[tuple[str, Figure, str], ...]
    limiting: tuple[tuple[str, Figure], ...]
    plot: Plot | None
    overdone: bool


@dataclass(frozen=True)
class TargetView:
    """The section on the measured goal.

    Attributes:
        target: in words.
        goals: of the whole run.
        names: of the goals, as the columns of attempts are called.
        cycles: each with its attempts.
        warning: a goal that was met in planning and is not in validation, or another target; "" if none.
    """

    target: str
    goals: tuple[GoalRow, ...]
    names: tuple[str, ...]
    cycles: tuple[Reaching, ...]
    warning: str


def target(run: RunRecord) -> TargetView | None:
    """Show how the measured goals were reached; None where no goal was measured."""
    cycles = [cycle for cycle in run.cycles if cycle.plan.at("attempts").known]
    if not cycles:
        return None
    asked = list(cycles[-1].plan.at("goals").elements())
    judged = list(run.result("validate").at("goals").elements())
    rows = tuple(_goal_row(goal, cycles[-1], place, judged) for place, goal in enumerate(asked))
    return TargetView(
        target=cycles[-1].target.at("words").text,
        goals=rows,
        names=tuple(KINDS.get(goal.at("kind").text, (goal.at("kind").text, ""))[0] for goal in asked),
        cycles=tuple(_reaching(cycle) for cycle in cycles),
        warning=_warning(rows, judged),
    )


def figure_of(entry: Entry, kind: str) -> Figure:
    """A measured figure of a goal of this kind, with its unit."""
    unit = KINDS.get(kind, ("", ""))[1]
    if unit == "B":
        return scaled(entry, "B")
    return count(entry) if kind in ("macs", "params") else measured(entry, unit)


def interval_text(interval: Entry, kind: str) -> str:
    """An interval of a timed figure, with its confidence; "" where none is recorded.

    An end that too few runs lay beyond to tell is left open.
    """
    low, high = interval.at("low").number, interval.at("high").number
    unit = KINDS.get(kind, ("", ""))[1]
    unit = unit if unit in ("", TIMES) else f"{NARROW_SPACE}{unit}"
    which = confidence(interval.at("confidence"))
    if low is not None and high is not None:
        return f"{which}{significant(low)} to {significant(high)}{unit}"
    if low is not None:
        return f"{which}from {significant(low)}{unit} up"
    return "" if high is None else f"{which}up to {significant(high)}{unit}"


def asked_figure(goal: Entry) -> Figure:
    """What a goal asks for, with its unit."""
    kind, remove, reach = goal.at("kind").text, goal.at("remove"), goal.at("reach")
    if remove.number is not None:
        return derived(remove.number, f"{as_set(100 * remove.number)}{NARROW_SPACE}% fewer", remove)
    unit = KINDS.get(kind, ("", ""))[1]
    return scaled(reach, "B") if unit == "B" else chosen(reach, unit)


def name_of(goal: Entry) -> str:
    """What a goal asks for, in words, its percentile included."""
    kind, percentile = goal.at("kind").text, goal.at("percentile").number
    name = KINDS.get(kind, (kind.replace("_", " "), ""))[0]
    return name if percentile is None else f"{as_set(percentile)}th percentile of the {name}"


def _goal_row(goal: Entry, cycle: Cycle, place: int, judged: list[Entry]) -> GoalRow:
    kind = goal.at("kind").text
    tolerance = goal.at("tolerance").number
    found = judged[place] if place < len(judged) else Entry(None, "stages/validate/result.json#goals")
    return GoalRow(
        name=name_of(goal),
        asked=asked_figure(goal),
        tolerance="" if tolerance is None else f"{as_set(100 * tolerance)}{NARROW_SPACE}%",
        planned=figure_of(cycle.plan.at("planned", place), kind),
        validated=figure_of(found.at("validated"), kind),
        interval=interval_text(found.at("interval"), kind),
        met=found.at("met").flag,
    )


def _warning(rows: tuple[GoalRow, ...], judged: list[Entry]) -> str:
    parts = [
        f"The {row.name.partition(',')[0]} was met in planning and is not met in validation: "
        f"{row.planned.text} then, {row.validated.text} now."
        for row in rows
        if row.met is False
    ]
    if any(goal.at("same_target").flag is False for goal in judged):
        parts.append("Validation measured on another target than planning.")
    return " ".join(parts)


def _reaching(cycle: Cycle) -> Reaching:
    plan = cycle.plan
    return Reaching(
        number=cycle.number,
        attempts=tuple(
            _attempt(number, attempt, plan)
            for number, attempt in enumerate(plan.at("attempts").elements(), 1)
        ),
        facts=_facts(cycle),
        limiting=tuple(
            (group.at("name").text, percent(group.at("share"), 0)) for group in plan.at("limiting").elements()
        ),
        plot=_front(plan),
        overdone=plan.at("overdone").flag is True,
    )


def _attempt(number: int, attempt: Entry, plan: Entry) -> AttemptRow:
    goals = list(plan.at("asked").elements())
    kinds = [goal.at("kind").text for goal in goals]
    return AttemptRow(
        number=number,
        asked=tuple(_asked_of_cycle(goal) for goal in goals),
        predicted=tuple(figure_of(attempt.at("predicted", place), kind) for place, kind in enumerate(kinds)),
        measured=tuple(figure_of(attempt.at("measured", place), kind) for place, kind in enumerate(kinds)),
        intervals=tuple(
            interval_text(attempt.at("intervals", place), kind) for place, kind in enumerate(kinds)
        ),
        error=_error(attempt.at("predicted_speedup"), attempt.at("speedup", "median")),
        loss=measured(attempt.at("loss")),
        seconds=measured(attempt.at("seconds"), "s"),
    )


def _asked_of_cycle(goal: Entry) -> Figure:
    """What follows for a cycle from the goal of the run: a figure that nobody chose, so it is rounded."""
    remove = goal.at("remove")
    if remove.number is not None:
        return derived(remove.number, f"{percent_text(remove.number)} fewer", remove)
    return figure_of(goal.at("reach"), goal.at("kind").text)


def _error(predicted: Entry, found: Entry) -> Figure:
    """By how much the predicted speed-up was wrong, relative to the measured one."""
    if predicted.number is None or not found.number:
        return missing(predicted, found)
    error = predicted.number / found.number - 1
    sign = "+" if error > 0 else ""
    return derived(error, f"{sign}{percent_text(error)}", predicted, found)


def _facts(cycle: Cycle) -> tuple[tuple[str, Figure, str], ...]:
    table, plan = cycle.target, cycle.plan
    models = len(list(table.at("models").elements()))
    return (
        (
            "Cost model, median error",
            percent(table.at("median_error")),
            f"of {models} whole models, each foretold without itself" if models else "",
        ),
        ("Building the table", measured(table.at("seconds", "all"), "s"), "once for all goals"),
        ("Operations timed", count(table.at("operations")), "alone, in their sizes"),
        ("No group changes", percent(plan.at("unchanged"), 0), "of the predicted time"),
    )


def _front(plan: Entry) -> Plot | None:
    """The least loss that is foretold at each speed-up, and the attempts where they were measured."""
    points = _points(plan.at("front"), "speedup")
    attempts = [
        (speedup, loss, attempt)
        for attempt in plan.at("attempts").elements()
        if (speedup := attempt.at("speedup", "median").number) is not None
        and (loss := attempt.at("loss").number) is not None
    ]
    if len(points) < 2:
        return None
    asked = [
        reach
        for goal in plan.at("asked").elements()
        if goal.at("kind").text == "speedup" and (reach := goal.at("reach").number) is not None
    ]
    speedups = [*(at for at, _ in points), *(at for at, _, _ in attempts), *asked]
    x = scale_over(speedups, padding=0.04)
    y = scale_over([*(loss for _, loss in points), *(loss for _, loss, _ in attempts)])
    last = len(attempts) - 1
    return Plot(
        title="Predicted loss against speed-up: the best plans, and the attempts as measured",
        description=f"The front goes from {significant(points[0][0])}{TIMES} with a predicted loss of "
        f"{significant(points[0][1])} to {significant(points[-1][0])}{TIMES} with "
        f"{significant(points[-1][1])}; "
        f"{len(attempts)} attempts were measured",
        x_label="speed-up over the model that the cycle starts from",
        y_label="predicted increase of the calibration loss",
        x_ticks=x.ticks(6, suffix=TIMES),
        y_ticks=y.ticks(4),
        lines=(Line(polyline(points, x, y), "solid"),),
        marks=tuple(
            _mark(number, attempt, at, loss, x, y, "pruned" if number == last else "hollow")
            for number, (at, loss, attempt) in enumerate(attempts)
        ),
        columns=tuple(
            Rule(x.at(reach), f"asked {as_set(reach)}{TIMES}", "asked percentile", leftward=x.at(reach) > 62)
            for reach in asked
        ),
        keys=(
            ("solid", "predicted"),
            *((("hollow", "an attempt, measured"),) if last > 0 else ()),
            ("pruned", "the plan, measured"),
        ),
    )


def _points(front: Entry, key: str) -> list[Point]:
    """The points of the front, each once."""
    found = [
        (at, loss)
        for point in front.elements()
        if (at := point.at(key).number) is not None and (loss := point.at("loss").number) is not None
    ]
    return sorted(dict.fromkeys(found))


def _mark(number: int, attempt: Entry, at: float, loss: float, x: Scale, y: Scale, style: str) -> Mark:
    label = (
        f"attempt {number + 1}: {significant(at)}{TIMES} measured, predicted loss {significant(loss)} "
        f"({attempt.source})"
    )
    return Mark(x.at(at), 100 - y.at(loss), label, style)
