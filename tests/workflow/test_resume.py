"""Resuming: nothing finished is repeated, what depends on a change is, and a kill changes no bit."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunekit.errors import RunDirectoryError
from prunekit.workflow import make_report
from prunekit.workflow.opening import read_run
from prunekit.workflow.order import stages_of
from prunekit.workflow.run import _inputs
from prunekit.workflow.source import open_source, read_given

from .conftest import CYCLE, STAGES, Project

CYCLES = [f"cycle-0{number}/{stage}" for number in (1, 2) for stage in CYCLE]
AFTER = ["export", "validate", "evaluate", "gate"]


def decided(project: Project) -> dict[str, str]:
    """The digests of everything that is decided and trained, and of what is exported."""
    return {
        str(file.relative_to(project.run_dir)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(project.run_dir.rglob("*"))
        if file.suffix in (".safetensors", ".onnx") or file.name == "plan.json"
    }


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in (path / "stages").rglob("*")
        if file.is_file()
    }


def stale(project: Project) -> list[str]:
    """The stages whose own inputs have changed; what follows from their outputs shows when they run."""
    given = read_given(project.recipe)
    source = open_source(given)
    directory = read_run(project.run_dir)
    return [
        stage.name
        for stage in stages_of(given.recipe)
        if directory.why_stale(stage.name, _inputs(stage, source, directory))
    ]


def test_a_finished_run_repeats_nothing_and_writes_nothing(finished):
    before = contents(finished.run_dir)
    log, outcome = finished.run()
    assert log.ran == {}
    assert log.kept_stages == list(STAGES)
    assert contents(finished.run_dir) == before
    assert outcome.accepted


PLANS = [name for name in CYCLES if name.endswith("/plan")]
CHANGES = {
    "gates": ("min_size_reduction: 0.1", "min_size_reduction: 0.2", ["gate"]),
    "a gate less": ("  - min_size_reduction: 0.1\n", "", ["gate"]),
    "intervals": ("resamples: 1000", "resamples: 2000", ["evaluate"]),
    "pairs": ("pairs: 20", "pairs: 21", ["validate"]),
    "opset": ("validate:", "export: {opset: 19}\nvalidate:", ["export"]),
    "recovery": (
        "share_of_original: 0.5",
        "share_of_original: 0.4",
        ["cycle-01/recover", "cycle-02/recover"],
    ),
    "goal": ("remove: 0.5", "remove: 0.4", PLANS),
    "scope": ("remove: 0.5", "remove: 0.5, scope: global", PLANS),
    "limits": ("recover:", "groups: {round_to: 2}\nrecover:", PLANS),
    "criterion": (
        "criterion: taylor",
        "criterion: l2",
        [n for n in CYCLES if n.endswith(("/score", "/plan"))],
    ),
    "calibration": (
        ", batch_size: 16}\nrecover",
        ", examples: 32}\nrecover",
        [n for n in CYCLES if n.endswith("/score")],
    ),
    "parent": ("epochs: 3", "epochs: 4", ["baseline"]),
    "seed": ("seed: 3", "seed: 4", ["baseline", *(n for n in CYCLES if "plan" not in n), *AFTER[:3]]),
    "a default written out": ("seed: 3", "seed: 3\nthreads: 1\nexport: {opset: 20}", []),
    "a comment": ("seed: 3", "seed: 3  # why not", []),
}


@pytest.mark.parametrize(("old", "new", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_recipe_concerns_exactly_what_depends_on_it(finished, old, new, expected):
    finished.edit(old, new)
    assert stale(finished) == expected


def test_other_data_concerns_the_stages_that_use_it(finished):
    source = finished.path / "workload.py"
    text = source.read_text()
    source.write_text(text + "\n# the file is part of the workload\n")
    assert stale(finished) == list(STAGES[:-2])  # gate and report follow from what others find out


def test_new_gates_run_the_gate_and_the_report_and_can_refuse(finished):
    finished.edit("min_size_reduction: 0.1", "min_speedup: 1000")
    log, outcome = finished.run()
    assert list(log.ran) == ["gate", "report"]
    assert log.ran["gate"] == "changed: recipe.gates"
    assert not outcome.accepted
    assert [gate.passed for gate in outcome.gates] == [True, False]
    assert "1e+03x" in outcome.report.read_text()


def test_a_stage_that_gives_the_same_again_stops_the_change_there(finished):
    """All 48 calibration examples are used anyway, so the scores stay as they are and so does the rest."""
    before = decided(finished)
    finished.edit("criterion: taylor", "criterion: taylor, examples: 48")
    log, _ = finished.run()
    assert set(log.ran) == {"cycle-01/score", "cycle-02/score", "report"}
    assert log.ran["cycle-01/score"] == "changed: recipe.importance.examples"
    assert decided(finished) == before


def test_a_damaged_output_runs_its_stage_again_and_gives_the_same(finished):
    before = decided(finished)
    weights = finished.file("cycle-01/prune/weights.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    finished.file("cycle-02/plan/plan.json").unlink()
    log, _ = finished.run()
    assert log.ran["cycle-01/prune"] == "damaged: weights.safetensors"
    assert log.ran["cycle-02/plan"] == "damaged: plan.json"
    assert set(log.ran) <= {"cycle-01/prune", "cycle-02/plan", "report"}
    assert decided(finished) == before


def test_fewer_cycles_leave_no_trace_of_the_others(finished):
    finished.edit("cycles: 2", "cycles: 1")
    log, _ = finished.run()
    assert log.removed_stages == [f"cycle-02/{stage}" for stage in sorted(CYCLE)]
    assert not (finished.run_dir / "stages" / "cycle-02").exists()
    assert "baseline" in log.kept_stages
    assert "cycle-01/score" in log.kept_stages
    assert set(log.ran) == {"cycle-01/plan", "cycle-01/prune", "cycle-01/recover", *AFTER, "report"}


def test_the_report_is_made_again_from_a_finished_run(finished):
    page = finished.file("report/report.html")
    before = page.read_bytes()
    page.unlink()
    assert make_report(finished.run_dir) == page
    assert page.read_bytes() == before
    log, _ = finished.run()
    assert log.ran == {}


def test_no_report_of_an_unfinished_run(finished):
    finished.file("gate/stage.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"gate has not run.*prunekit run"):
        make_report(finished.run_dir)


def test_no_report_of_stages_that_do_not_fit_together(finished):
    directory = read_run(finished.run_dir)
    with directory.writing("cycle-02/recover", directory.record("cycle-02/recover").inputs) as out:
        for name in ("result.json", "weights.safetensors"):
            (out / name).write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"older than cycle-02/recover/weights\.safetensors"):
        make_report(finished.run_dir)


def test_no_report_of_results_that_are_older_than_the_recipe(finished):
    kept = finished.run_dir / "recipe.yaml"
    kept.write_text(kept.read_text().replace("pairs: 20", "pairs: 21"))
    with pytest.raises(RunDirectoryError, match=r"the stage validate is older than recipe\.validate"):
        make_report(finished.run_dir)


@pytest.mark.parametrize(
    ("place", "harm"),
    [
        ("evaluate/result.json", b"{}"),
        ("evaluate/result.json", None),
        ("validate/latency.parquet", b""),
        ("validate/latency.parquet", None),
        ("baseline/stage.json", b"["),
        ("baseline/stage.json", b"{}"),
    ],
)
def test_no_report_of_what_was_edited_and_the_next_run_makes_it_again(finished, place, harm):
    file = finished.file(place)
    if harm is None:
        file.unlink()
    else:
        file.write_bytes(harm)
    with pytest.raises(RunDirectoryError, match=rf"not finished: .*{place.partition('/')[0]}.*prunekit run"):
        make_report(finished.run_dir)
    log, outcome = finished.run()
    assert place.partition("/")[0] in log.ran
    assert outcome.accepted
    assert make_report(finished.run_dir) == outcome.report


def test_a_gate_that_was_edited_to_accept_is_judged_again(finished):
    finished.edit("min_size_reduction: 0.1", "min_size_reduction: 0.99")
    assert not finished.run()[1].accepted
    file = finished.file("gate/result.json")
    file.write_text(file.read_text().replace("false", "true"))
    log, outcome = finished.run()
    assert log.ran == {"gate": "damaged: result.json"}
    assert not outcome.accepted
    assert [gate.passed for gate in outcome.gates] == [True, False]


@pytest.mark.parametrize("moved", ["the directory", "the recipe", "both apart"])
def test_what_was_moved_goes_on_where_it_was(finished, moved):
    before = contents(finished.run_dir)
    if moved != "the directory":
        finished = finished.moved(recipe_to="deep/down")
    if moved != "the recipe":
        finished = finished.moved(run_to="elsewhere/runs/tiny")
    log, _ = finished.run()
    assert log.ran == {}
    assert contents(finished.run_dir) == before
    finished.edit("min_size_reduction: 0.1", "min_size_reduction: 0.2")  # now it is known here
    assert list(finished.run()[0].ran) == ["gate", "report"]


@pytest.mark.parametrize("other", ["recipe.yaml", "workload.py"])
def test_a_copy_that_was_edited_elsewhere_is_another_recipe(finished, other):
    before = contents(finished.run_dir)
    copy = finished.moved(recipe_to="copy")
    file = copy.recipe.with_name(other)
    file.write_text(file.read_text() + "\n# another one\n")
    with pytest.raises(RunDirectoryError, match=r"another recipe: its workload is '\.\./workload\.py'"):
        copy.run()
    assert contents(finished.run_dir) == before


def start(project: Project) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "prunekit.cli", "run", str(project.recipe), "--run-dir", str(project.run_dir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "random"},
    )


def kill_in(project: Project, stage: str) -> bool:
    """Start the command and kill it when the stage's directory appears; False if it finished before."""
    partial = project.file(stage).with_name(f".{project.file(stage).name}.partial")
    process = start(project)
    try:
        while process.poll() is None and not partial.exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    return process.returncode == -signal.SIGKILL


def kill_in_each(stages: tuple[str, ...], project: Project, reference: Project) -> None:
    for stage in stages:
        assert kill_in(project, stage), stage
        assert not project.file(stage).exists(), "killed too late to say anything"
    process = start(project)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert decided(project) == decided(reference)
    assert not list(project.run_dir.rglob(".*.partial"))


def test_kill_9_and_the_same_command_again_give_the_same_bits(project, first_run):
    kill_in_each(("cycle-02/recover",), project, first_run[0])


@pytest.mark.slow
def test_kill_9_in_every_stage_gives_the_same_bits(project, first_run):
    kill_in_each(STAGES, project, first_run[0])
