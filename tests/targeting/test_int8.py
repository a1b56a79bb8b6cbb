"""Targets in int8: every candidate is quantized before it is measured; oracles: files and runtimes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from tests.targeting.test_reach import Network

import prunekit as pk
from prunekit.errors import MeasurementError
from prunekit.measure import file_size
from prunekit.measure.target import QUANTIZED
from prunekit.targeting import rig as rigs
from prunekit.targeting.goal_figures import GoalFigures


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
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
    floats = {name for name in names if ".int8." not in name}
    assert len(floats) == 3
    assert names - floats == {name.replace(".onnx", ".int8.onnx") for name in floats}


def test_a_size_is_that_of_the_quantized_file(planner):
    dense = file_size(planner.rig.artifact(planner.model, "dense").path)
    goal = pk.Goal("size_bytes", reach=0.7 * dense, tolerance=0.1)
    reached = planner.reach(goal)
    assert reached.measured[str(goal)] <= 0.77 * dense
    assert reached.measured[str(goal)] in {
        file_size(path) for path in planner.rig.folder.glob("*plan*.int8.onnx")
    }


def test_memory_is_predicted_from_what_is_stored(planner):
    dense = planner.rig.peak_bytes(planner.rig.artifact(planner.model, "dense"))
    goal = pk.Goal("memory_bytes", reach=2 * dense, tolerance=0.1)
    figures = GoalFigures(planner.losses, planner.costs, planner.rig, planner.model)
    nothing = np.zeros(len(planner.costs.levers), dtype=np.int64)
    assert figures.predicted(goal, nothing) == pytest.approx(dense, rel=0.2)


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
