"""What runtimes tell of the operators inside of a model: each of them, by its kind and its shapes."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
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
