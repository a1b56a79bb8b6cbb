"""Leaving the lab: export, quantization and the parity chain."""

from prunekit.deploy.inputs import output_tensors
from prunekit.deploy.onnx import OPSET, OPSETS, OnnxExport, export_onnx, feed
from prunekit.deploy.parity import (
    TOLERANCE,
    Difference,
    Exported,
    HasInputs,
    Parity,
    ParityStep,
    check_parity,
    difference,
)
from prunekit.deploy.quantization import Scheme, quantize_onnx
from prunekit.deploy.served import Served

__all__ = [
    "OPSET",
    "OPSETS",
    "TOLERANCE",
    "Difference",
    "Exported",
    "HasInputs",
    "OnnxExport",
    "Parity",
    "ParityStep",
    "Scheme",
    "Served",
    "check_parity",
    "difference",
    "export_onnx",
    "feed",
    "output_tensors",
    "quantize_onnx",
]
