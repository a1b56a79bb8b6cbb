"""What LoadGen wrote about a test, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import MeasurementError

DETAIL = "mlperf_log_detail.txt"
_MARK = ":::MLLOG "

PER_SECOND = {
    "server": "result_completed_samples_per_sec",
    "offline": "result_samples_per_second",
}
"""Scenario -> LoadGen's key of samples per second; the streams have none."""


@dataclass(frozen=True)
class LoadLatency:
    """LoadGen's latencies of one test.

    Attributes:
        min_ms: the fastest.
        mean_ms: arithmetic mean.
        p50_ms: half were faster.
        p90_ms: 90 of 100 were faster.
        p95_ms: 95 of 100 were faster.
        p97_ms: 97 of 100 were faster.
        p99_ms: 99 of 100 were faster.
        p99_9_ms: 999 of 1000 were faster; the slowest one below 1000 queries.
        max_ms: the slowest.
    """

    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p97_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float


@dataclass(frozen=True)
class Verdict:
    """What LoadGen says.

    Attributes:
        valid: its verdict.
        reasons: its own words where the test is not valid.
        latency: of queries in MultiStream, of samples elsewhere.
        queries: issued.
        per_second: samples per second, where the scenario has that figure.
    """

    valid: bool
    reasons: tuple[str, ...]
    latency: LoadLatency
    queries: int
    per_second: float | None


def read_verdict(directory: Path, scenario: str) -> Verdict:
    """The verdict of the test whose logs lie in a folder.

    Raises:
        MeasurementError: the log is absent, or lacks a figure.
    """
    path = directory / DETAIL
    try:
        entries = [
            json.loads(line.removeprefix(_MARK))
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.startswith(_MARK)
        ]
        values = {entry["key"]: entry["value"] for entry in entries}
        valid = values["result_validity"] == "VALID"
        return Verdict(
            valid=valid,
            reasons=() if valid else _reasons(values, entries),
            latency=_latency(values, "_query" if scenario == "multi_stream" else ""),
            queries=int(values["result_query_count"]),
            per_second=float(values[PER_SECOND[scenario]]) if scenario in PER_SECOND else None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MeasurementError(
            f"LoadGen's log cannot be read: {type(error).__name__}: {error}",
            expected="the log of mlcommons-loadgen 6",
            remedy='Install that version: pip install "prunekit[loadgen]"',
        ) from error


def _latency(values: dict[str, Any], of: str) -> LoadLatency:
    per = "_per_query" if of else ""

    def percentile(which: str) -> float:
        return values[f"result_{which}_percentile{per}_latency_ns"] / 1e6

    return LoadLatency(
        min_ms=values[f"result_min{of}_latency_ns"] / 1e6,
        mean_ms=values[f"result_mean{of}_latency_ns"] / 1e6,
        p50_ms=percentile("50.00"),
        p90_ms=percentile("90.00"),
        p95_ms=percentile("95.00"),
        p97_ms=percentile("97.00"),
        p99_ms=percentile("99.00"),
        p99_9_ms=percentile("99.90"),
        max_ms=values[f"result_max{of}_latency_ns"] / 1e6,
    )


def _reasons(values: dict[str, Any], entries: list[dict[str, Any]]) -> tuple[str, ...]:
    """LoadGen's recommendations and errors, one sentence each."""
    said = [str(entry["value"]) for entry in entries if entry["metadata"].get("is_error")]
    said.append(str(values.get("result_invalid_reason", "")))
    if not values.get("early_stopping_met", True):
        said.append(str(values.get("early_stopping_result", "")).replace(" * ", " "))
    return tuple(" ".join(text.split()) for text in said if text.strip())
