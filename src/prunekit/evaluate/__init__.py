"""Evidence, slices, paired statistics and gates."""

from prunekit.evaluate.compare import Change, Comparison, Flips, compare
from prunekit.evaluate.evidence import check_evidence, check_paired, read_evidence, write_evidence
from prunekit.evaluate.facts import Bytes, Facts, Speedup, facts_from_results
from prunekit.evaluate.gates import (
    GATES,
    Finding,
    Gate,
    GateKind,
    GateResult,
    MaxLatencyMs,
    MaxMemoryBytes,
    MaxQualityDrop,
    MaxSizeBytes,
    MaxSliceDrop,
    MinSizeReduction,
    MinSpeedup,
    judge,
    make_gate,
)
from prunekit.evaluate.statistics import (
    Interval,
    adjusted_wald_interval,
    bca_interval,
    bootstrap_means,
    mcnemar_exact,
    paired_interval,
)

__all__ = [
    "GATES",
    "Bytes",
    "Change",
    "Comparison",
    "Facts",
    "Finding",
    "Flips",
    "Gate",
    "GateKind",
    "GateResult",
    "Interval",
    "MaxLatencyMs",
    "MaxMemoryBytes",
    "MaxQualityDrop",
    "MaxSizeBytes",
    "MaxSliceDrop",
    "MinSizeReduction",
    "MinSpeedup",
    "Speedup",
    "adjusted_wald_interval",
    "bca_interval",
    "bootstrap_means",
    "check_evidence",
    "check_paired",
    "compare",
    "facts_from_results",
    "judge",
    "make_gate",
    "mcnemar_exact",
    "paired_interval",
    "read_evidence",
    "write_evidence",
]
