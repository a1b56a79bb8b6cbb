"""A whole run: its stages, their files, what they may see, and what they leave behind."""

import ast
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional

import prunekit.workflow.run as workflow_run
from prunekit.errors import ProofError, RecipeError, WorkloadError
from prunekit.plan import PruningPlan
from prunekit.recipe import load_recipe
from prunekit.workflow import Silent
from prunekit.workflow.order import stages_of
from prunekit.workload import DecidingSplits, load_workload

from .conftest import STAGES, Project
from .tiny_workload import workload


def result(project: Project, stage: str) -> dict:
    return json.loads(project.file(f"{stage}/result.json").read_text())


def test_every_stage_runs_once_in_order(first_run):
    _, log, _ = first_run
    assert tuple(log.ran) == STAGES
    assert tuple(log.ended) == STAGES
    assert set(log.ran.values()) == {"it has not run yet"}


def test_the_files_of_the_run_directory(first_run):
    project, _, _ = first_run
    files = {
        str(file.relative_to(project.run_dir))
        for file in project.run_dir.rglob("*")
        if file.is_file() and file.name not in ("stage.json", "result.json", ".lock")
    }
    cycle = (
        "score/scores.safetensors",
        "plan/plan.json",
        "prune/weights.safetensors",
        "recover/weights.safetensors",
    )
    assert files == {
        "run.json",
        "recipe.yaml",
        *(f"stages/baseline/{name}" for name in ("weights.safetensors", "unsound.json", "spent.json")),
        *(f"stages/cycle-{number}/{name}" for number in ("01", "02") for name in cycle),
        *(f"stages/export/{name}" for name in ("dense.onnx", "pruned.onnx", "exports.json")),
        "stages/validate/latency.parquet",
        *(f"stages/evaluate/{name}.parquet" for name in ("dense", "pruned")),
        "stages/report/report.html",
    }
    for stage in STAGES:
        record = json.loads(project.file(f"{stage}/stage.json").read_text())
        assert record["stage"] == stage
        assert "result.json" in record["outputs"]
    assert (project.run_dir / "recipe.yaml").read_bytes() == project.recipe.read_bytes()


def test_the_goal_is_reached_over_the_cycles_of_the_curve(first_run):
    project, _, _ = first_run
    first, last = (
        PruningPlan.from_json(project.file(f"cycle-0{n}/plan/plan.json").read_text()) for n in (1, 2)
    )
    dense = result(project, "baseline")["cost"]["macs"]
    assert first.before == last.before
    assert first.before.macs == dense
    # cubic, two cycles: 1 - (1 - 1/2)^3 = 0.875 of the way first; within the recipe's tolerance of 5 %
    assert first.after.macs == pytest.approx(dense * (1 - 0.875 * 0.5), rel=0.05)
    assert last.after.macs == pytest.approx(dense * 0.5, rel=0.05)
    for name, kept in first.keep.items():
        assert set(last.keep[name]) <= set(kept)


def test_the_last_weights_fit_the_last_plan(first_run):
    project, _, _ = first_run
    plan = PruningPlan.from_json(project.file("cycle-02/plan/plan.json").read_text())
    weights = load_file(project.file("cycle-02/recover/weights.safetensors"))
    dense = load_file(project.file("baseline/weights.safetensors"))
    assert weights.keys() == dense.keys()
    parameters = sum(
        array.size for name, array in weights.items() if "running" not in name and "num_b" not in name
    )
    assert parameters == plan.after.params


def test_the_proof_and_the_parity_chain_hold(first_run):
    project, _, _ = first_run
    for cycle in ("cycle-01", "cycle-02"):
        assert result(project, f"{cycle}/prune")["proof"]["passed"]
    parity = result(project, "validate")["parity"]
    assert parity["passed"]
    assert {"max_abs", "max_rel", "tolerance", "name", "passed"} <= parity["steps"][0].keys()


def test_the_budget_of_recovery_is_a_share_of_what_the_parent_took(first_run):
    project, _, _ = first_run
    parent = result(project, "baseline")["training"]["examples_seen"]
    parts = [result(project, f"cycle-0{number}/recover") for number in (1, 2)]
    assert parent == 3 * 192
    assert sum(part["training"]["examples_seen"] for part in parts) == 0.5 * parent
    assert [part["budget"]["share_of_original"] for part in parts] == [0.25, 0.25]


