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
from prunekit.measure.runtimes import OnnxRunner, Runner, open_onnx
from prunekit.measure.session import SPINNING, Spinning
from prunekit.measure.size import external_files, file_size

__all__ = [
    "MACS",
    "SPINNING",
    "LatencyComparison",
    "MemoryUse",
    "Noise",
    "OnnxRunner",
    "Percentiles",
    "Runner",
    "Speedup",
    "Spinning",
    "available_cores",
    "check_threads",
    "compare_latency",
    "contracts",
    "count_macs",
    "einsum_macs",
    "environment",
    "external_files",
    "file_size",
    "open_onnx",
    "paired_speedup",
    "peak_memory",
    "percentiles",
]
