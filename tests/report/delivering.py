"""Made-up results of the stages that measure, evaluate and judge."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tests.report.sample import Sample, write_stage

from prunekit.evaluate import compare, facts_from_results, judge, make_gate

ENVIRONMENT = {
    "cpu": {
        "model": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        "isa": ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile"],
        "cores": 2,
        "available_cores": 2,
        "governor": None,
        "virtual": True,
    },
    "gpus": [],
    "memory_bytes": 8_326_430_720,
    "load_1m": 0.42,
    "os": "Linux-6.1.0-x86_64-with-glibc2.36",
    "python": "3.11.2",
    "packages": {"prunekit": "0.1.0", "torch": "2.13.0+cpu", "onnxruntime": "1.31.0"},
    "threads": 1,
    "date": "2026-11-21T04:50:31+00:00",
}


def write_export(root: Path) -> None:
    def export(side: str, size: int) -> dict[str, Any]:
        return {
            "path": f"{side}.onnx",
            "opset": 20,
            "input_names": ["image"],
            "input_addresses": ["args.0"],
            "output_names": ["logits"],
            "dynamic_batch": True,
            "batch_size": None,
            "size_bytes": size,
            "sha256": hashlib.sha256(side.encode()).hexdigest(),
            "weights_path": None,
            "weights_sha256": None,
            "seconds": 2.4,
        }

    write_stage(root, "export", {"dense": export("dense", 5_131_264), "pruned": export("pruned", 1_893_410)})


def write_validation(root: Path, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
    dense, pruned = latency_times(rng, 3.42), latency_times(rng, 3.42 / sample.speedup)

    def percentiles(times: np.ndarray) -> dict[str, float]:
        return {
            **{f"p{p}_ms": float(np.percentile(times, p)) for p in (50, 90, 99)},
            "mean_ms": float(times.mean()),
        }

    result = {
        "parity": {
            "passed": True,
            "steps": [_parity_step(side, batch) for side in ("dense", "pruned") for batch in (1, 7)],
            "tolerance_reason": "float32 sums in another order, 1e-4 of the largest output",
            "parent_to_pruned": {
                "max_abs": 4.1,
                "max_rel": 0.31,
                "argmax_agreement": 1.0,
                "examples": 7,
            },
        },
        "latency": {
            "batch": 1,
            "threads": 1,
            "runtime": "onnxruntime",
            "dense": percentiles(dense),
            "pruned": percentiles(pruned),
            "speedup": {
                "median": float(np.median(dense / pruned)),
                "low": float(np.median(dense / pruned)) - 0.021,
                "high": float(np.median(dense / pruned)) + 0.024,
                "confidence": 0.95,
                "pairs": len(dense),
            },
            "noise": {
                "dense": 0.012,
                "pruned": 0.011,
                "speedup": 0.008,
                "steady": True,
                "statement": "The paired speed-ups vary by 0.8 %: the machine was steady",
            },
            "warmup": 20,
            "seconds": 1.3,
            "stopped_early": False,
        },
        "memory": {
            "dense_bytes": 61_240_192,
            "pruned_bytes": 47_825_792,
            "dense": {"baseline_bytes": 30_000_000, "peak_bytes": 61_240_192, "added_bytes": 31_240_192},
            "pruned": {"baseline_bytes": 30_000_000, "peak_bytes": 47_825_792, "added_bytes": 17_825_792},
        },
        "size": {"dense_bytes": 5_131_264, "pruned_bytes": 1_893_410},
        "environment": ENVIRONMENT,
    }
    table = pd.DataFrame({"pair": np.arange(len(dense)), "dense_ms": dense, "pruned_ms": pruned})
    return write_stage(root, "validate", result, {"latency.parquet": table})


def _parity_step(side: str, batch: int) -> dict[str, Any]:
    return {
        "name": f"{side}, batch {batch}",
        "batch_size": batch,
        "difference": {
            "max_abs": 2.1e-6 * batch,
            "max_rel": 3.4e-7,
            "argmax_agreement": 1.0,
            "examples": batch,
        },
        "tolerance": 1e-4,
        "passed": True,
        "reason": "The largest relative difference is 3.4e-07, within 1e-04.",
    }


def latency_times(rng: np.random.Generator, middle: float, pairs: int = 200) -> np.ndarray:
    """Times of calls: a narrow body, a second mode, and a long tail."""
    body = middle * (1 + rng.gamma(2.0, 0.012, pairs))
    body[rng.random(pairs) < 0.12] *= 1.09
    body[rng.random(pairs) < 0.015] *= 1.8
    return body


def write_evaluation(root: Path, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
    n = sample.examples
    label = rng.integers(0, len(sample.classes), n)
    dense_right = rng.random(n) < 0.985
    pruned_right = dense_right.copy()
    lost = rng.choice(np.flatnonzero(dense_right), sample.lost, replace=False)
    gained = rng.choice(
        np.flatnonzero(~dense_right), min(sample.gained, int((~dense_right).sum())), replace=False
    )
    pruned_right[lost], pruned_right[gained] = False, True

    def evidence(right: np.ndarray) -> pd.DataFrame:
        answer = np.where(right, label, (label + 1) % len(sample.classes))
        table = pd.DataFrame(
            {
                "example_id": [f"test-{i}" for i in range(n)],
                "label": [sample.classes[i] for i in label],
                "prediction": [sample.classes[i] for i in answer],
                "correct": right,
            }
        )
        for i, name in enumerate(sample.slices):
            table[f"slice:{name}"] = np.arange(n) % 7 == i
        return table

    dense, pruned = evidence(dense_right), evidence(pruned_right)
    comparison = asdict(compare(dense, pruned, resamples=1000))
    return write_stage(root, "evaluate", comparison, {"dense.parquet": dense, "pruned.parquet": pruned})


def write_gate(root: Path, sample: Sample, evaluation: dict[str, Any], validation: dict[str, Any]) -> None:
    """Judge real gates over the made-up evaluation and measurements."""
    gates = [
        make_gate("max_quality_drop", limit=0.02),
        make_gate("max_slice_drop", limit=sample.slice_limit, by="point"),
        make_gate("min_speedup", limit=sample.min_speedup),
        make_gate("max_size_bytes", limit=2_000_000),
    ]
    results = judge(gates, facts_from_results(evaluation, validation))
    accepted = all(result.passed for result in results)
    write_stage(root, "gate", {"accepted": accepted, "gates": [asdict(result) for result in results]})