def test_the_outcome_tells_what_the_stages_found(first_run):
    project, _, outcome = first_run
    rows = {row.quantity: row for row in outcome.rows}
    evidence = {
        name: pd.read_parquet(project.file(f"evaluate/{name}.parquet")) for name in ("dense", "pruned")
    }
    times = pd.read_parquet(project.file("validate/latency.parquet"))
    quality = rows["quality (correct)"]
    assert quality.dense == pytest.approx(evidence["dense"]["correct"].mean())
    assert quality.change == pytest.approx(
        evidence["pruned"]["correct"].mean() - evidence["dense"]["correct"].mean()
    )
    assert rows["speed-up"].change == pytest.approx(np.median(times["dense_ms"] / times["pruned_ms"]))
    assert rows["latency, median"].pruned == pytest.approx(np.median(times["pruned_ms"]))
    assert rows["size"].pruned == project.file("export/pruned.onnx").stat().st_size
    assert rows["MACs"].change == pytest.approx(0.5, abs=0.05)
    noise = result(project, "validate")["latency"]["noise"]
    assert outcome.notes == (() if noise["steady"] else (f"{noise['statement']}.",))
    assert outcome.accepted
    assert [gate.passed for gate in outcome.gates] == [True, True]
    assert outcome.report == project.file("report/report.html")
    assert "<html" in outcome.report.read_text()


def test_training_and_timing_tell_how_far_they_are(first_run):
    _, log, _ = first_run
    for stage in ("baseline", "cycle-01/score", "cycle-02/recover", "export", "validate", "evaluate"):
        steps = log.steps[stage]
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1][0] == steps[-1][1]


def test_poisoned_test_data_changes_nothing_but_the_evaluation(first_run, project, monkeypatch):
    """The same recipe with other test images and labels: the same plans, weights and exported files."""
    jobs = {}
    make = workflow_run._Run._job

    def spy(run, stage, *others):
        jobs[stage.name] = make(run, stage, *others)
        return jobs[stage.name]

    monkeypatch.setattr(workflow_run._Run, "_job", spy)
    source = (project.path / "workload.py").read_text()
    poisoned = source.replace("examples(96, 3)", "poison(examples(96, 3))") + (
        "\n\ndef poison(data):\n"
        "    images, labels = data.tensors\n"
        "    return TensorDataset(100 - 50 * images.flip(3), (labels + 1) % 3)\n"
    )
    assert poisoned.count("poison") == 2
    (project.path / "workload.py").write_text(poisoned)
    project.run()
    clean = first_run[0]
    assert result(project, "evaluate")["overall"]["dense"] != result(clean, "evaluate")["overall"]["dense"]
    for stage in STAGES:
        for file in project.file(stage).iterdir():
            if file.suffix in (".safetensors", ".onnx") or file.name == "plan.json":
                assert file.read_bytes() == clean.file(f"{stage}/{file.name}").read_bytes(), file
    assert set(jobs) == set(STAGES) - {"report"}
    for name, job in jobs.items():
        assert isinstance(job.workload.splits, DecidingSplits)
        assert not hasattr(job.workload.splits, "test")
        assert (job.open_test is not None) == (name == "evaluate")


def test_everything_is_as_it_was_after_a_run(finished):
    finished.edit("min_size_reduction: 0.1", "min_size_reduction: 0.2")
    torch.set_num_threads(2)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    finished.run()
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_a_checkpoint_in_place_of_training(first_run, project):
    trained = first_run[0].file("baseline/weights.safetensors")
    (project.path / "dense.safetensors").write_bytes(trained.read_bytes())
    project.edit("parent: {epochs: 3, batch_size: 16}", "parent: {checkpoint: dense.safetensors}")
    project.edit("share_of_original: 0.5", "epochs: 0")
    project.edit("cycles: 2", "cycles: 1")
    project.run()
    assert project.file("baseline/weights.safetensors").read_bytes() == trained.read_bytes()
    assert result(project, "baseline")["training"] is None
    assert result(project, "cycle-01/recover")["training"] is None
    pruned, recovered = (
        project.file(f"cycle-01/{stage}/weights.safetensors") for stage in ("prune", "recover")
    )
    assert pruned.read_bytes() == recovered.read_bytes()


