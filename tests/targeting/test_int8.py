"""Targets in int8: every candidate is quantized before it is measured; oracles: files and runtimes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from tests.targeting.test_reach import Network
from torch import nn

import prunekit as pk
from prunekit.errors import MeasurementError
from prunekit.measure import file_size
from prunekit.measure.target import QUANTIZED
from prunekit.targeting import rig as rigs


@pytest.fixture(scope="module", params=["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def planner(request, tmp_path_factory: pytest.TempPathFactory) -> pk.Planner:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exports")
    return pk.measure_target(
        Network().eval(),
        torch.randn(2, 3, 16, 16),
        target=pk.Target(request.param, threads=1, batch=4, precision="int8"),
        space=pk.Space(most_levels=3),
        timing=pk.Timing(variants=2, seconds=0.05, folder=folder, tables=folder / "tables"),
    )


def test_all_that_is_timed_is_quantized(planner):
    dense = planner.rig.artifact(planner.model, "dense")
    assert any(node.op_type in QUANTIZED for node in onnx.load(dense.path).graph.node)
    names = {path.name for path in planner.rig.folder.glob("*.onnx")}
    floats = {name for name in names if ".int8-" not in name}
    assert len(floats) == 3
    assert {name.partition(".int8-")[0] + ".onnx" for name in names - floats} == floats


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_an_operation_alone_is_quantized_too(planner, kind):
    models = planner.costs.latency.models
    operation = next(one for model in models for one in model.operations if one.kind == kind)
    in_floats = replace(planner.rig, target=replace(planner.rig.target, precision="fp32"))
    dense, found = (
        next(iter(rig.open_operation(operation).outputs().values())) for rig in (in_floats, planner.rig)
    )
    error = np.linalg.norm(found - dense) / np.linalg.norm(dense)
    assert 0 < error < 0.1


def test_a_size_is_that_of_the_quantized_file(planner):
    dense = file_size(planner.rig.artifact(planner.model, "dense").path)
    goal = pk.Goal("size_bytes", reach=0.7 * dense, tolerance=0.1)
    reached = planner.reach(goal)
    assert reached.measured[str(goal)] <= 0.77 * dense
    assert reached.measured[str(goal)] in {
        file_size(path) for path in planner.rig.folder.glob("*plan*.int8-*.onnx")
    }


@pytest.mark.slow
def test_a_memory_is_that_of_serving_the_quantized_file(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 8192), nn.ReLU(), nn.Linear(8192, 512)).eval()
    planner = pk.measure_target(
        model,
        torch.randn(2, 1024),
        target=pk.Target("onnxruntime", threads=1, batch=2, precision="int8"),
        space=pk.Space(most_levels=6),
        timing=pk.Timing(variants=1, seconds=0.05, folder=tmp_path, tables=tmp_path),
    )
    dense = planner.rig.peak_bytes(planner.rig.artifact(model, "dense"))
    goal = pk.Goal("memory_bytes", reach=dense - 10 * 2**20, tolerance=0.03)
    reached = planner.reach(goal)
    assert reached.measured[str(goal)] <= 1.03 * goal.reach


def test_a_scheme_is_that_of_the_whole_model(planner):
    assert planner.rig.scheme == "all"
    transformer = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(2), nn.Linear(16, 16), nn.Linear(16, 4)
    )
    graph = pk.trace(transformer.eval(), torch.randn(2, 3, 16, 16))
    assert rigs.rig_for(graph, planner.rig.target, planner.rig.folder).scheme == "weighted"


def test_floats_are_exported_once_for_both_precisions(planner, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("exported again")

    monkeypatch.setattr(rigs, "export_onnx", refused)
    target = pk.Target(planner.rig.target.runtime, threads=1, batch=4)
    again = rigs.rig_for(planner.groups.graph, target, planner.rig.folder, of=planner.rig.of)
    assert again.artifact(planner.model, "dense").path.endswith("dense.onnx")


def test_modules_are_not_quantized_here():
    with pytest.raises(MeasurementError, match="quantized as exported files"):
        pk.measure_target(
            Network().eval(),
            torch.randn(2, 3, 16, 16),
            target=pk.Target("torch_eager", threads=1, batch=2, precision="int8"),
        )
