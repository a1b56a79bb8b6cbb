"""Recovery in a recipe: budgets, distillation, going on inside a stage, several processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.workflow.conftest import Project

from prunekit.errors import RecipeError, SelectionError, TrainingError
from prunekit.recover import Distillation, Trained, restart
from prunekit.workload import load_workload

ROOT = Path(__file__).parents[2]
BUDGET = "recover: {share_of_original: 0.5, batch_size: 16}"


def recovered(project, cycle="01"):
    return json.loads(project.file(f"cycle-{cycle}/recover/result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "asked", "steps"),
    [
        ("steps: 7", {"steps": 4}, 4),
        ("examples: 100", {"examples": 50}, None),
        ("seconds: 0.2", {"seconds": 0.1}, None),
    ],
)
def test_a_budget_is_shared_by_the_cycles(finished, budget, asked, steps):
    finished.edit(BUDGET, f"recover: {{{budget}, batch_size: 16}}")
    finished.run()
    for cycle in ("01", "02"):
        found = recovered(finished, cycle)
        assert found["budget"]["asked"] == asked
        assert steps in (None, found["training"]["steps"])
        assert found["training"]["examples_seen"] > 0


def test_a_pruned_model_learns_from_its_parent(finished):
    finished.edit(BUDGET, "recover: {epochs: 4, batch_size: 16, distill: {logits: 1, task: 0.5}}")
    finished.run()
    found = recovered(finished)
    assert found["distilled"]["logits"] == 1
    losses = [line["train_loss"] for line in found["training"]["epochs"][1:]]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_recovery_goes_on_as_the_parent_was_trained_and_by_what_each_cut_did(finished):
    assert recovered(finished)["began_with"] == restart(None, lambda: 0.0)  # As the parent: SGD.
    before = "parent: {epochs: 3, batch_size: 16"
    finished.edit(before, f"{before}, optimizer: adamw, learning_rate: 2e-3, weight_decay: 0.02")
    finished.run()
    trained = json.loads(finished.file("baseline/spent.json").read_text())["trained"]
    assert trained == {
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 0.02,
        "loss": trained["loss"],
    }
    for cycle in ("01", "02"):
        found = recovered(finished, cycle)
        lost = found["training"]["epochs"][0]["validation_loss"]
        assert found["began_with"] == restart(Trained(**trained), lambda loss=lost: loss)
    given = {"schedule": "linear", "weight_decay": 0.0, "warmup": 0.2}
    finished.edit(BUDGET, f"recover: {{steps: 2, batch_size: 16, {str(given)[1:-1]}}}")
    finished.run()
    assert given.items() <= recovered(finished)["began_with"].items()


@pytest.mark.slow
def test_what_the_parent_gives_is_remembered_until_the_run_ends(finished):
    texts = [f"distill: {{logits: 1{remember}}}" for remember in ("", ", remember: true")]
    weights = []
    for before, text in zip([BUDGET, texts[0]], texts, strict=True):
        finished.edit(before, f"recover: {{epochs: 2, batch_size: 16, {text}}}" if before == BUDGET else text)
        finished.run()
        weights.append(finished.file("cycle-02/recover/weights.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert not (finished.run_dir / "unfinished").exists()


@pytest.mark.parametrize(
    ("section", "error", "message"),
    [
        ("recover: {epochs: 0, distill: {}}", RecipeError, "with a budget of 0"),
        ("recover: {steps: 5, seconds: 3}", RecipeError, "together with"),
        ("recover: {steps: 0}", RecipeError, "recover.steps"),
        ("recover: {distill: {logits: 0, task: 1}}", RecipeError, "All weights but the task's"),
        ("recover: {distill: {hidden: 1}}", SelectionError, "recover.*no layer of the teacher is left"),
        ("recover: {tokens: 50}", TrainingError, "budget is in tokens"),
    ],
)
def test_recovery_that_cannot_be_is_refused(finished, section, error, message):
    before = finished.file("cycle-01/recover/weights.safetensors").read_bytes()
    finished.edit(BUDGET, section)
    with pytest.raises(error, match=message):
        finished.run()
    assert finished.file("cycle-01/recover/weights.safetensors").read_bytes() == before


KILLED = """
import os, sys
from pathlib import Path
import prunekit.recover.training.run as training
from prunekit.workflow import run_recipe

