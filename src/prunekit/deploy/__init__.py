"""Leaving the lab: export and the parity chain."""

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
    "check_parity",
    "difference",
    "export_onnx",
    "feed",
    "output_tensors",
]
