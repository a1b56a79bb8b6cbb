"""The runtimes that a model can be measured on: one file each, and one row in the table."""

from prunekit.measure.runtimes.node_times import NodeTime
from prunekit.measure.runtimes.onnx_runtime import DTYPES, OnnxRunner, open_onnx
from prunekit.measure.runtimes.openvino_cpu import OpenvinoRunner, open_openvino
from prunekit.measure.runtimes.runner import (
    Arrays,
    Device,
    Precision,
    Runner,
    Runtime,
    TargetRunner,
    check_file,
    held,
)
from prunekit.measure.runtimes.table import RUNTIMES
from prunekit.measure.runtimes.torch_eager import ModuleInputs, TorchRunner

__all__ = [
    "DTYPES",
    "RUNTIMES",
    "Arrays",
    "Device",
    "ModuleInputs",
    "NodeTime",
    "OnnxRunner",
    "OpenvinoRunner",
    "Precision",
    "Runner",
    "Runtime",
    "TargetRunner",
    "TorchRunner",
    "check_file",
    "held",
    "open_onnx",
    "open_openvino",
]
