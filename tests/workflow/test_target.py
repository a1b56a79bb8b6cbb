"""The command ``target`` over a machine whose figures are given; nothing is timed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from prunekit.cli import app
from prunekit.measure import FoundRuntime, Machine, environment
from prunekit.measure.probes import NoiseFloor, SparseFormat, Throughput, WidthSteps
from prunekit.types import Speedup
from prunekit.workflow import describe_target, machine_headline, machine_tables, machine_values

MEASURE = "prunekit.workflow.target.describe_machine"
SPEEDUP = Speedup(1.004, 0.99, 1.02, 0.95, 60)


@pytest.fixture
def machine():
    return Machine(
        environment=environment(2),
        threads=2,
        runtimes=(
            FoundRuntime("onnxruntime", "1.31.1", "prunekit", True),
            FoundRuntime("openvino", None, "prunekit[openvino]", False),
        ),
        throughput=(
            Throughput("onnxruntime", "cpu", "fp32", 220.4, None),
            Throughput("onnxruntime", "cpu", "int8", None, None, None, "the kernel is missing"),
        ),
        sparsity=(SparseFormat("onnxruntime", "cpu", "MatMul", "2:4", "dense", SPEEDUP, "no gain"),),
        widths=(
            WidthSteps("onnxruntime", "cpu", "MatMul", (68, 128), (1.0, 2.0), 16, 0.1),
            WidthSteps("onnxruntime", "cpu", "Conv", (68, 128), (1.0, 2.0), 4, 1.0),
        ),
        noise=(NoiseFloor("onnxruntime", "cpu", SPEEDUP, 12, True),),
        advice=("Use structured pruning.",),
        seconds=3.2,
    )


@pytest.fixture
def given(monkeypatch, machine):
    """What the command asks the measuring room for."""
    asked = {}

    def describe(**arguments):
        asked.update(arguments)
        for part in ("throughput", "noise"):
            arguments["progress"](part, 0, 1)
            arguments["progress"](part, 1, 1)
        return machine

    monkeypatch.setattr(MEASURE, describe)
    return asked


def call(*arguments):
    return CliRunner().invoke(app, ["target", *arguments])


def test_json_is_one_object_with_every_figure(given, machine):
    result = call("--json", "--quick", "--threads", "2", "--runtime", "onnxruntime", "--runtime", "openvino")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record == json.loads(json.dumps(machine_values(machine)))
    assert {key: given[key] for key in ("runtimes", "threads", "quick")} == {
        "runtimes": ["onnxruntime", "openvino"],
        "threads": 2,
        "quick": True,
    }
    assert record["throughput"][0]["gflops"] == 220.4
    assert record["sparsity"][0]["speedup"] == {
        "median": 1.004,
        "low": 0.99,
        "high": 1.02,
        "confidence": 0.95,
        "pairs": 60,
    }
    assert record["advice"] == ["Use structured pruning."]
    assert "throughput: begins" in result.stderr


def test_people_read_the_same_figures(given, machine):
    result = call()
    assert result.exit_code == 0
    assert given["runtimes"] is None
    assert machine_headline(machine).split(";")[0] in result.stdout
    assert "measured with 2 threads" in machine_headline(machine)
    for text in (
        'pip install "prunekit[openvino]"',
        "220",
        "the kernel is missing",
        "1.00x (0.99 to 1.02)",
        "none above 4",
        "Use structured pruning.",
    ):
        assert text in result.stdout
    for table in machine_tables(machine):
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_a_watcher_hears_every_part_begin_and_end(given):
    heard = []

    class Hearing:
        def begins(self, stage, why):
            heard.append(("begins", stage))

        def progress(self, stage, done, total):
            heard.append((done, total))

        def ends(self, stage, seconds):
            assert seconds >= 0
            heard.append(("ends", stage))

    describe_target(watcher=Hearing())
    assert heard == [
        part
        for name in ("throughput", "noise")
        for part in (("begins", name), (0, 1), (1, 1), ("ends", name))
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--runtime", "tensorrt"), "There is no runtime 'tensorrt'. Expected one of onnxruntime"),
        (("--threads", "1000"), "1000 threads were asked for"),
    ],
)
def test_a_target_that_is_not_there_ends_with_3(arguments, said):
    result = call("--json", *arguments)
    assert result.exit_code == 3
    assert said in json.loads(result.stdout)["error"]["message"]
    assert said in result.stderr
