"""The command line without a run: arguments, exit codes, errors as one paragraph."""

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import prunekit
from prunekit.cli import app
from prunekit.errors import GoalError, TrainingError
from prunekit.evaluate import GateResult
from prunekit.workflow import Outcome, Row

RUN = "prunekit.workflow.run_recipe"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: tiny\nworkload: workload.py\ngoal: {remove: 1.2}\n")
    return path


@pytest.fixture
def outcome(tmp_path):
    gate = GateResult("min_speedup", False, 1.5, 2.0, "x", "The median speed-up is 1.5x.", "a#b")
    rows = (
        Row("quality (correct)", "", 0.97, 0.96, -0.01, -0.02, 0.0),
        Row("latency, median", "ms", 2.5, 1.0, None),
        Row("speed-up", "x", None, None, 2.5, 2.4, 2.6),
        Row("MACs", "", 1_500_000, 500_000, 2 / 3),
        Row("size", "bytes", 2_000_000, 999, 0.9995),
    )
    return Outcome(
        False, (gate,), rows, ("The machine was noisy.",), tmp_path / "stages/report/report.html", tmp_path
    )


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def raising(error):
    def run(*_, **__):
        raise error

    return run


def test_the_version():
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"prunekit {prunekit.__version__}\n")


def test_help_names_every_command():
    result = call("--help")
    assert result.exit_code == 0
    assert {"run", "inspect", "load", "target", "report"} <= set(
        re.findall(r"^ +(\w+) ", result.stdout, flags=re.MULTILINE)
    )


@pytest.mark.parametrize("arguments", [("rum",), ("run",), ("run", "a.yaml", "--fast"), ("run", "a", "b")])
def test_wrong_usage_ends_with_2_and_says_so_on_stderr(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage" in result.stderr


def test_an_error_is_one_paragraph_on_stderr(recipe):
    result = call("run", recipe)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {recipe}, goal.remove (line 3): It is 1.2.")
    assert result.stderr.count("\n") == 1


def test_a_traceback_only_with_debug(recipe):
    assert "Traceback" not in call("run", recipe).stderr
    assert "Traceback" in call("run", recipe, "--debug").stderr


@pytest.mark.parametrize(("error", "code"), [(GoalError("too much"), 2), (TrainingError("NaN"), 3)])
def test_the_exit_code_is_that_of_the_error(recipe, monkeypatch, error, code):
    error.add_note("In the stage baseline.")
    monkeypatch.setattr(RUN, raising(error))
    result = call("run", recipe)
    assert (result.exit_code, result.stderr) == (code, f"Error: {error} In the stage baseline.\n")


def test_an_unexpected_error_is_a_paragraph_with_its_place(recipe, monkeypatch):
    monkeypatch.setattr(RUN, raising(KeyError("x")))
    result = call("run", recipe)
    assert result.exit_code == 3
    assert re.search(r"unexpected KeyError: 'x' at .*test_cli\.py:\d+\. .*--debug", result.stderr)
    assert result.stderr.count("\n") == 1


def test_ctrl_c_is_clean(recipe, monkeypatch):
    monkeypatch.setattr(RUN, raising(KeyboardInterrupt()))
    result = call("run", recipe, "--debug")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted. Finished stages are kept; the same command goes on from there.\n"


def test_json_of_an_error(recipe):
    result = call("run", recipe, "--json")
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("RecipeError", 2)
    assert error["message"] in result.stderr


def test_json_is_all_there_is_on_stdout(recipe, monkeypatch, outcome):
    def run(*_, **__):
        print("the user's code prints")
        return outcome

    monkeypatch.setattr(RUN, run)
    result = call("run", recipe, "--json")
    values = json.loads(result.stdout)
    assert result.exit_code == 1
    assert values["accepted"] is False
    assert values["gates"][0]["name"] == "min_speedup"
    assert values["rows"][3] == {
        "quantity": "MACs",
        "unit": "",
        "dense": 1_500_000,
        "pruned": 500_000,
        "change": 2 / 3,
        "low": None,
        "high": None,
    }
    assert values["report"] == str(outcome.report)
    assert "the user's code prints" in result.stderr


def test_the_table_the_gates_and_the_report(recipe, monkeypatch, outcome):
    monkeypatch.setattr(RUN, lambda *_, **__: outcome)
    result = call("run", recipe)
    assert result.exit_code == 1
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for line in (
        "quality (correct) 0.9700 0.9600 -0.0100 (-0.0200 to +0.0000)",
        "latency, median 2.5 ms 1 ms",
        "speed-up 2.50x (2.40 to 2.60)",
        "MACs 1.5 M 500 k -66.7%",
        "size 2 MB 999 B -100.0%",
        "The machine was noisy.",
        "min_speedup failed The median speed-up is 1.5x.",
    ):
        assert line in lines
    assert lines[-1] == f"Refused. Report: {outcome.report}"
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("module", "late"),
    [("prunekit.cli", ["torch"]), ("prunekit.targeting", ["scipy.stats", "scipy.optimize", "onnxscript"])],
)
def test_what_takes_long_to_load_is_loaded_when_it_is_used(module, late):
    code = f"import sys, {module}; print([each for each in {late} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
