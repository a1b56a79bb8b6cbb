"""Real ONNX Runtime sessions; NumPy says what they should compute."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from prunekit.errors import MeasurementError
from prunekit.measure import SPINNING, available_cores, open_onnx
from prunekit.measure.runtimes import DTYPES
from prunekit.measure.session import open_session


def _in_numpy(path, x):
    w1, w2 = (numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer)
    return np.maximum(x @ w1, 0) @ w2


def test_outputs_are_those_of_numpy_at_any_batch_size(perceptron, x):
    runner = open_onnx(perceptron, x, threads=1)
    np.testing.assert_allclose(runner.outputs()["y"], _in_numpy(perceptron, x["x"]), rtol=1e-5, atol=1e-5)
    other = np.random.default_rng(1).random((7, 8), dtype=np.float32)
    found = runner.outputs({"x": other})["y"]
    np.testing.assert_allclose(found, _in_numpy(perceptron, other), rtol=1e-5, atol=1e-5)
    assert runner() is None
    assert runner.name == "perceptron.onnx"


@pytest.mark.parametrize("spinning", sorted(SPINNING))
def test_options_are_recorded_and_are_those_of_the_session(perceptron, x, spinning):
    runner = open_onnx(perceptron, x, threads=1, spinning=spinning)
    record = json.loads(json.dumps(runner.options))
    real = runner._session.get_session_options()
    assert record["intra_op_num_threads"] == real.intra_op_num_threads == 1
    assert record["inter_op_num_threads"] == real.inter_op_num_threads == 1
    assert real.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert real.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    for key, value in SPINNING[spinning].items():
        assert record[key] == value == real.get_session_config_entry(key)
    assert runner._session.get_providers() == ["CPUExecutionProvider"]


def test_more_threads_than_cores_are_refused(perceptron, x):
    cores = available_cores()
    assert open_onnx(perceptron, x, threads=cores).options["intra_op_num_threads"] == cores
    for threads in (cores + 1, 0):
        with pytest.raises(MeasurementError, match=f"{threads} threads .* {cores} cores"):
            open_onnx(perceptron, x, threads=threads)


def test_an_absent_or_damaged_file_is_refused(tmp_path, perceptron, x):
    with pytest.raises(MeasurementError, match="no such file"):
        open_onnx(tmp_path / "absent.onnx", x, threads=1)
    with pytest.raises(MeasurementError, match="not a file"):
        open_onnx(tmp_path, x, threads=1)
    damaged = tmp_path / "damaged.onnx"
    for content in (b"", b"not a model", perceptron.read_bytes()[:-40]):
        damaged.write_bytes(content)
        with pytest.raises(MeasurementError, match=r"damaged\.onnx"):
            open_onnx(damaged, x, threads=1)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, r"inputs \['x'\]"),
        ({"x": np.zeros((1, 8), np.float32), "y": np.zeros(1)}, r"\['x', 'y'\] were given"),
        ({"x": np.zeros((1, 8))}, "'x' has the type float64. Expected float32"),
        ({"x": np.zeros((1, 7), np.float32)}, r"'x' has the shape \[1, 7\]. Expected \['batch', 8\]"),
        ({"x": np.zeros(8, np.float32)}, r"'x' has the shape \[8\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(perceptron, x, inputs, said):
    with pytest.raises(MeasurementError, match=said):
        open_onnx(perceptron, inputs, threads=1)
    with pytest.raises(MeasurementError, match=said):
        open_onnx(perceptron, x, threads=1).outputs(inputs)


def test_inputs_need_not_be_contiguous(perceptron):
    x = np.random.default_rng(1).random((8, 3), dtype=np.float32).T
    found = open_onnx(perceptron, {"x": x}, threads=1).outputs()["y"]
    np.testing.assert_allclose(found, _in_numpy(perceptron, x), rtol=1e-5, atol=1e-5)


def test_onnx_runtime_calls_its_types_as_the_table_does(perceptron):
    value = open_session(str(perceptron), threads=1).get_inputs()[0]
    assert DTYPES[value.type] == "float32"
    assert all(np.dtype(name).name == name for name in DTYPES.values())
