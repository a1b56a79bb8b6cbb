"""The section on measured goals: figures with their places, the front, and what went wrong."""

from __future__ import annotations

import json

import pytest
from tests.report.pages import Page, resolve
from tests.report.sample import write_stage

from prunekit.report.reading import read_run
from prunekit.report.views import decision, target
from prunekit.report.write import render

GOALS = [
    {"kind": "speedup", "remove": None, "reach": 2.2, "tolerance": 0.03, "percentile": None},
    {"kind": "latency_ms", "remove": None, "reach": 1.6, "tolerance": 0.03, "percentile": 99},
    {"kind": "size_bytes", "remove": None, "reach": 2_000_000, "tolerance": 0.03, "percentile": None},
]
VALIDATED = (2.3, 1.62, 1_893_410)


def attempt(speedup: float, predicted: float, loss: float) -> dict:
    return {
        "by": "milp",
        "predicted": [predicted, 1.5, 1_900_000],
        "measured": [speedup, 1.55, 1_893_410],
        "intervals": [
            {"low": speedup - 0.01, "high": speedup + 0.01, "confidence": 0.95},
            {"low": 1.51, "high": None, "confidence": 0.95},
            None,
        ],
        "loss": loss,
        "speedup": {"median": speedup, "low": speedup - 0.01, "high": speedup + 0.01},
        "predicted_speedup": predicted,
        "noise": "the machine was steady",
        "choosing_s": 0.1,
        "seconds": 7.5,
    }


@pytest.fixture
def measured_run(run_dir):
    """The sample run, with goals that a target decides."""
    place = run_dir / "stages/cycle-03/plan/result.json"
    plan = json.loads(place.read_text())
    plan |= {
        "goals": GOALS,
        "asked": GOALS,
        "planned": [2.21, 1.55, 1_893_410],
        "attempts": [attempt(1.9, 2.2, 0.011), attempt(2.21, 2.4, 0.014)],
        "limiting": [{"name": "stem:channel", "share": 0.41}, {"name": "<b>", "share": 0.2}],
        "unchanged": 0.07,
        "overdone": True,
        "front": [{"speedup": 1 + 0.3 * step, "loss": 0.001 * step**2} for step in range(12)],
    }
    write_stage(run_dir, "cycle-03/plan", plan)
    write_stage(
        run_dir,
        "cycle-03/target",
        {
            "words": "onnxruntime on cpu, 1 thread, batch 1, fp32",
            "operations": 321,
            "models": [{"name": "dense", "ms": 3.4, "error": 0.01}] * 9,
            "median_error": 0.021,
            "seconds": {"all": 61.2},
        },
    )
    validation = json.loads((run_dir / "stages/validate/result.json").read_text())
    validation["goals"] = [
        {
            **goal,
            "validated": value,
            "interval": {"low": 0.99 * value, "high": 1.02 * value, "confidence": 0.95}
            if place < 2
            else None,
            "met": place != 1,
            "same_target": True,
        }
        for place, (goal, value) in enumerate(zip(GOALS, VALIDATED, strict=True))
    ]
    write_stage(run_dir, "validate", validation)
    return run_dir


def plain(text: str) -> str:
    return text.replace("\u202f", " ")


def test_no_section_where_no_goal_was_measured(run_dir):
    assert target.target(read_run(run_dir)) is None
    assert 'id="goal"' not in render(run_dir)


def test_asked_planned_and_validated_stand_side_by_side(measured_run):
    found = target.target(read_run(measured_run))
    assert found is not None
    rows = [
        tuple(plain(figure.text) for figure in (row.asked, row.planned, row.validated)) for row in found.goals
    ]
    assert rows == [
        ("2.2\u00d7", "2.21\u00d7", "2.30\u00d7"),
        ("1.6 ms", "1.55 ms", "1.62 ms"),
        ("2.00 MB", "1.89 MB", "1.89 MB"),
    ]
    assert [row.met for row in found.goals] == [True, False, True]
    assert "99th percentile of the latency of a call was met in planning" in found.warning
    assert found.goals[1].validated.source == "stages/validate/result.json#goals.1.validated"


def test_every_attempt_and_what_the_cost_model_knew(measured_run):
    found = target.target(read_run(measured_run))
    assert found is not None
    [cycle] = found.cycles
    assert cycle.overdone
    assert "every nearer plan" in render(measured_run)
    assert [attempt.number for attempt in cycle.attempts] == [1, 2]
    # 2.4 predicted, 2.21 measured
    assert plain(cycle.attempts[-1].error.text) == "+8.6 %"
    facts = {name: plain(figure.text) for name, figure, _ in cycle.facts}
    assert facts == {
        "Cost model, median error": "2.1 %",
        "Building the table": "61.2 s",
        "Operations timed": "321",
        "No group changes": "7 %",
    }
    assert [(name, plain(share.text)) for name, share in cycle.limiting] == [
        ("stem:channel", "41 %"),
        ("<b>", "20 %"),
    ]


def test_times_are_shown_with_their_intervals(measured_run):
    """Oracle: the intervals of the sample, an end that was not told left open."""
    found = target.target(read_run(measured_run))
    assert [plain(row.interval) for row in found.goals] == [
        "95 % interval 2.28 to 2.35\u00d7",
        "95 % interval 1.60 to 1.65 ms",
        "",
    ]
    assert [plain(text) for text in found.cycles[-1].attempts[-1].intervals] == [
        "95 % interval 2.20 to 2.22\u00d7",
        "95 % interval from 1.51 ms up",
        "",
    ]
    page = plain(render(measured_run))
    assert "95 % interval 2.20 to 2.22" in page
    assert "95 % interval 1.60 to 1.65 ms" in page


def test_the_front_has_the_attempts_on_it(measured_run):
    found = target.target(read_run(measured_run))
    assert found is not None
    plot = found.cycles[0].plot
    assert plot is not None
    assert len(plot.lines[0].points.split()) == 12
    assert [mark.style for mark in plot.marks] == ["hollow", "pruned"]
    first, last = plot.marks
    assert first.x < plot.columns[0].at < last.x or first.x < last.x
    assert "1.90\u00d7 measured" in first.label


def test_what_was_asked_and_reached_in_short(measured_run):
    goal = decision.goal(read_run(measured_run))
    assert goal is not None
    assert plain(goal.asked) == (
        "speed-up, at least 2.2\u00d7; 99th percentile of the latency of a call, at most 1.6 ms; "
        "size of the exported model, at most 2.00 MB"
    )
    assert goal.reached.text == "2.30\u00d7"
    assert goal.within is False


def test_every_number_of_the_section_is_found_where_it_says(measured_run):
    page = Page(render(measured_run))
    numbers = [
        (raw, title.split(" · ")[1])
        for raw, title, _ in page.numbers
        if "cycle-03/plan" in title and " · " in title
    ]
    direct = [(raw, source) for raw, source in numbers if not source.startswith("from ")]
    assert len(direct) > 10
    for raw, source in direct:
        assert str(resolve(measured_run, source)) == raw


def test_results_that_are_not_as_expected_are_shown_as_missing(measured_run):
    place = measured_run / "stages/cycle-03/plan/result.json"
    plan = json.loads(place.read_text())
    write_stage(
        measured_run,
        "cycle-03/plan",
        {**plan, "attempts": [{}, 3], "front": [1, {"speedup": "x"}], "planned": None, "limiting": {}},
    )
    found = target.target(read_run(measured_run))
    assert found is not None
    assert found.cycles[0].plot is None
    assert not found.goals[0].planned.measured
    assert 'id="goal"' in render(measured_run)
