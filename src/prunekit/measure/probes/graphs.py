"""The small ONNX files that are timed to describe a machine: one operator each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunekit.measure.probes.weights import Weight

OPSET = 18
IR_VERSION = 9
KERNEL = 3


def save_matmul(path: Path, weight: Weight) -> Path:
    """``y = x @ weight`` with x ``[rows, fan_in]`` and weight ``[fan_in, units]``."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return _save(path, nodes, {"w": weight}, ["rows", weight.shape[0]], ["rows", weight.shape[1]])


def save_conv(path: Path, weight: Weight) -> Path:
    """A convolution of 3 x 3 that keeps the size: x ``[1, in, side, side]``, weight ``[in * 9, out]``."""
    units = weight.shape[1]
    channels = weight.shape[0] // KERNEL**2
    kernel = np.ascontiguousarray(weight.T).reshape(units, channels, KERNEL, KERNEL)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], kernel_shape=[KERNEL, KERNEL])]
    return _save(path, nodes, {"w": kernel}, [1, channels, "h", "w_"], [1, units, "h", "w_"])


def save_quantized_matmul(path: Path, weight: Weight) -> Path:
    """The same product in int8: uint8 inputs and outputs, int8 weights, one scale each.

    In the form of ``QuantizeLinear`` and ``DequantizeLinear`` around the product, which both ONNX Runtime
    and OpenVINO turn into one integer kernel.
    """
    scale = np.float32(np.abs(weight).max() / 127)
    values = {
        "w": np.round(weight / scale).astype(np.int8),
        "w_scale": scale,
        "w_zero": np.int8(0),
        "scale": np.float32(1 / 32),
        "zero": np.uint8(128),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_d"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_d"]),
        helper.make_node("MatMul", ["x_d", "w_d"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "scale", "zero"], ["m_q"]),
        helper.make_node("DequantizeLinear", ["m_q", "scale", "zero"], ["y"]),
    ]
    return _save(path, nodes, values, ["rows", weight.shape[0]], ["rows", weight.shape[1]])


def _save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    values: dict[str, np.ndarray | np.generic],
    given: Sequence[int | str],
    made: Sequence[int | str],
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, made)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, str(path))
    return path
