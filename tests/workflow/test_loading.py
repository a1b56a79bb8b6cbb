"""``prunekit load`` on real ONNX files; what it prints is what the library measured."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from prunekit.cli import app
from prunekit.measure import LoadSettings, cost_per_million, find_meters
from prunekit.workflow import LoadRequest, measure_load

QUICK = ("--min-seconds", "0.1", "--min-queries", "700", "--rounds", "2")


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


def only(values):
    """The one scenario of the output."""
    (load,) = values["loads"]
    return load


def call(*arguments):
    return CliRunner().invoke(app, ["load", *map(str, arguments)])


@pytest.mark.parametrize(
    "scenario", ["single-stream", pytest.param("multi-stream", marks=pytest.mark.slow), "offline"]
)
def test_two_models_under_one_load(models, scenario):
    result = call(*models, "--scenario", scenario, *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    load = only(values)
    assert (values["protocol"], load["scenario"]) == ("LoadGen", scenario.replace("-", "_"))
    rows = {row["quantity"]: row for row in load["rows"]}
    rates = [one["per_second"] for one in load["found"]["dense"]]
    assert rows["samples per second"]["dense"] in rates
    assert len(rates) == len(load["found"]["pruned"]) == 2
    assert values["environment"]["threads"] == 1
    assert "not an audited benchmark result" in values["notes"][0]
    assert "MLPerf" not in result.stdout + result.stderr
    assert result.stderr.count("samples/s" if scenario == "offline" else "p99") == 4


def test_one_model_at_one_rate_with_its_price(models):
    arguments = ("--qps", "200", "--p99-ms", "500", "--price-per-hour", "3.6", *QUICK)
    result = call(models[0], *arguments, "--json")
    load = only(json.loads(result.stdout))
    assert load["found"]["settings"]["target_qps"] == 200
    assert load["found"]["issued"] == load["found"]["answered"] >= 700
    expected = cost_per_million(3.6, load["found"]["per_second"]).per_million
    assert load["costs"][0]["per_million"] == expected
    assert all(row["pruned"] is None for row in load["rows"])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_without_a_bound_one_after_another_and_all_at_once(models, runtime):
    """One model; both scenarios; latencies where samples come alone; the table has no empty column."""
    if runtime == "openvino":
        pytest.importorskip("openvino")
    quick = ("--min-seconds", "0.05", "--min-queries", "20", "--runtime", runtime)
    values = json.loads(call(models[0], *quick, "--json").stdout)
    assert [load["scenario"] for load in values["loads"]] == ["single_stream", "offline"]
    alone, together = ({row["quantity"] for row in load["rows"]} for load in values["loads"])
    assert alone - together == {f"latency, p{share}" for share in ("50", "90", "95", "97", "99", "99.9")}
    assert values["target"]["runtime"] == runtime
    shown = call(models[0], *quick).stdout
    assert re.findall(r"^ +(\S+) +dense *$", shown, flags=re.MULTILINE) == ["single-stream", "offline"]
    assert shown.count("not an audited benchmark result") == 1


def test_scenarios_are_measured_in_the_order_in_which_they_are_named(models):
    named = ("--scenario", "offline", "--scenario", "server", "--p99-ms", "500", "--qps", "200")
    result = call(models[0], *named, "--min-seconds", "0.05", "--min-queries", "20", "--json")
    offline, server = json.loads(result.stdout)["loads"]
    assert (offline["scenario"], server["scenario"]) == ("offline", "server")
    asked = [
        load["found"]["settings"][name] for load in (offline, server) for name in ("target_qps", "bound_ms")
    ]
    assert asked == [None, None, 200, 500]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_open_batch_is_served_in_calls_of_every_size(models, runtime):
    """Eight samples at once, in calls of at most three: three calls for each query."""
    if runtime == "openvino":
        pytest.importorskip("openvino")
    short = ("--min-seconds", "0.05", "--min-queries", "20")
    how = ("--runtime", runtime, "--scenario", "multi-stream", "--max-batch", "3", *short)
    found = only(json.loads(call(models[0], *how, "--json").stdout))
    assert found["found"]["issued"] == found["found"]["answered"] == 8 * found["found"]["queries"]
    assert found["found"]["calls"] == 3 * found["found"]["queries"]


def test_the_help_says_first_what_is_measured():
    said = " ".join(CliRunner().invoke(app, ["load", "--help"]).stdout.split("Arguments:")[0].split())
    assert "Without --p99-ms: samples one after another (single-stream), then all at once (offline)" in said
    assert "With --p99-ms 20: the most requests per second" in said


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
    assert found.rows == ()
    (load,) = found.loads
    low, middle, high = load.costs[0].low, load.costs[0].per_million, load.costs[0].high
    assert low <= middle <= high
    assert any("not valid" in note for note in load.notes)  # Ten queries are too few for a 99th percentile.


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--scenario", "stream"), 2, "Expected one of single-stream, multi-stream, server, offline"),
        (("--scenario", "server"), 2, "without a bound on the latency"),
        (("--qps", "20"), 2, "without a bound on the latency"),
        (("--p99-ms", "20", "--qps", "0"), 2, "--qps is 0"),
        (("--p99-ms", "0"), 2, "--p99-ms is 0"),
        (("--p99-ms", "nan"), 2, "--p99-ms is nan"),
        (("--runtime", "torch_eager"), 2, "one that takes ONNX files: onnxruntime or openvino"),
        (("--p99-ms", "20", "--price-per-hour", "-1"), 2, "price per hour is -1"),
        (("--p99-ms", "0.0000001"), 3, "one sample alone takes"),
        (("--scenario", "offline", "--p99-ms", "20"), 2, "the server scenario, the only one with a rate"),
        (("--scenario", "offline", "--threads", "9999"), 3, "9999 threads"),
        (("--scenario", "offline", "--inputs", "absent.npz"), 3, "no such file. Expected an .npz file"),
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
