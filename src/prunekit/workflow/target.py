"""The machine as a target: what is there, what it really does, and what follows from that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunekit.measure import Machine, describe_machine
from prunekit.types import Speedup
from prunekit.workflow.job import Silent, Watcher

FIRST_TIME = "it has not run yet"


@dataclass(frozen=True)
class TextTable:
    """A table for people.

    Attributes:
        title: above it.
        columns: their heads.
        rows: one text for each column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def describe_target(
    runtimes: Sequence[str] | None = None,
    *,
    threads: int = 1,
    quick: bool = False,
    watcher: Watcher | None = None,
) -> Machine:
    """Measure this machine, part by part.

    Args:
        runtimes: None or none = the usual ones that are installed.
        threads: within an operator.
        quick: wider intervals, sooner.
        watcher: hears which part is measured.

    Raises:
        MeasurementError: a runtime that there is not, or more threads than cores.
    """
    parts = _Parts(watcher or Silent())
    return describe_machine(runtimes=runtimes or None, threads=threads, quick=quick, progress=parts)


def machine_values(machine: Machine) -> dict[str, Any]:
    """All of it as plain JSON."""
    return asdict(machine)


def machine_headline(machine: Machine) -> str:
    """CPU, cores, memory and GPUs in one line."""
    found, cpu = machine.environment, machine.environment["cpu"]
    memory = found["memory_bytes"]
    parts = [
        cpu["model"],
        f"{cpu['available_cores']} of {cpu['cores']} cores",
        f"{memory / 2**30:.1f} GiB" if memory else "",
        ", ".join(found["gpus"]) or "no GPU",
        f"measured with {machine.threads} thread{'s' if machine.threads != 1 else ''}",
        ", ".join(cpu["isa"]),
    ]
    return "; ".join(part for part in parts if part)


def machine_tables(machine: Machine) -> tuple[TextTable, ...]:
    """The figures of the machine, for people."""
    noise = tuple(
        (found.runtime, _times(found.speedup, places=3), str(found.pairs_needed)) for found in machine.noise
    )
    return (
        _runtimes(machine),
        _throughput(machine),
        _sparsity(machine),
        _widths(machine),
        TextTable("Noise: a model against itself", ("runtime", "speed", "pairs to tell 3 % apart"), noise),
    )


def _runtimes(machine: Machine) -> TextTable:
    rows = []
    for found in machine.runtimes:
        missing = "" if found.version else f'not installed: pip install "{found.install}"'
        rows.append((found.name, found.version or "", missing or ("measured" if found.measured else "")))
    return TextTable("Runtimes", ("runtime", "version", ""), tuple(rows))


def _throughput(machine: Machine) -> TextTable:
    rows = tuple(
        (
            found.runtime,
            found.device,
            found.precision,
            f"{found.gflops:.0f}" if found.gflops is not None else "",
            _times(found.against_fp32),
            found.reason or found.verdict or "",
        )
        for found in machine.throughput
    )
    columns = ("runtime", "device", "precision", "GFLOP/s", "over fp32", "")
    return TextTable("Products of matrices", columns, rows)


def _sparsity(machine: Machine) -> TextTable:
    rows = tuple(
        (
            found.runtime,
            found.operator,
            found.zeros,
            found.stored,
            _times(found.speedup),
            found.reason or found.verdict or "",
        )
        for found in machine.sparsity
    )
    columns = ("runtime", "operator", "zeros", "stored as", "speed", "")
    return TextTable("Zeros against none", columns, rows)


def _widths(machine: Machine) -> TextTable:
    rows = tuple(
        (found.runtime, found.operator, str(found.step) if found.rewarded else f"none above {found.step}")
        for found in machine.widths
    )
    return TextTable("Steps in which the cost of widths climbs", ("runtime", "operator", "step"), rows)


def _times(gain: Speedup | None, places: int = 2) -> str:
    if gain is None:
        return ""
    return f"{gain.median:.{places}f}x ({gain.low:.{places}f} to {gain.high:.{places}f})"


class _Parts:
    """Progress of the parts, as a watcher hears it."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._begun = 0.0

    def __call__(self, part: str, done: int, total: int) -> None:
        if done == 0:
            self._begun = time.perf_counter()
            self._watcher.begins(part, FIRST_TIME)
        self._watcher.progress(part, done, total)
        if done == total:
            self._watcher.ends(part, time.perf_counter() - self._begun)
