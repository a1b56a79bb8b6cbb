"""Real ONNX files, written node by node so that these tests need no exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

FLOATS = np.random.default_rng(0).standard_normal


def _save_perceptron(path: Path, width: int, *, external: bool = False, input_name: str = "x") -> Path:
    """``y = relu(x @ w1) @ w2`` with x ``[batch, 8]`` and ``width`` hidden units."""
    weights = {
        "w1": FLOATS((8, width), dtype=np.float32),
        "w2": FLOATS((width, 4), dtype=np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [input_name, "w1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["y"]),
        ],
        "perceptron",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(
        model,
        str(path),
        save_as_external_data=external,
        location=f"{path.name}.data",
        size_threshold=0,
    )
    return path


@pytest.fixture
def save_perceptron() -> Callable[..., Path]:
    return _save_perceptron


@pytest.fixture
def perceptron(tmp_path: Path) -> Path:
    return _save_perceptron(tmp_path / "perceptron.onnx", 16)


@pytest.fixture
def x() -> dict[str, np.ndarray]:
    return {"x": FLOATS((3, 8), dtype=np.float32)}
