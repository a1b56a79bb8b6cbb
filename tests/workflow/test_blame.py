"""Errors of the library rooms name the key and the line of the recipe that is to blame."""

import pytest
import torch
from safetensors.torch import save_file

from prunekit.errors import (
    GoalError,
    MeasurementError,
    ProofError,
    RecipeError,
    SelectionError,
    TraceError,
    TrainingError,
    WorkloadError,
)
from prunekit.recipe import Places, load_recipe
from prunekit.workflow.blame import blaming

RECIPE = """\
name: tiny
workload: workload.py
goal:
  kind: macs
  reach: 100
parent: {checkpoint: dense.safetensors}
groups:
  only: [a.*, b.*]
  ignore:
    - c.*
  round_to: 4
recover: {epochs: 1}
"""
BLAMED = {
    "a pattern": (SelectionError("the pattern 'b.*' matches no group"), "", "groups.only[1] (line 8)", ""),
    "a pattern in a list": (SelectionError("'c.*' matches no group"), "", "groups.ignore[0] (line 10)", ""),
    "a limit": (SelectionError("It is 4", where="round_to"), "", "groups.round_to (line 11)", ""),
    "a limit by default": (SelectionError("It is 1", where="min_units"), "", "groups.min_units (line 7)", ""),
    "another choice": (SelectionError("No", where="group 'x'"), "", "groups (line 7)", "group 'x'"),
    "the scope": (SelectionError("It is 'x'", where="scope"), "", "goal.scope (line 3)", ""),
    "the goal": (GoalError("Too much", where="goal"), "cycle-01/plan", "goal.reach (line 5)", ""),
    "the target": (
        MeasurementError("Too noisy", where="goal 2 speedup"),
        "cycle-01/plan",
        "target",
        "goal 2 speedup",
    ),
    "its kind": (GoalError("Unknown", where="kind"), "", "goal.kind (line 4)", ""),
    "the workload": (
        WorkloadError("NaN", where="w.py:3: split a"),
        "",
        "workload (line 2)",
        "w.py:3: split a",
    ),
    "the checkpoint": (
        WorkloadError("It does not fit", where="/x/dense.safetensors"),
        "baseline",
        "parent.checkpoint (line 6)",
        "/x/dense.safetensors",
    ),
    "the model": (TraceError("Cannot trace", where="w.py:9"), "", "workload (line 2)", "w.py:9"),
    "training the parent": (TrainingError("NaN", where="step 1"), "baseline", "parent (line 6)", "step 1"),
    "recovery": (TrainingError("NaN", where="step 1"), "cycle-02/recover", "recover (line 12)", "step 1"),
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def told(error, recipe, stage):
    with pytest.raises(type(error)) as caught, blaming(Places(recipe), load_recipe(recipe), stage):
        raise error
    return caught.value


@pytest.mark.parametrize(("error", "stage", "key", "own"), BLAMED.values(), ids=BLAMED)
def test_the_key_and_the_line_come_before_the_errors_own_place(recipe, error, stage, key, own):
    error.add_note("In the stage x.")
    found = told(error, recipe, stage)
    assert found.where == f"{recipe}, {key}" + (f": {own}" if own else "")
    assert (found.given, found.expected, found.remedy) == (error.given, error.expected, error.remedy)
    assert found.__notes__ == ["In the stage x."]
    assert found.__cause__ is error


@pytest.mark.parametrize(
    "error", [ProofError("broken", where="x"), RecipeError("bad", where="y"), KeyError("z")]
)
def test_an_error_that_the_recipe_is_not_to_blame_for_stays_as_it_is(recipe, error):
    assert told(error, recipe, "baseline") is error


def test_training_that_diverges_names_the_section_and_leaves_no_directory(project):
    project.edit("epochs: 3, batch_size: 16", "epochs: 3, batch_size: 16, learning_rate: 1e30")
    with pytest.raises(TrainingError, match=r"recipe\.yaml, parent \(line 5\): training step \d+") as caught:
        project.run()
    assert caught.value.__notes__ == ["In the stage baseline."]
    assert not project.run_dir.exists()


def test_a_checkpoint_of_another_model_names_its_key_and_leaves_no_directory(project):
    save_file({"other": torch.zeros(1)}, project.path / "dense.safetensors")
    project.edit("parent: {epochs: 3, batch_size: 16}", "parent: {checkpoint: dense.safetensors}")
    project.edit("share_of_original: 0.5", "epochs: 0")
    with pytest.raises(WorkloadError, match=r"recipe\.yaml, parent\.checkpoint \(line 5\): .*does not fit"):
        project.run()
    assert not project.run_dir.exists()


def test_a_mistake_in_a_later_recipe_leaves_the_finished_run_as_it_was(finished):
    before = {path: path.read_bytes() for path in finished.run_dir.rglob("*") if path.is_file()}
    finished.edit("remove: 0.5", "remove: 0.999")
    with pytest.raises(GoalError, match=r"goal\.remove \(line 4\)"):
        finished.run()
    assert {path: path.read_bytes() for path in finished.run_dir.rglob("*") if path.is_file()} == before
