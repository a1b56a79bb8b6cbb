from __future__ import annotations

import json
from dataclasses import replace

import pytest

from prunekit.report.figures import Metric
from prunekit.report.reading import Entry, RunRecord, read_run
from prunekit.report.views import decision, path, quality, record, sides, speed

ACCURACY = Metric("accuracy", is_share=True)


def with_result(run: RunRecord, stage: str, content: object) -> RunRecord:
    """The same run with another result of one stage."""
    return replace(run, results={**run.results, stage: Entry(content, f"stages/{stage}/result.json")})


def text_of(figure) -> str:
    return figure.text.replace("\u202f", " ")


def test_verdicts(finished):
    accepted = decision.verdict(read_run(finished["accepted"]), ACCURACY)
    refused = decision.verdict(read_run(finished["refused"]), ACCURACY)
    assert (accepted.state, accepted.sentence) == ("accepted", "All 4 gates pass.")
    assert (refused.state, refused.sentence) == ("refused", "2 of 4 gates fail.")
    assert [gate.passed for gate in refused.gates] == [False, False, True, True]
    assert refused.gates[1].name == "Speed-up, at least"
    assert text_of(refused.gates[1].limit) == "2\u00d7"
    assert refused.gates[1].evidence == "stages/validate/result.json#latency.speedup.low"


@pytest.mark.parametrize(
    ("content", "state", "sentence"),
    [
        (None, "open", "The gates have not been judged"),
        ({}, "open", "The gates have not been judged"),
        ({"accepted": "yes"}, "open", "The gates have not been judged"),
        ({"accepted": True, "gates": []}, "accepted", "No gate was set"),
        ({"accepted": True, "gates": [{"passed": True}]}, "accepted", "The only gate passes"),
        ({"accepted": True, "gates": [{"passed": False}]}, "accepted", "although 1 of 1 gates did not pass"),
        ({"accepted": False, "gates": []}, "refused", "no failed gate"),
        ({"accepted": False, "gates": [{"passed": False}, {}]}, "refused", "2 of 2 gates fail"),
    ],
)
def test_verdicts_that_do_not_add_up_say_so(finished, content, state, sentence):
    run = with_result(read_run(finished["accepted"]), "gate", content)
    verdict = decision.verdict(run, ACCURACY)
    assert verdict.state == state
    assert sentence in verdict.sentence


def test_goal_and_what_was_reached(finished):
    run = read_run(finished["accepted"])
    goal = decision.goal(run)
    plan = run.cycles[-1].plan.value
    assert goal is not None
    assert goal.asked.replace("\u202f", " ") == "50 % fewer MACs of one example"
    assert float(goal.reached.raw) == pytest.approx(
        1 - plan["after"]["macs"] / plan["before"]["macs"], rel=1e-5
    )
    assert goal.within is True
    assert (goal.criterion, goal.scope, goal.cycles) == ("taylor", "global", 3)


@pytest.mark.parametrize(
    ("asked", "within", "reached"),
    [
        ({"kind": "macs", "remove": 0.4, "tolerance": 0.02}, False, "49.85 % fewer"),
        ({"kind": "params", "remove": 0.5, "tolerance": 0.02}, True, "49.85 % fewer"),
        ({"kind": "macs", "reach": 48_800_000, "tolerance": 0.02}, True, "49.85 % fewer"),
        ({"kind": "macs", "reach": 40_000_000, "tolerance": 0.02}, False, "49.85 % fewer"),
        ({"kind": "speedup", "reach": 2.0}, None, "2.30\u00d7"),
        ({"kind": "size_bytes", "reach": 2_000_000}, None, "1.89 MB"),
        ({"kind": "nobody knows"}, None, "not measured"),
    ],
)
def test_goals_of_other_kinds(finished, asked, within, reached):
    run = read_run(finished["accepted"])
    plan = {**run.cycles[-1].plan.value, "goal": asked}
    goal = decision.goal(with_result(run, "cycle-03/plan", plan))
    assert goal is not None
    assert goal.within is within
    assert text_of(goal.reached) == reached


def test_a_sparsity_is_counted_over_the_widths(finished):
    run = read_run(finished["accepted"])
    widths = {"a": [10, 5], "b": [30, 15]}
    asked = {"kind": "sparsity", "remove": 0.5, "tolerance": 0.02}
    plans = {f"cycle-0{i}/plan": {"goal": asked, "widths": widths} for i in (1, 2, 3)}
    for stage, plan in plans.items():
        run = with_result(run, stage, plan)
    goal = decision.goal(run)
    assert goal is not None
    assert (text_of(goal.reached), text_of(goal.left), goal.within) == (
        "50.00 % fewer",
        "20 of 40 units",
        True,
    )


def test_dense_against_pruned(finished):
    run = read_run(finished["accepted"])
    lines = {side.name: side for side in sides.sides(run, ACCURACY)}
    latency = run.result("validate").at("latency").value
    assert float(lines["Latency p50"].dense.raw) == latency["dense"]["p50_ms"]
    assert text_of(lines["Size on disk, exported"].change) == "\u221263.1 %"
    assert lines["Size on disk, exported"].bar == pytest.approx(36.9)
    assert text_of(lines["Memory that the model adds"].change) == "\u221242.9 %"
    assert lines["Speed-up, median of pairs"].dense is None
    assert "200 pairs" in lines["Speed-up, median of pairs"].note
    assert list(lines)[:2] == ["Accuracy", "Latency p50"]


