"""``prunekit load`` on real ONNX files; what it prints is what the library measured."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from prunekit.cli import app
from prunekit.measure import LoadSettings, cost_per_million, find_meters
from prunekit.workflow import LoadRequest, measure_load

QUICK = ("--seconds", "0.1", "--queries", "700", "--rounds", "2")


@pytest.fixture
def models(tmp_path):
    """Two files ``y = x @ w`` with x ``[batch, 8]`` of which one is narrower."""
    paths = []
    for name, width in (("dense", 64), ("pruned", 4)):
        weight = numpy_helper.from_array(np.ones((8, width), np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, str(tmp_path / f"{name}.onnx"))
        paths.append(tmp_path / f"{name}.onnx")
    return paths


def call(*arguments):
    return CliRunner().invoke(app, ["load", *map(str, arguments)])


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "offline"])
def test_two_models_under_one_load(models, scenario):
    result = call(*models, "--scenario", scenario, *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert (values["protocol"], values["scenario"]) == ("LoadGen", scenario.replace("-", "_"))
    rows = {row["quantity"]: row for row in values["rows"]}
    rates = [one["per_second"] for one in values["found"]["dense"]]
    assert rows["samples per second"]["dense"] in rates
    assert len(rates) == len(values["found"]["pruned"]) == 2
    assert values["environment"]["threads"] == 1
    assert "not an audited benchmark result" in values["notes"][0]
    assert "MLPerf" not in result.stdout + result.stderr
    assert result.stderr.count("samples/s" if scenario == "offline" else "p99") == 4


def test_one_model_at_one_rate_with_its_price(models):
    arguments = ("--qps", "200", "--p99-ms", "500", "--price-per-hour", "3.6", *QUICK)
    result = call(models[0], *arguments, "--json")
    values = json.loads(result.stdout)
    assert values["found"]["settings"]["target_qps"] == 200
    assert values["found"]["issued"] == values["found"]["answered"] >= 700
    expected = cost_per_million(3.6, values["found"]["per_second"]).per_million
    assert values["costs"][0]["per_million"] == expected
    assert all(row["pruned"] is None for row in values["rows"])


def test_a_search_is_asked_for_by_a_bound_alone(models, monkeypatch):
    asked = {}

    def search(*runners, **how):
        asked.update(how, names=[runner.name for runner in runners])
        raise KeyboardInterrupt

    monkeypatch.setattr("prunekit.workflow.loading.compare_throughput", search)
    result = call(*models, "--p99-ms", "20", "--precision", "0.1", "--max-batch", "2", "--seed", "5")
    assert (result.exit_code, result.stderr) == (130, "Interrupted. Nothing was kept.\n")
    assert (asked["p99_ms"], asked["precision"]) == (20, 0.1)
    assert asked["names"] == ["dense.onnx", "pruned.onnx"]
    assert (asked["settings"].max_batch, asked["settings"].seed) == (2, 5)


def test_energy_is_absent_with_its_reason(models, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "prunekit.measure.energy.find_meters", lambda kind: find_meters(kind, powercap=tmp_path / "absent")
    )
    settings = LoadSettings("server", target_qps=200, min_seconds=0.05, min_queries=10)
    request = LoadRequest(*models, p99_ms=500, settings=settings, rounds=2, energy=True, price_per_hour=1.0)
    found = measure_load(request)
    assert found.energy is not None
    assert found.energy.energy is None
    assert any(note.startswith("Energy: RAPL is absent") for note in found.notes)
    assert not any("joules" in row.quantity for row in found.rows)
    low, middle, high = found.costs[0].low, found.costs[0].per_million, found.costs[0].high
    assert low <= middle <= high
    assert any("not valid" in note for note in found.notes)  # Ten queries are too few for a 99th percentile.


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--scenario", "stream"), 2, "Expected one of single-stream, multi-stream, server, offline"),
        ((), 2, "without a bound on the latency"),
        (("--p99-ms", "20", "--qps", "0"), 3, "target_qps is 0"),
        (("--p99-ms", "0"), 3, "bound_ms is 0"),
        (("--p99-ms", "20", "--price-per-hour", "-1"), 2, "price per hour is -1"),
        (("--p99-ms", "0.0000001"), 3, "one sample alone takes"),
        (("--scenario", "offline", "--p99-ms", "20"), 3, "only the server scenario"),
        (("--scenario", "offline", "--threads", "9999"), 3, "9999 threads"),
        (("--scenario", "offline", "--inputs", "absent.npz"), 3, "no such file"),
    ],
)
def test_mistakes_are_one_paragraph(models, arguments, code, said):
    result = call(models[0], *arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""


def test_inputs_from_a_file_are_those_of_the_session(models, tmp_path):
    np.savez(tmp_path / "inputs.npz", x=np.zeros((2, 7), np.float32))
    result = call(models[0], "--scenario", "offline", "--inputs", tmp_path / "inputs.npz")
    assert result.exit_code == 3
    assert "'x' has the shape [2, 7]" in result.stderr
