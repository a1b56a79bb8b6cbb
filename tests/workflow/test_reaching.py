"""A measured goal, end to end: its stages, what they leave behind, and what another goal repeats."""

import json
import shutil
from math import prod

import pytest

from prunekit.plan import PruningPlan
from prunekit.workflow.opening import read_run
from prunekit.workflow.order import stages_of
from prunekit.workflow.run import _inputs
from prunekit.workflow.source import open_source, read_given

from .conftest import Project, make_project

GOAL = "goal: {kind: speedup, reach: 1.5, tolerance: 0.25}"
TARGET = "target: {batch: 32, most_levels: 3, variants: 1, seconds: 0.05}\ngroups: {max_sparsity: 0.5}"
CYCLE = ("score", "target", "plan", "prune", "recover")
AFTER = ("export", "validate", "evaluate", "gate")


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    project = make_project(tmp_path_factory.mktemp("reached") / "project")
    project.edit("goal: {kind: macs, remove: 0.5, tolerance: 0.05}", f"{GOAL}\n{TARGET}")
    project.edit("parent: {epochs: 3", "parent: {epochs: 1")
    project.edit("criterion: taylor", "criterion: l2")
    return project, *project.run()


def result(project: Project, stage: str) -> dict:
    return json.loads(project.file(f"{stage}/result.json").read_text())


def plans(project: Project) -> list[dict]:
    return [result(project, f"cycle-0{number}/plan") for number in (1, 2)]


def test_the_target_is_measured_between_scoring_and_planning(run_once):
    _, log, outcome = run_once
    cycles = [f"cycle-0{number}/{stage}" for number in (1, 2) for stage in CYCLE]
    assert list(log.ran) == ["baseline", *cycles, *AFTER, "report"]
    assert {row.quantity for row in outcome.rows} >= {"speed-up", "MACs"}


def test_every_attempt_is_recorded(run_once):
    project, _, _ = run_once
    for plan in plans(project):
        assert [goal["kind"] for goal in plan["asked"]] == ["speedup"]
        assert plan["attempts"]
        for attempt in plan["attempts"]:
            assert len(attempt["predicted"]) == len(attempt["measured"]) == 1
            assert attempt["measured"][0] == attempt["speedup"]["median"]
            assert attempt["seconds"] >= attempt["choosing_s"] >= 0
        losses = [point["loss"] for point in plan["front"]]
        assert losses == sorted(losses)
        assert losses[0] == 0.0


def test_cycles_walk_the_curve_of_the_time(run_once):
    """Cubic, two cycles: 0.875 of the time that is to go is gone after the first, which may do all of it."""
    project, _, _ = run_once
    first, last = plans(project)
    whole = 1.5
    assert first["asked"][0]["reach"] == pytest.approx(1 / (1 - (1 - 1 / whole) * 0.875), rel=1e-5)
    assert last["asked"][0]["reach"] == pytest.approx(max(1, whole / first["speedup_after"]), rel=1e-5)
    steps = [plan["attempts"][-1]["speedup"]["median"] for plan in (first, last)]
    assert last["speedup_after"] == pytest.approx(prod(steps))
    for plan in (first, last):
        reached, asked = plan["attempts"][-1]["measured"][0], plan["asked"][0]["reach"]
        assert reached >= asked * (1 - 0.25)


def test_the_plans_continue_each_other_on_the_parent(run_once):
    project, _, _ = run_once
    first, last = (
        PruningPlan.from_json(project.file(f"cycle-0{number}/plan/plan.json").read_text())
        for number in (1, 2)
    )
    assert first.before == last.before
    assert last.after.macs <= first.after.macs < first.before.macs
    for name, kept in first.keep.items():
        assert set(last.keep[name]) <= set(kept)
    # The limit refers to the parent in every cycle.
    assert all(after >= before / 2 for before, after in last.widths.values())


def test_validation_says_whether_the_goal_holds(run_once):
    project, _, outcome = run_once
    validation = result(project, "validate")
    [goal] = validation["goals"]
    assert validation["latency"]["batch"] == 32
    assert goal["asked"] == 1.5
    assert goal["planned"] == plans(project)[-1]["speedup_after"]
    assert goal["validated"] == validation["latency"]["speedup"]["median"]
    assert goal["met"] == (goal["validated"] >= 1.5 * 0.75)
    assert goal["same_target"]
    assert any("was met in planning" in note for note in outcome.notes) != goal["met"]
    assert 'id="goal"' in outcome.report.read_text()


def test_another_goal_needs_no_new_measurement(run_once, tmp_path):
    project = Project(tmp_path / "project")
    shutil.copytree(run_once[0].path, project.path)

    def stale() -> list[str]:
        given = read_given(project.recipe)
        directory = read_run(project.run_dir)
        source = open_source(given)
        return [
            stage.name
            for stage in stages_of(given.recipe)
            if directory.why_stale(stage.name, _inputs(stage, source, directory))
        ]

    assert stale() == []
    project.edit("reach: 1.5", "reach: 1.2")
    assert stale() == ["cycle-01/plan", "cycle-02/plan", "validate"]
    project.edit("most_levels: 3", "most_levels: 4")
    assert stale()[:2] == ["cycle-01/target", "cycle-01/plan"]
