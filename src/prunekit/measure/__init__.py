"""What a model costs: parameters, MACs, bytes, memory, latency, and under load requests, energy and money."""

from prunekit.measure.batches import Batches
from prunekit.measure.energy import Energy, EnergyReading, measure_energy
from prunekit.measure.environment import available_cores, check_threads, environment
from prunekit.measure.intervals import Interval, fewest_runs, independent_runs, interval_of_percentile
from prunekit.measure.latency import (
    LatencyComparison,
    Noise,
    Percentiles,
    Speedup,
    compare_latency,
    paired_speedup,
    percentiles,
)
from prunekit.measure.loadgen import (
    SCENARIOS,
    LoadResult,
    LoadSettings,
    Scenario,
    load_loadgen,
    run_load,
)
from prunekit.measure.loadlog import LoadLatency
from prunekit.measure.machine import FoundRuntime, Machine, describe_machine
from prunekit.measure.macs import MACS, contracts, count_macs, einsum_macs
from prunekit.measure.made_inputs import Made, make_inputs, read_inputs
from prunekit.measure.memory import MemoryUse, peak_memory
from prunekit.measure.meters import Meter, Meters, find_meters
from prunekit.measure.price import Cost, cost_per_million
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
from prunekit.measure.throughput import (
    LoadComparison,
    Throughput,
    ThroughputComparison,
    compare_scenarios,
    compare_throughput,
    max_throughput,
)

__all__ = [
    "MACS",
    "RUNTIMES",
    "SCENARIOS",
    "SPINNING",
    "Batches",
    "Cost",
    "Energy",
    "EnergyReading",
    "FoundRuntime",
    "Interval",
    "LatencyComparison",
    "LoadComparison",
    "LoadLatency",
    "LoadResult",
    "LoadSettings",
    "Machine",
    "Made",
    "MemoryUse",
    "Meter",
    "Meters",
    "Noise",
    "OnnxRunner",
    "OpenvinoRunner",
    "Percentiles",
    "Runner",
    "Runtime",
    "Scenario",
    "Speedup",
    "Spinning",
    "Target",
    "TargetRunner",
    "Throughput",
    "ThroughputComparison",
    "TorchRunner",
    "available_cores",
    "check_target",
    "check_threads",
    "compare_latency",
    "compare_scenarios",
    "compare_throughput",
    "contracts",
    "cost_per_million",
    "count_macs",
    "describe_machine",
    "einsum_macs",
    "environment",
    "external_files",
    "fewest_runs",
    "file_size",
    "find_meters",
    "independent_runs",
    "interval_of_percentile",
    "load_loadgen",
    "make_inputs",
    "max_throughput",
    "measure_energy",
    "open_onnx",
    "open_openvino",
    "open_target",
    "paired_speedup",
    "peak_memory",
    "percentiles",
    "read_inputs",
    "run_load",
]