def test_cycles_before_and_after_recovery(finished):
    run = read_run(finished["accepted"])
    cycles = path.cycles(run, ACCURACY)
    assert [text_of(row.before) for row in cycles.rows] == ["93.9 %", "86.1 %", "71.1 %"]
    assert [text_of(row.target) for row in cycles.rows] == ["35.2 %", "48.1 %", "50.0 %"]
    learnt = "Recovery learnt from the dense parent's outputs (weight 1), the labels (weight 0.5)."
    assert cycles.learnt_from == learnt
    assert cycles.plot is not None
    assert [mark.style for mark in cycles.plot.marks] == ["hollow"] * 3 + ["pruned"] * 3
    assert cycles.plot.lines[-1].points.count(" ") == 3  # from the dense parent over three cycles


def test_training_curves_put_the_cycles_one_after_the_other(finished):
    loss, metric = path.training(read_run(finished["accepted"]), ACCURACY)
    assert [rule.text for rule in loss.columns] == ["cycle 1", "cycle 2", "cycle 3"]
    assert [round(rule.at) for rule in loss.columns] == [0, 33, 65]
    assert len(loss.marks) == 3 * (4 + 5)
    assert sum(mark.radius > 4 for mark in metric.marks) == 3


def test_a_run_without_recovery_has_no_training_curves(finished):
    run = read_run(finished["accepted"])
    for i in (1, 2, 3):
        run = with_result(run, f"cycle-0{i}/recover", {"training": None, "budget": {"epochs": 0.0}})
    assert path.training(run, ACCURACY) == ()
    assert [row.epochs.text for row in path.cycles(run, ACCURACY).rows] == ["0", "0", "0"]


def test_widths_are_those_of_the_parent_and_of_the_last_cycle(finished):
    run = read_run(finished["hostile"])
    rows = path.widths(run)
    last = run.cycles[-1].plan.value["widths"]
    assert [(row.name, int(row.before.raw), int(row.after.raw)) for row in rows] == [
        (name, before, after) for name, (before, after) in last.items()
    ]
    assert max(row.before_bar for row in rows) == 100
    assert all(row.after_bar <= row.before_bar for row in rows)


def test_slices_come_worst_first_on_one_scale(finished):
    run = read_run(finished["refused"])
    slices = quality.slices(run, ACCURACY)
    changes = [float(row.change.raw) for row in slices.rows]
    evaluation = json.loads((finished["refused"] / "stages/evaluate/result.json").read_text())
    assert changes == sorted(changes)
    assert slices.rows[0].name == evaluation["worst"].removeprefix("class:")
    assert len(slices.rows) == 12
    assert slices.limit is not None
    assert slices.limit < slices.zero
    overall = slices.overall
    assert overall is not None
    assert overall.mood == "worse"
    assert overall.whisker is not None
    assert overall.whisker.low < overall.whisker.at < overall.whisker.high < slices.zero


def test_flips_are_those_that_were_counted(finished):
    flips = quality.flips(read_run(finished["refused"]))
    assert flips is not None
    assert (flips.lost.text, flips.gained.text, flips.test) == ("41", "9", "exact McNemar")


def test_latency_percentiles_are_the_recorded_ones(finished):
    run = read_run(finished["accepted"])
    latency = speed.latency(run)
    assert latency is not None
    p50 = run.result("validate").at("latency", "dense", "p50_ms").number
    assert latency.plots[0].columns[0].text == f"p50 {p50:.2f}\u202fms"
    assert latency.plots[0].x_ticks == latency.plots[1].x_ticks
    assert latency.setting == "onnxruntime, 1 thread, batch 1, Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"


def test_frozen_axes_with_one_cause_stand_together(finished):
    rows = record.frozen(read_run(finished["hostile"]))
    assert [(row.operator, len(row.axes)) for row in rows] == [
        ("aten.sort.default", 30),
        ("aten.sort.default", 30),
        ("output", 1),
        ("input", 1),
    ]
    assert rows[0].line == "model.py:41: values, _ = torch.sort(x, dim=1)"
    assert len(rows[0].first) + len(rows[0].others) == 30


def test_parity_and_laws(finished):
    run = read_run(finished["accepted"])
    chain = record.parity(run)
    assert [row.name for row in chain.rows] == [
        f"{side}, batch {n}" for side in ("dense", "pruned") for n in (1, 7)
    ]
    assert [text_of(row.agreement) for row in chain.rows] == ["100.0 %"] * 4
    laws = record.laws(run)
    assert [(law.cycle, law.law, law.groups.text) for law in laws[:3]] == [
        (1, "permutation", "20"),
        (1, "mask", "20"),
        (1, "form", "20"),
    ]
    assert [(form.cycle, form.form) for form in record.forms(run)] == [(1, "own class")]
