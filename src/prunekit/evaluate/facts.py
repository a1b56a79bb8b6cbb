"""What the gates look at, gathered from the run directory's evaluation and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.errors import StorageError
from prunekit.evaluate.compare import Comparison
from prunekit.types import Speedup

EVALUATION = "stages/evaluate/result.json"
VALIDATION = "stages/validate/result.json"


@dataclass(frozen=True)
class Bytes:
    """A size of both models.

    Attributes:
        dense: bytes, dense parent.
        pruned: bytes, pruned model.
    """

    dense: int
    pruned: int


@dataclass(frozen=True)
class Facts:
    """All that gates look at; None = not measured, which no gate accepts.

    Attributes:
        comparison: quality of the pruned model against its parent.
        speedup: measured in pairs on the target runtime.
        latency_ms: of the pruned model, by percentile: ``p50``, ``p90``, ``p99``.
        size: of the exported files.
        memory: peak memory while the exported models run.
    """

    comparison: Comparison | None = None
    speedup: Speedup | None = None
    latency_ms: Mapping[str, float] | None = None
    size: Bytes | None = None
    memory: Bytes | None = None


def facts_from_results(evaluation: Mapping[str, Any] | None, validation: Mapping[str, Any] | None) -> Facts:
    """Gather the facts from the results of the evaluate and the validate stage.

    Args:
        evaluation: ``stages/evaluate/result.json``, or None.
        validation: ``stages/validate/result.json``, or None; ``latency``, ``size`` and ``memory`` may be
            missing.

    Returns:
        The facts; what was not measured is None.

    Raises:
        StorageError: a result is there and is not what its stage writes.
    """
    validation = validation or {}
    try:
        latency = validation.get("latency")
        speedup = latency.get("speedup") if latency else None
        pruned = latency.get("pruned") if latency else None
        return Facts(
            comparison=_comparison(evaluation) if evaluation else None,
            speedup=_speedup(speedup) if speedup else None,
            latency_ms={key: float(pruned[f"{key}_ms"]) for key in ("p50", "p90", "p99")} if pruned else None,
            size=_bytes(validation.get("size")),
            memory=_bytes(validation.get("memory")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(
            f"The stored measurements are damaged or of another version: {error!r}",
            where=VALIDATION,
            remedy="Delete the stage's directory and run the command again",
        ) from error


def _comparison(evaluation: Mapping[str, Any]) -> Comparison:
    """The comparison alone: what ships in int8 is told beside it."""
    return Comparison.from_dict({key: value for key, value in evaluation.items() if key != "shipped"})


def _speedup(data: Mapping[str, Any]) -> Speedup:
    return Speedup(
        median=float(data["median"]),
        low=float(data["low"]),
        high=float(data["high"]),
        confidence=float(data["confidence"]),
        pairs=int(data["pairs"]),
    )


def _bytes(data: Mapping[str, Any] | None) -> Bytes | None:
    if data is None:
        return None
    return Bytes(dense=int(data["dense_bytes"]), pruned=int(data["pruned_bytes"]))
