"""What a finished run came to: accepted or refused, the gates, and dense against pruned in one table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.evaluate import GateResult
from prunekit.workflow.rundir import RunDirectory


@dataclass(frozen=True)
class Row:
    """One quantity of the dense parent and the pruned model.

    Attributes:
        quantity: what it is.
        unit: of all figures of the row: ``""`` (a share or a count), ``ms``, ``x`` or ``bytes``.
        dense: of the parent; None where only the comparison has a figure.
        pruned: of the pruned model; None as for ``dense``.
        change: pruned minus dense for a quality, dense over pruned for the speed-up, else the share that is
            gone.
        low: lower end of the interval of ``change``; None where it is exact.
        high: upper end of it.
    """

    quantity: str
    unit: str
    dense: float | None
    pruned: float | None
    change: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        accepted: every gate passed.
        gates: what each gate found.
        rows: dense against pruned.
        notes: sentences the reader of the table must know.
        report: the HTML report.
        run_dir: the run directory.
    """

    accepted: bool
    gates: tuple[GateResult, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    report: Path
    run_dir: Path


def read_outcome(directory: RunDirectory) -> Outcome:
    """Read the outcome of a finished run from its directory."""
    gate = _result(directory, "gate")
    return Outcome(
        accepted=gate["accepted"],
        gates=tuple(GateResult(**found) for found in gate["gates"]),
        rows=tuple(_rows(directory)),
        notes=tuple(_notes(directory)),
        report=directory.stage_path("report") / "report.html",
        run_dir=directory.path,
    )


def _rows(directory: RunDirectory) -> list[Row]:
    evaluation, validation = _result(directory, "evaluate"), _result(directory, "validate")
    last = max(name for name in directory.stages() if name.endswith("/plan"))
    plan = _result(directory, last)
    overall, latency = evaluation["overall"], validation["latency"]
    speedup = latency["speedup"]
    return [
        Row(
            f"quality ({evaluation['metric']})",
            "",
            *(overall[key] for key in ("dense", "pruned", "change", "low", "high")),
        ),
        Row(
            "latency, median",
            "ms",
            latency["dense"]["p50_ms"],
            latency["pruned"]["p50_ms"],
            None,
        ),
        Row("speed-up", "x", None, None, speedup["median"], speedup["low"], speedup["high"]),
        _shrunk("MACs", "", plan["before"]["macs"], plan["after"]["macs"]),
        _shrunk("parameters", "", plan["before"]["params"], plan["after"]["params"]),
        _shrunk("size", "bytes", *_both(validation["size"])),
        _shrunk("peak memory", "bytes", *_both(validation["memory"])),
    ]


def _notes(directory: RunDirectory) -> list[str]:
    validation, evaluation = _result(directory, "validate"), _result(directory, "evaluate")
    latency = validation["latency"]
    export = _result(directory, "export")
    shipped = [
        found["statement"] for found in (export.get("quantization"), evaluation.get("shipped")) if found
    ]
    noisy = [] if latency["noise"]["steady"] else [f"{latency['noise']['statement']}."]
    early = latency["stopped_early"]
    few = [f"Only {latency['speedup']['pairs']} pairs were timed: the time was up."] if early else []
    missed = [
        f"The goal {goal['words']} was met in planning ({goal['planned']:,.4g}) and is not met in validation "
        f"({goal['validated']:,.4g}){'' if goal['same_target'] else ', which is on another target'}."
        for goal in validation.get("goals", [])
        if not goal["met"]
    ]
    return shipped + noisy + few + missed


def _both(sides: dict[str, Any]) -> tuple[int, int]:
    return sides["dense_bytes"], sides["pruned_bytes"]


def _shrunk(quantity: str, unit: str, dense: int, pruned: int) -> Row:
    return Row(quantity, unit, dense, pruned, 1 - pruned / dense if dense else None)


def _result(directory: RunDirectory, stage: str) -> dict[str, Any]:
    return json.loads((directory.stage_path(stage) / "result.json").read_text())
