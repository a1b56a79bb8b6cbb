"""What a model costs: parameters, MACs, bytes, memory and latency."""

from prunekit.measure.environment import available_cores, check_threads, environment
from prunekit.measure.latency import (
    LatencyComparison,
    Noise,
    Percentiles,
    Speedup,
    compare_latency,
    paired_speedup,
    percentiles,
)
from prunekit.measure.macs import MACS, contracts, count_macs, einsum_macs
from prunekit.measure.memory import MemoryUse, peak_memory
from prunekit.measure.runtimes import (
    RUNTIMES,
    OnnxRunner,
    OpenvinoRunner,
    Runner,
    Runtime,
    TargetRunner,
    TorchRunner,
    open_onnx,
    open_openvino,
)
from prunekit.measure.session import SPINNING, Spinning
from prunekit.measure.size import external_files, file_size
from prunekit.measure.target import Target, check_target, open_target

__all__ = [
    "MACS",
    "RUNTIMES",
    "SPINNING",
    "LatencyComparison",
    "MemoryUse",
    "Noise",
    "OnnxRunner",
    "OpenvinoRunner",
    "Percentiles",
    "Runner",
    "Runtime",
    "Speedup",
    "Spinning",
    "Target",
    "TargetRunner",
    "TorchRunner",
    "available_cores",
    "check_target",
    "check_threads",
    "compare_latency",
    "contracts",
    "count_macs",
    "einsum_macs",
    "environment",
    "external_files",
    "file_size",
    "open_onnx",
    "open_openvino",
    "open_target",
    "paired_speedup",
    "peak_memory",
    "percentiles",
]