def test_norms_are_recalibrated_on_calibration_data_where_the_recipe_asks_for_it(first_run, project):
    # Oracle: mean and variance, in NumPy and float64, of what the first convolution gives for the split.
    trained = first_run[0].file("baseline/weights.safetensors")
    (project.path / "dense.safetensors").write_bytes(trained.read_bytes())
    project.edit("parent: {epochs: 3, batch_size: 16}", "parent: {checkpoint: dense.safetensors}")
    project.edit("share_of_original: 0.5", "epochs: 0, recalibrate: true")
    project.edit("cycles: 2", "cycles: 1")
    project.run()
    found = result(project, "cycle-01/recover")
    assert (found["training"], found["recalibrated"]["batches"]) == (None, 3)
    assert found["recalibrated"]["norms"] == ["stem.1", "body.1"]
    pruned, recovered = (
        load_file(project.file(f"cycle-01/{stage}/weights.safetensors")) for stage in ("prune", "recover")
    )
    changed = {name for name in pruned if not np.array_equal(pruned[name], recovered[name])}
    assert {name.rpartition(".")[2] for name in changed} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    images = workload().splits.calibration
    given = functional.conv2d(
        images.batch(images.order()).args[0],
        *(torch.from_numpy(pruned[f"stem.0.{leaf}"]) for leaf in ("weight", "bias")),
        padding=1,
    )
    values = given.double().numpy()
    np.testing.assert_allclose(recovered["stem.1.running_mean"], values.mean(axis=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(recovered["stem.1.running_var"], values.var(axis=(0, 2, 3), ddof=1), rtol=1e-5)


def test_a_share_of_an_unknown_budget_is_refused(project):
    source = (project.path / "workload.py").read_text()
    (project.path / "workload.py").write_text(source.replace("class_names=", 'checkpoint="a", class_names='))
    project.edit("parent: {epochs: 3, batch_size: 16}\n", "")
    with pytest.raises(
        RecipeError, match=r"recover\.share_of_original \(line 7\): The workload loads .*recover\.epochs"
    ):
        project.run()
    assert not project.run_dir.exists()


def test_a_file_that_the_recipe_names_and_that_is_missing(project):
    project.edit("workload.py", "wrkload.py")
    with pytest.raises(
        RecipeError, match=r"recipe\.yaml, workload \(line 2\): There is no file .*wrkload\.py"
    ):
        project.run()
    project.edit("wrkload.py", "workload.py")
    project.edit("{epochs: 3, batch_size: 16}", "{checkpoint: absent.safetensors}")
    project.edit("share_of_original: 0.5", "epochs: 1")
    with pytest.raises(RecipeError, match=r"parent\.checkpoint \(line 5\): There is no file"):
        project.run()
    assert not project.run_dir.exists()


def test_data_that_cannot_be_used_leaves_no_run_directory(project):
    source = (project.path / "workload.py").read_text()
    broken = source.replace("0.5 * noise", "0.5 * noise / (noise * 0)")
    assert broken != source
    (project.path / "workload.py").write_text(broken)
    with pytest.raises(
        WorkloadError, match=r"recipe\.yaml, workload \(line 2\): .*split train, example 0.* (NaN|infinite)"
    ):
        project.run()
    assert not project.run_dir.exists()


def test_more_threads_than_cores_are_refused_before_anything_is_trained(project):
    project.edit("pairs: 20", "pairs: 20, threads: 1000")
    with pytest.raises(RecipeError, match=r"recipe\.yaml, validate\.threads \(line 9\): 1000 threads"):
        project.run()
    assert not project.run_dir.exists()


def test_an_error_says_in_which_stage_and_nothing_of_the_stage_is_left(project, monkeypatch):
    class Failed:
        passed = False

        def __str__(self) -> str:
            return "permutation law: BROKEN"

    monkeypatch.setattr("prunekit.workflow.deciding.verify", lambda *_, **__: Failed())
    with pytest.raises(ProofError, match="breaks a law") as caught:
        project.run()
    assert caught.value.__notes__ == ["In the stage cycle-01/prune."]
    assert not project.file("cycle-01/prune").exists()
    assert not list(project.run_dir.rglob("*.partial"))
    assert project.file("cycle-01/plan/plan.json").exists()


def test_stages_are_given_only_the_files_they_declare():
    """A stage that reads a file it did not declare fails with KeyError: ``Job.files`` has no other."""
    source = Path(workflow_run.__file__).parent
    reading = [
        node.attr
        for name in ("deciding.py", "delivering.py", "models.py")
        for node in ast.walk(ast.parse((source / name).read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("run_dir", "stage_path")
    ]
    assert reading == []


def test_each_stage_reads_only_what_an_earlier_one_writes(first_run):
    project, _, _ = first_run
    written = set()
    for stage in stages_of(load_recipe(project.recipe)):
        assert set(stage.reads) <= written, stage.name
        outputs = json.loads(project.file(f"{stage.name}/stage.json").read_text())["outputs"]
        written |= {f"{stage.name}/{name}" for name in outputs}


def test_the_silent_watcher_hears_everything():
    silent = Silent()
    assert [silent.begins("a", "b"), silent.progress("a", 1, 2), silent.ends("a", 1.0)] == [None] * 3
    assert [silent.kept("a"), silent.removed("a")] == [None] * 2


def test_the_tiny_workload_is_one():
    workload = load_workload(Path(__file__).with_name("tiny_workload.py"))
    assert len(workload.splits.train) == 192
