"""What follows from the figures of a machine, by rules that are written down here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunekit.measure.probes import NoiseFloor, SparseFormat, Throughput, WidthSteps
from prunekit.types import Speedup

MANY_PAIRS = 1000
"""A machine is called noisy for a runtime that needs more pairs than this to tell 3 % apart."""


def advise(
    throughput: Sequence[Throughput],
    sparsity: Sequence[SparseFormat],
    widths: Sequence[WidthSteps],
    noise: Sequence[NoiseFloor],
) -> tuple[str, ...]:
    """Sentences that follow from the figures.

    What a speed-up lets one say is decided by :func:`prunekit.measure.probes.judge`.

    1. A precision is advised where it is faster than fp32, and advised against where it is slower.
    2. Where none of the patterns of zeros in dense weights is faster, removal is the only way to speed.
    3. A sparse format is named with what it gives, or that it gives nothing; and where another runtime
       multiplies dense matrices in fp32 faster still (the same product, though not timed in pairs).
    4. A step of widths that is rewarded beyond the finest that was tried is named.
    5. What could not be told is said to be so.
    6. A machine that needs more than :data:`MANY_PAIRS` pairs to tell 3 % apart is called noisy.
    """
    return (
        *_of_precision(throughput),
        *_of_zeros(sparsity),
        *_of_formats(sparsity, throughput),
        *_of_widths(widths),
        *_of_noise(noise),
    )


def _of_precision(throughput: Sequence[Throughput]) -> Iterator[str]:
    for found in throughput:
        gain = found.against_fp32
        if gain is None:
            continue
        precision, where = found.precision, _place(found)
        yield {
            "faster": f"{precision} gives {gain.median:.1f}x of the matrix throughput of fp32 on {where}.",
            "slower": f"{precision} is slower than fp32 on {where} ({gain.median:.2f}x): stay with fp32.",
            "no gain": f"{precision} gives nothing over fp32 on {where} ({gain.median:.2f}x).",
            "unclear": _untold(f"{precision} over fp32 on {where}", gain),
        }[found.verdict or "unclear"]


def _of_zeros(sparsity: Sequence[SparseFormat]) -> Iterator[str]:
    plain = [found for found in sparsity if found.stored == "dense" and found.speedup is not None]
    for where in dict.fromkeys(_place(found) for found in plain):
        here = [found for found in plain if _place(found) == where]
        if all(found.verdict in ("no gain", "slower") for found in here):
            most = max(found.speedup.median for found in here if found.speedup)
            yield (
                f"Zeros without removal do not speed up {where} (at most {most:.2f}x of the dense "
                "operator): use structured pruning."
            )


def _of_formats(sparsity: Sequence[SparseFormat], throughput: Sequence[Throughput]) -> Iterator[str]:
    for found in sparsity:
        gain = found.speedup
        if gain is None:
            continue
        stored = "" if found.stored == "dense" else f", stored as {found.stored}"
        what = f"Zeros ({found.zeros}) of a {found.operator}{stored}, on {_place(found)}"
        if found.verdict == "faster":
            yield f"{what}: {gain.median:.1f}x of the dense operator{_outdone(found, gain, throughput)}."
        elif found.verdict == "unclear":
            yield _untold(what, gain)
        elif found.stored != "dense":
            yield f"{what}: no gain ({gain.median:.2f}x)."


def _outdone(found: SparseFormat, gain: Speedup, throughput: Sequence[Throughput]) -> str:
    """Which runtime needs no zeros to be as fast, if any."""
    dense = {
        other.runtime: other.gflops
        for other in throughput
        if other.precision == "fp32" and other.device == found.device and other.gflops is not None
    }
    if found.runtime not in dense or found.operator != "MatMul":
        return ""
    fastest = max(dense, key=lambda name: dense[name])
    faster = fastest != found.runtime and dense[fastest] > gain.median * dense[found.runtime]
    return f", and still less than {fastest} gives without zeros" if faster else ""


def _of_widths(widths: Sequence[WidthSteps]) -> Iterator[str]:
    for found in widths:
        if found.rewarded:
            yield (
                f"The cost of a {found.operator} on {_place(found)} climbs in steps of {found.step} units: "
                f"keep widths at multiples of {found.step} there."
            )


def _of_noise(noise: Sequence[NoiseFloor]) -> Iterator[str]:
    for found in noise:
        needed = f"{found.pairs_needed} pairs tell 3 % apart on {_place(found)}"
        if found.pairs_needed > MANY_PAIRS:
            yield f"The machine is noisy now: only {needed}; measure when it is idle."
        else:
            yield f"{needed}."


def _untold(what: str, gain: Speedup) -> str:
    return f"{what}: could not be told ({gain.low:.2f}x to {gain.high:.2f}x); measure on an idle machine."


def _place(found: Throughput | SparseFormat | WidthSteps | NoiseFloor) -> str:
    return found.runtime if found.device == "cpu" else f"{found.runtime} ({found.device})"