save = training.write_checkpoint
def and_die(*given):
    save(*given)
    if sys.argv[3] == "die" and given[1] >= 3:
        os.kill(os.getpid(), 9)
training.write_checkpoint = and_die
run_recipe(Path(sys.argv[1]), run_dir=Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_stage_goes_on_where_it_was(finished):
    """The oracle is the same recipe, not killed."""
    finished.edit(BUDGET, "recover: {epochs: 4, batch_size: 16, checkpoint_seconds: 0.000001}")
    expected = finished.run_dir.with_name("expected")
    command = [sys.executable, "-c", KILLED, finished.recipe]
    subprocess.run([*command, expected, "live"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    killed = subprocess.run([*command, finished.run_dir, "die"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -9
    assert list((finished.run_dir / "unfinished").glob("cycle-01-recover/*/checkpoints/step-*"))
    finished.run()
    assert recovered(finished)["training"]["resumed_at"] == 3
    assert not (finished.run_dir / "unfinished").exists()
    for cycle in ("01", "02"):
        name = f"cycle-{cycle}/recover/weights.safetensors"
        assert finished.file(name).read_bytes() == (expected / "stages" / name).read_bytes()


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc-per-node=2", "--standalone"),
    "accelerate": (
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"),
    ),
}
"""What starts two processes of ``-m prunekit``. Without ``--multi_gpu``, accelerate starts one of them."""


def launch(project: Project, launcher: str) -> None:
    """Two processes, as a user would start them, and every gate passes."""
    logs = project.path / "logs"
    subprocess.run(
        [
            *(sys.executable, "-m", *LAUNCHERS[launcher], "--tee=3", f"--log_dir={logs}"),
            *("-m", "prunekit", "run", str(project.recipe), "--run-dir", str(project.run_dir)),
        ],
        check=True,
        timeout=300,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}"},
    )
    assert sorted(log.parent.name for log in logs.rglob("stdout.log")) == ["0", "1"]  # Of each rank.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "shard"), [("torchrun", ""), ("torchrun", ", shard: true"), ("accelerate", "")]
)
def test_two_processes_run_a_recipe(finished, launcher, shard):
    """From the same parent on: calibration is pooled to the same plan, and recovery is shared."""
    finished.edit(BUDGET, f"recover: {{epochs: 2, batch_size: 16{shard}}}")
    expected = json.loads(finished.file("cycle-01/plan/plan.json").read_text())
    shutil.rmtree(finished.file("cycle-01/score"))
    launch(finished, launcher)
    assert json.loads(finished.file("cycle-01/plan/plan.json").read_text())["keep"] == expected["keep"]
    assert recovered(finished)["training"]["steps"] > 0
    assert finished.file("report/report.html").exists()


@pytest.mark.slow
def test_what_another_parent_gave_is_made_anew(finished):
    """What a killed run of an edited recipe left in ``unfinished/``; the oracle is a run without it."""
    finished.edit(BUDGET, "recover: {epochs: 2, batch_size: 16, distill: {logits: 1, remember: true}}")
    finished.run()
    expected = finished.file("cycle-02/recover/weights.safetensors").read_bytes()
    splits = load_workload(finished.path / "workload.py").splits.deciding
    torch.manual_seed(7)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3)).eval()
    other(*splits.train.batch([0]).args)
    Distillation(other).remember(splits.train, finished.run_dir / "unfinished" / "kept" / "parent")
    for cycle in ("01", "02"):
        shutil.rmtree(finished.file(f"cycle-{cycle}/recover"))
    finished.run()
    assert finished.file("cycle-02/recover/weights.safetensors").read_bytes() == expected
