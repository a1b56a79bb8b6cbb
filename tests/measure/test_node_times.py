"""What runtimes tell of the operators inside of a model: each of them, by its kind and its shapes."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from prunekit.deploy import export_onnx, feed
from prunekit.errors import MeasurementError
from prunekit.measure import RUNTIMES
from prunekit.measure.runtimes.node_times import LEAST_CALLS, MOST_CALLS, called

TELLING = [name for name, runtime in RUNTIMES.items() if runtime.profile is not None]


def profile(runtime: str, path, inputs):
    return RUNTIMES[runtime].profile(path, inputs, threads=1, precision="fp32", seconds=0.0)


@pytest.mark.parametrize("runtime", TELLING)
def test_every_convolution_and_product_is_there(tmp_path, runtime):
    """Oracle: the module."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(20, 20, 3, padding=1, groups=20),
        nn.Conv2d(20, 12, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 7),
    ).eval()
    x = torch.randn(2, 3, 16, 16)
    export = export_onnx(model, (x,), None, tmp_path / "model.onnx")
    nodes = profile(runtime, export.path, feed(export, (x,)))
    assert Counter(node.kind for node in nodes if node.kind in ("convolution", "linear")) == {
        "convolution": 3,
        "linear": 1,
    }
    assert [node.output[2:] for node in nodes if node.kind == "convolution"] == [(16, 16)] * 3
    assert [(node.data, node.output) for node in nodes if node.kind == "linear"] == [((2, 12), (2, 7))]
    assert all(node.ms >= 0 for node in nodes)
    assert sum(node.ms for node in nodes) > 0


@pytest.mark.parametrize("runtime", TELLING)
def test_a_file_that_is_none_is_said(tmp_path, runtime):
    path = tmp_path / "model.onnx"
    with pytest.raises(MeasurementError, match="no such file"):
        profile(runtime, path, {})
    path.write_bytes(b"not a model")
    with pytest.raises(MeasurementError, match="could not open"):
        profile(runtime, path, {"x": np.zeros((1, 3), np.float32)})


@pytest.mark.parametrize(("seconds", "calls"), [(0.0, LEAST_CALLS), (1e9, MOST_CALLS)])
def test_calls_go_on_for_some_time_within_bounds(seconds, calls):
    count: Counter = Counter()
    assert called(partial(count.update, "a"), seconds) == calls == count["a"]


@pytest.mark.parametrize("runtime", TELLING)
def test_shapes_that_differ_from_call_to_call_are_not_told(tmp_path, runtime):
    """As many rows as there are numbers above 0, each times a matrix."""
    matrix = numpy_helper.from_array(np.ones((4, 5), np.float32), "matrix")
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Transpose", ["places"], ["turned"], perm=[1, 0]),
        helper.make_node("Cast", ["turned"], ["floats"], to=1),
        helper.make_node("MatMul", ["floats", "matrix"], ["out"]),
    ]
    values = [helper.make_tensor_value_info("x", 1, [2, 3, 4, 5])]
    out = [helper.make_tensor_value_info("out", 1, [None, 5])]
    graph = helper.make_graph(nodes, "counting", values, out, [matrix])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    x = (np.random.default_rng(0).random((2, 3, 4, 5)) > 0.5).astype(np.float32)
    found = profile(runtime, tmp_path / "model.onnx", {"x": x})
    assert [node.kind for node in found].count("linear") == 1
