"""Single operators, timed on the spot to say what a machine and its runtimes can do."""

from prunekit.measure.probes.bench import Bench
from prunekit.measure.probes.noise import NoiseFloor, measure_noise, pairs_needed
from prunekit.measure.probes.sparsity import SparseFormat, measure_sparsity
from prunekit.measure.probes.throughput import Throughput, measure_throughput
from prunekit.measure.probes.verdict import Verdict, judge
from prunekit.measure.probes.weights import PATTERNS
from prunekit.measure.probes.widths import WidthSteps, find_step, measure_widths

__all__ = [
    "PATTERNS",
    "Bench",
    "NoiseFloor",
    "SparseFormat",
    "Throughput",
    "Verdict",
    "WidthSteps",
    "find_step",
    "judge",
    "measure_noise",
    "measure_sparsity",
    "measure_throughput",
    "measure_widths",
    "pairs_needed",
]
