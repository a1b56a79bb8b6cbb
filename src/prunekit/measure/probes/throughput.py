"""How fast a runtime multiplies matrices in each precision it has."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.errors import MeasurementError
from prunekit.measure.probes.bench import Bench
from prunekit.measure.probes.verdict import Verdict, judge
from prunekit.measure.probes.weights import random_weight
from prunekit.measure.runtimes import Device, Precision, TargetRunner
from prunekit.measure.runtimes.table import RUNTIMES
from prunekit.types import Speedup

SIZE = {"cpu": (128, 512), "cuda": (8192, 8192)}
"""Rows, and both sides of the weight: on a CPU short enough that few calls are interrupted, on a GPU large
enough to fill it."""


@dataclass(frozen=True)
class Throughput:
    """One precision of one runtime on a product of matrices.

    Attributes:
        runtime: its name in a target.
        device: ``cpu`` or ``cuda``.
        precision: that was computed in.
        gflops: billions of multiplications and additions per second, two for each MAC; None where it did
            not run.
        against_fp32: speed over that of fp32, in pairs; None for fp32 itself.
        verdict: what its interval lets one say; None for fp32 itself.
        reason: why it did not run; "" where it did.
    """

    runtime: str
    device: Device
    precision: Precision
    gflops: float | None
    against_fp32: Speedup | None
    verdict: Verdict | None = None
    reason: str = ""


def measure_throughput(bench: Bench) -> tuple[Throughput, ...]:
    """Time ``[rows, n] @ [n, n]`` in every precision of the runtime, each in pairs with fp32."""
    target = bench.target
    rows, size = SIZE[target.device]
    weight = random_weight((size, size))
    plain = bench.matmul(weight, rows)
    operations = 2 * rows * size * size
    found = []
    for precision in RUNTIMES[target.runtime].precisions[target.device]:
        try:
            other = plain if precision == "fp32" else bench.matmul(weight, rows, precision)
        except MeasurementError as error:
            found.append(Throughput(target.runtime, target.device, precision, None, None, None, error.given))
            continue
        found.append(_compared(bench, plain, other, precision, operations))
    return tuple(found)


def _compared(
    bench: Bench, plain: TargetRunner, other: TargetRunner, precision: Precision, operations: int
) -> Throughput:
    timed = bench.compare(plain, other)
    gain = None if other is plain else timed.speedup
    return Throughput(
        runtime=bench.target.runtime,
        device=bench.target.device,
        precision=precision,
        gflops=operations / timed.pruned.p50_ms / 1e6,
        against_fp32=gain,
        verdict=None if gain is None else judge(gain),
    )
