"""The commands on a real run."""

import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from prunekit.cli import app
from prunekit.workflow.opening import Identity, open_run, read_run

from .conftest import STAGES


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_run_says_what_came_out_and_where_the_report_is(finished):
    result = call("run", finished.recipe, "--run-dir", finished.run_dir)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"Accepted. Report: {finished.file('report/report.html')}"
    assert result.stderr.splitlines() == [f"{stage}: done before" for stage in STAGES]


def test_a_refused_run_ends_with_1(finished):
    finished.edit("min_size_reduction: 0.1", "min_size_reduction: 0.99")
    result = call("run", finished.recipe, "--run-dir", finished.run_dir, "--json")
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert values["accepted"] is False
    assert [gate["passed"] for gate in values["gates"]] == [True, False]


def test_the_run_directory_is_called_after_the_recipe(finished, monkeypatch):
    (finished.path / "runs").mkdir()
    finished.run_dir.rename(finished.path / "runs" / "tiny")
    monkeypatch.chdir(finished.path)
    result = call("run", "recipe.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "Accepted. Report: runs/tiny/stages/report/report.html"


def test_damage_is_told_even_where_there_is_no_terminal(finished):
    finished.file("gate/result.json").write_text("{}")
    result = call("run", finished.recipe, "--run-dir", finished.run_dir)
    assert result.exit_code == 0
    lines = [line for line in result.stderr.splitlines() if not line.endswith(": done before")]
    assert lines[0] == "gate: begins again; damaged: result.json"
    assert re.fullmatch(r"gate: done in \d+\.\d s", lines[1])


def test_a_run_directory_of_another_recipe_ends_with_2(finished):
    finished.edit("name: tiny", "name: other")
    result = call("run", finished.recipe, "--run-dir", finished.run_dir)
    assert result.exit_code == 2
    assert "belongs to another recipe" in result.stderr
    assert read_run(finished.run_dir).record("gate") is not None


def test_a_run_directory_in_use_ends_with_2(finished):
    values = json.loads((finished.run_dir / "run.json").read_text())
    with open_run(finished.run_dir, Identity(**values)):
        result = call("run", finished.recipe, "--run-dir", finished.run_dir)
        again = call("report", finished.run_dir)
    for refused in (result, again):
        assert refused.exit_code == 2
        assert f"at work in this run directory (process {os.getpid()})" in refused.stderr


def test_a_place_that_cannot_be_written_to_ends_with_3(finished):
    result = call("run", finished.recipe, "--run-dir", "/proc/here")
    assert result.exit_code == 3
    assert "/proc/here: It cannot be read or written" in result.stderr


def test_report_prints_the_path_of_the_page(finished):
    page = finished.file("report/report.html")
    page.unlink()
    result = call("report", finished.run_dir)
    assert (result.exit_code, result.stdout) == (0, f"{page}\n")
    assert page.exists()
    assert json.loads(call("report", finished.run_dir, "--json").stdout) == {"report": str(page)}


def test_report_of_something_else_ends_with_2(tmp_path):
    result = call("report", tmp_path)
    assert result.exit_code == 2
    assert "no run.json" in result.stderr


@pytest.mark.parametrize("source", ["recipe.yaml", "workload.py"])
def test_inspect_shows_groups_and_what_is_frozen_and_why(project, source):
    result = call("inspect", project.path / source)
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0
    assert "stripes: Net, 3,271 parameters, 105,456 MACs per example" in text
    assert "stem.0:channel channel 12" in text
    assert "fc.weight:0 (3) the model's outputs keep their shape [output]" in text
    assert f"{project.path / 'workload.py'}:24: return self.fc" in text
    values = json.loads(call("inspect", project.path / source, "--json").stdout)
    assert {group["name"]: group["size"] for group in values["groups"]} == {
        "stem.0:channel": 12,
        "head.0:channel": 16,
    }
    assert values["cost"]["params"] == 3271
    assert values["frozen"][0]["reason"]


def test_inspect_lists_every_slice_on_demand(project):
    result = call("inspect", project.path / "workload.py", "--slices")
    assert result.exit_code == 0
    assert (
        result.stdout
        == f"""\
stripes: Net, 3,271 parameters, 105,456 MACs per example

stem.0:channel: channel, 12 units
  stem.0.weight dim 0, producer
  stem.0.bias dim 0, follower
  stem.1.weight dim 0, follower
  stem.1.bias dim 0, follower
  body.0.weight dim 0, producer
  body.0.weight dim 1, consumer
  body.0.bias dim 0, follower
  body.1.weight dim 0, follower
  body.1.bias dim 0, follower
  head.0.weight dim 1, consumer
  stem.1.running_mean dim 0, follower
  stem.1.running_var dim 0, follower
  body.1.running_mean dim 0, follower
  body.1.running_var dim 0, follower

head.0:channel: channel, 16 units
  head.0.weight dim 0, producer
  head.0.bias dim 0, follower
  fc.weight dim 1, consumer

frozen fc.weight:0, 3 indices: the model's outputs keep their shape [output]
  {project.path / "workload.py"}:24: return self.fc(self.dropout(self.head(x).mean(dim=(2, 3))))
  fc.weight dim 0
  fc.bias dim 0

frozen body:branch, 1 indices: granularity branch was not asked for [selection]
  body.0.weight dim 0
  body.0.bias dim 0
  body.1.weight dim 0
  body.1.bias dim 0
  body.1.running_mean dim 0
  body.1.running_var dim 0
"""
    )


HEAD = [
    {"tensor": "head.0.weight", "dim": 0, "role": "producer", "indices": 16},
    {"tensor": "head.0.bias", "dim": 0, "role": "follower", "indices": 16},
    {"tensor": "fc.weight", "dim": 1, "role": "consumer", "indices": 16},
]


@pytest.mark.parametrize("options", [(), ("--slices",)])
def test_inspect_as_json_always_has_the_slices(project, options):
    values = json.loads(call("inspect", project.recipe, "--json", *options).stdout)
    slices = {group["name"]: group["slices"] for group in values["groups"]}
    assert slices["head.0:channel"] == HEAD
    assert len(slices["stem.0:channel"]) == 14
    frozen = values["frozen"][0]
    assert [(part["tensor"], part["dim"], part["indices"]) for part in frozen["slices"]] == [
        ("fc.weight", 0, 3),
        ("fc.bias", 0, 3),
    ]


def test_the_baseline_records_slices_and_shapes_in_the_models_order_and_the_page_draws_them(first_run):
    project, _, _ = first_run
    recorded = json.loads(project.file("baseline/result.json").read_text())
    assert {group["name"]: group["slices"] for group in recorded["groups"]}["head.0:channel"] == HEAD
    assert list(recorded["tensors"].items())[:6] == [
        ("stem.0.weight", [12, 1, 3, 3]),
        ("stem.0.bias", [12]),
        ("stem.1.weight", [12]),
        ("stem.1.bias", [12]),
        ("stem.1.running_mean", [12]),
        ("stem.1.running_var", [12]),
    ]
    page = project.file("report/report.html").read_text()
    assert 'title="stem.0:channel, consumer: weight dim 1, 12 of 12 indices">C<' in page
    assert 'title="stem.0:channel, follower: weight, bias, running_mean, running_var dim 0, 12 of 12' in page


def test_inspect_follows_the_recipes_choice_of_groups(project):
    project.edit("recover:", "groups: {ignore: ['head.0:*']}\nrecover:")
    values = json.loads(call("inspect", project.recipe, "--json").stdout)
    assert [group["name"] for group in values["groups"]] == ["stem.0:channel"]
    assert any("head.0:*" in item["reason"] for item in values["frozen"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.py", None, "no such file"),
        ("broken.py", "def workload(:", "SyntaxError"),
        ("empty.py", "", "no function workload()"),
        ("failing.py", "def workload():\n    return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_workload_that_cannot_be_used_ends_with_2(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    result = call("inspect", tmp_path / name)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_model_that_cannot_be_traced_ends_with_3(project):
    source = (project.path / "workload.py").read_text()
    (project.path / "workload.py").write_text(
        source.replace("x = self.stem(image)", "x = self.stem(image) if float(image.sum()) > 0 else image")
    )
    result = call("run", project.recipe, "--run-dir", project.run_dir)
    assert result.exit_code == 3
    assert f"{project.recipe}, workload (line 2): {project.path / 'workload.py'}:22: " in result.stderr
    assert "torch.export cannot trace Net" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not project.run_dir.exists()


def test_a_goal_out_of_reach_ends_with_2_before_anything_is_trained(project):
    project.edit("remove: 0.5", "remove: 0.999")
    result = call("run", project.recipe, "--run-dir", project.run_dir)
    assert result.exit_code == 2
    assert result.stderr.startswith(
        f"Error: {project.recipe}, goal.remove (line 4): The goal is 0.999 fewer macs"
    )
    assert "within 0.05 of the asked one" in result.stderr
    assert not project.run_dir.exists()


def test_a_pattern_that_matches_nothing_ends_with_2_before_anything_is_trained(project):
    project.edit("recover:", "groups:\n  ignore:\n    - stem.*\n    - stm.*\nrecover:")
    for result in (
        call("run", project.recipe, "--run-dir", project.run_dir),
        call("inspect", project.recipe),
    ):
        assert result.exit_code == 2
        assert (
            f"{project.recipe}, groups.ignore[1] (line 11): the pattern 'stm.*' matches no" in result.stderr
        )
    assert not project.run_dir.exists()


def test_the_installed_command_says_one_line_for_each_stage_when_piped(finished):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "prunekit.cli",
            "run",
            str(finished.recipe),
            "--run-dir",
            str(finished.run_dir),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.splitlines() == [f"{stage}: done before" for stage in STAGES]
    assert "\x1b" not in done.stdout
    assert not any(word in done.stdout for word in ("baseline", "cycle-01", "kept", "done"))


def test_a_log_of_a_first_run_has_the_beginning_and_the_end_of_every_stage(project):
    done = subprocess.run(
        [sys.executable, "-m", "prunekit.cli", "run", str(project.recipe), "--json"],
        cwd=project.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["run_dir"] == "runs/tiny"
    said = [re.sub(r"\d+\.\d s", "N s", line) for line in done.stderr.splitlines()]
    assert said == [line for stage in STAGES for line in (f"{stage}: begins", f"{stage}: done in N s")]
