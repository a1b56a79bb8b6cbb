"""What the two schemes of quantization do to MiniLM: how fast it is in int8, and how near to itself.

    python -m benchmarks.quantization

Both are calibrated with the same snippets of the calibration split and judged on others of it: the cosine of
each sentence's embedding with that of the model in floats. Times are paired with the model in floats, batch
8 of 48 tokens. Writes ``docs/benchmarks/quantization.json`` and ``quantization.md``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.criteria import minilm
from benchmarks.target.where import where

from prunekit.deploy import OnnxExport, Scheme, export_onnx, feed, quantize_onnx
from prunekit.measure import Target, compare_latency, environment, open_target
from prunekit.measure.priority import real_time

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"
RUNTIMES = ("onnxruntime", "openvino")
SCHEMES: tuple[Scheme, ...] = ("all", "weighted")
THREADS, BATCH = 2, 8

Arrays = Mapping[str, np.ndarray]


def measure(folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each runtime and scheme."""
    subject = minilm.prepare(0)
    batches = subject.calibration
    export = export_onnx(subject.model, (), batches[0].kwargs, folder / "floats.onnx")
    calls = [feed(export, (), batch.kwargs) for batch in batches]
    half = len(calls) // 2
    for scheme in SCHEMES:
        small = quantize_onnx(export, calls[:half], folder / f"{scheme}.onnx", scheme=scheme)
        for runtime in RUNTIMES:
            yield {
                "runtime": runtime,
                "scheme": scheme,
                "bytes": [export.size_bytes, small.size_bytes],
                **_times(runtime, export, small, {name: rows[:BATCH] for name, rows in calls[0].items()}),
                **_nearness(runtime, export, small, calls[half:]),
                "environment": environment(THREADS),
            }


def _target(runtime: str, precision: str, batch: int) -> Target:
    return Target(runtime, threads=THREADS, batch=batch, precision=precision)  # pyright: ignore[reportArgumentType]


def _times(runtime: str, export: OnnxExport, small: OnnxExport, inputs: Arrays) -> dict[str, Any]:
    with real_time(True):
        floats = open_target(_target(runtime, "fp32", BATCH), export.path, inputs)
        found = compare_latency(
            floats,
            open_target(_target(runtime, "int8", BATCH), small.path, inputs),
            pairs=200,
            min_seconds=10,
        )
    speedup = found.speedup
    return {
        "floats_ms": found.dense.p50_ms,
        "speedup": speedup.median,
        "low": speedup.low,
        "high": speedup.high,
    }


def _nearness(runtime: str, export: OnnxExport, small: OnnxExport, calls: list[Arrays]) -> dict[str, Any]:
    cosines = []
    for inputs in calls:
        batch = len(next(iter(inputs.values())))
        [floats] = open_target(_target(runtime, "fp32", batch), export.path, inputs).outputs().values()
        [found] = open_target(_target(runtime, "int8", batch), small.path, inputs).outputs().values()
        lengths = np.linalg.norm(floats, axis=1) * np.linalg.norm(found, axis=1)
        near = (floats * found).sum(1) / np.maximum(lengths, np.finfo(np.float32).tiny)
        cosines.extend(np.nan_to_num(near))
    low, median = np.percentile(cosines, (5, 50))
    return {"sentences": len(cosines), "cosine": round(float(median), 4), "cosine_low": round(float(low), 4)}


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "# Two schemes of int8",
        "",
        "`python -m benchmarks.quantization`: all-MiniLM-L6-v2, batch 8 of 48 tokens. `all`: every operator",
        "that can computes in int8; `weighted`: products with weights, and floats between them. Calibrated",
        f"on snippets of the calibration split of the movie reviews, judged on {rows[0]['sentences']} others",
        "of it. An embedding of length 0, or that is no number, counts as a cosine of 0.",
        "",
        "| runtime | scheme | over floats | size | cosine, median | 5th percentile |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        speed = f"{row['speedup']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        size = row["bytes"][1] / row["bytes"][0]
        lines.append(
            f"| {row['runtime']} | {row['scheme']} | {speed} | {size:.0%} | {row['cosine']:.3f} "
            f"| {row['cosine_low']:.3f} |"
        )
    lines += ["", "`over floats`: the median of pairs, with its 95 % interval.", ""]
    lines += where([row["environment"] for row in rows])
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder)))
    (OUT / "quantization.json").write_text(json.dumps(rows, indent=1) + "\n")
    (OUT / "quantization.md").write_text(page(rows))
    print(page(rows))


if __name__ == "__main__":
    main()
