"""The closed table of runtimes."""

from __future__ import annotations

from collections.abc import Mapping

from prunekit.measure.runtimes.onnx_runtime import ONNXRUNTIME
from prunekit.measure.runtimes.openvino_cpu import OPENVINO
from prunekit.measure.runtimes.runner import Runtime
from prunekit.measure.runtimes.torch_compile import TORCH_COMPILE
from prunekit.measure.runtimes.torch_eager import TORCH_EAGER

RUNTIMES: Mapping[str, Runtime] = {
    runtime.name: runtime for runtime in (ONNXRUNTIME, OPENVINO, TORCH_EAGER, TORCH_COMPILE)
}
"""By the name they have in a target."""
