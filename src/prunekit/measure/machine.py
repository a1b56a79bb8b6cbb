"""The machine as a place to serve from: what is there, and what it really does, measured on the spot."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunekit.errors import MeasurementError
from prunekit.measure.advice import advise
from prunekit.measure.environment import check_threads, environment
from prunekit.measure.probes import (
    Bench,
    NoiseFloor,
    SparseFormat,
    Throughput,
    WidthSteps,
    measure_noise,
    measure_sparsity,
    measure_throughput,
    measure_widths,
)
from prunekit.measure.runtimes.table import RUNTIMES
from prunekit.measure.target import RuntimeName, Target, check_target, is_installed

Heard = Callable[[str, int, int], None]

PARTS = ("throughput", "sparse formats", "widths", "noise")
"""What is measured, in this order."""

USUAL: tuple[RuntimeName, ...] = ("onnxruntime", "openvino", "torch_eager")
"""Runtimes that are measured unless others are asked for: ``torch_compile`` multiplies matrices with the
very kernels of ``torch_eager``, and would take longer to compile than all the rest to measure."""


@dataclass(frozen=True)
class FoundRuntime:
    """A row of the table of runtimes, on this machine.

    Attributes:
        name: in a target.
        version: of its package; None where it is not installed.
        install: what brings it.
        measured: whether the figures below are of it too.
    """

    name: str
    version: str | None
    install: str
    measured: bool


@dataclass(frozen=True)
class Machine:
    """A machine, as it was found and measured.

    Attributes:
        environment: of :func:`prunekit.measure.environment`: CPU, ISA, cores, memory, GPUs, versions, date.
        threads: that were measured with.
        runtimes: all that prunekit knows.
        throughput: of products of matrices, per runtime and precision.
        sparsity: per runtime and sparse format.
        widths: per runtime and operator.
        noise: per runtime.
        advice: sentences that follow from these figures.
        seconds: that measuring took.
    """

    environment: Mapping[str, Any]
    threads: int
    runtimes: tuple[FoundRuntime, ...]
    throughput: tuple[Throughput, ...]
    sparsity: tuple[SparseFormat, ...]
    widths: tuple[WidthSteps, ...]
    noise: tuple[NoiseFloor, ...]
    advice: tuple[str, ...]
    seconds: float


def describe_machine(
    *,
    runtimes: Sequence[str] | None = None,
    threads: int = 1,
    quick: bool = False,
    progress: Heard | None = None,
) -> Machine:
    """Find out what this machine is, and time single operators on its runtimes.

    Args:
        runtimes: to be measured; None = those of :data:`USUAL` that are installed.
        threads: within an operator.
        quick: fewer pairs and rounds, so that wider intervals come sooner.
        progress: called with (part, runtimes done, runtimes in all) of each part of :data:`PARTS`.

    Raises:
        MeasurementError: a runtime that there is not or that is not installed; more threads than cores.
    """
    begin = time.perf_counter()
    check_threads(threads)
    targets = _targets(runtimes, threads)
    found: dict[str, list[Any]] = {part: [] for part in PARTS}
    with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
        benches = [
            Bench(target, Path(folder), pairs=60 if quick else 300, seconds=0.5 if quick else 3.0)
            for target in targets
        ]
        for part in PARTS:
            for done, bench in enumerate(benches):
                if progress is not None:
                    progress(part, done, len(benches))
                found[part] += _measure(part, bench, rounds=40 if quick else 150)
            if progress is not None:
                progress(part, len(benches), len(benches))
    throughput, sparsity, widths, noise = (tuple(found[part]) for part in PARTS)
    return Machine(
        environment=environment(threads),
        threads=threads,
        runtimes=_found_runtimes({target.runtime for target in targets}),
        throughput=throughput,
        sparsity=sparsity,
        widths=widths,
        noise=noise,
        advice=advise(throughput, sparsity, widths, noise),
        seconds=round(time.perf_counter() - begin, 1),
    )


def _targets(runtimes: Sequence[str] | None, threads: int) -> list[Target]:
    """A target for each runtime and each device that it has here."""
    names = [name for name in USUAL if is_installed(RUNTIMES[name])] if runtimes is None else runtimes
    targets = [Target(name, threads=threads) for name in dict.fromkeys(names)]  # pyright: ignore[reportArgumentType]
    for target in targets:
        check_target(target)
    if not targets:
        raise MeasurementError("No runtime was asked for", expected=f"one of {', '.join(RUNTIMES)}")
    if torch.cuda.is_available():
        targets += [
            Target(target.runtime, "cuda", threads)
            for target in targets
            if "cuda" in RUNTIMES[target.runtime].precisions
        ]
    return targets


def _measure(part: str, bench: Bench, rounds: int) -> Sequence[Any]:
    if part == "throughput":
        return measure_throughput(bench)
    if part == "sparse formats":
        return measure_sparsity(bench)
    if part == "widths":
        return measure_widths(bench, rounds)
    return (measure_noise(bench),)


def _found_runtimes(measured: set[RuntimeName]) -> tuple[FoundRuntime, ...]:
    versions = environment()["packages"]
    return tuple(
        FoundRuntime(
            name=name,
            version=versions[runtime.package] if is_installed(runtime) else None,
            install=runtime.install,
            measured=name in measured,
        )
        for name, runtime in RUNTIMES.items()
    )
