"""What ships: the exports, and where the precision is int8 both models quantized, served by their runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from prunekit.deploy import OnnxExport, Scheme, Served, export_onnx, feed, quantize_onnx
from prunekit.deploy.quantization import quantizer_version
from prunekit.errors import ExportError
from prunekit.evaluate import Comparison
from prunekit.graph import trace
from prunekit.recipe import Recipe
from prunekit.targeting.rig import scheme_of
from prunekit.workflow.job import Job, Result
from prunekit.workflow.models import build_under
from prunekit.workflow.targets import validation_target
from prunekit.workload import DecidingWorkload

EXPORTS = "exports.json"
"""How the exported files are called and fed, without timings, so that an export made again is the same."""

INT8 = ".int8"
"""End of the name of a quantized export."""

FLOATS = ".floats"
"""End of the name of the evidence of a model that ships in int8, as it is before."""

RANGES_BATCH = 32
"""Calibration examples in a call that ranges are found on; without influence on the result."""


def read_exports(job: Job, *, as_shipped: bool = False) -> dict[str, OnnxExport]:
    """``dense`` and ``pruned`` as they were exported, or as they ship."""
    file = job.files[f"export/{EXPORTS}"]
    content = json.loads(file.read_text())
    end = INT8 if as_shipped and job.recipe.ships_int8 else ""
    found = {name: content[f"{name}{end}"] for name in ("dense", "pruned")}
    return {
        name: replace(OnnxExport(**fields), path=str(file.parent / fields["path"]))
        for name, fields in found.items()
    }


def check_int8(recipe: Recipe, workload: DecidingWorkload) -> None:
    """Find out before anything is trained whether the model can be exported and quantized.

    Raises:
        ExportError: it cannot.
    """
    model, example = build_under(recipe.seed, workload), workload.example_inputs()
    inputs = (example.args, dict(example.kwargs))
    with TemporaryDirectory() as folder:
        floats, int8 = (Path(folder) / name for name in ("dense.onnx", f"dense{INT8}.onnx"))
        try:
            export = export_onnx(model, *inputs, floats, opset=recipe.export.opset)
            quantize_onnx(export, [feed(export, *inputs)], int8, scheme=_scheme(model, workload))
        except ExportError as error:  # Of files that are gone.
            told = ExportError(
                error.given,
                expected=error.expected,
                where="the model before training, which is to be in int8",
                remedy=error.remedy,
            )
            told.__notes__ = [*getattr(error, "__notes__", ())]
            raise told from error


def quantized(
    job: Job, exports: Mapping[str, OnnxExport], dense: nn.Module
) -> tuple[dict[str, OnnxExport], Result]:
    """Both in int8 with ranges from the same calibration examples, by the scheme that planning takes.

    Returns:
        The exports by name, and how they were made.
    """
    split = job.workload.splits.calibration
    order = split.order(job.seed)[: job.recipe.export.calibration]
    batches = [split.batch(order[at : at + RANGES_BATCH]) for at in range(0, len(order), RANGES_BATCH)]
    calls = [feed(exports["dense"], batch.args, dict(batch.kwargs)) for batch in batches]
    scheme = _scheme(dense, job.workload)
    made: dict[str, OnnxExport] = {}
    for name, export in exports.items():
        file = job.out / f"{name}{INT8}.onnx"
        made[f"{name}{INT8}"] = quantize_onnx(export, calls, file, scheme=scheme)
        job.progress(len(exports) + len(made), 2 * len(exports))
    sizes = [
        f"the {who}'s file from {exports[name].size_bytes:,} to {made[f'{name}{INT8}'].size_bytes:,} bytes"
        for name, who in (("dense", "parent"), ("pruned", "pruned model"))
    ]
    how = {
        "scheme": scheme,
        "calibration": len(order),
        "quantizer": quantizer_version(),
        "statement": f"Both models were quantized, with ranges from {len(order):,} calibration examples: "
        f"{' and '.join(sizes)}.",
    }
    return made, how


def _scheme(dense: nn.Module, workload: DecidingWorkload) -> Scheme:
    """The one that planning takes, for the pruned model too."""
    example = workload.example_inputs()
    return scheme_of(trace(dense, example.args, dict(example.kwargs)))


def served(job: Job, models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """``dense`` and ``pruned`` as they ship, as modules whose answers come from the runtime."""
    example = job.workload.example_inputs()
    inputs = (example.args, dict(example.kwargs))
    target = validation_target(job.recipe)
    return {
        name: Served(export, models[name], inputs, target)
        for name, export in read_exports(job, as_shipped=True).items()
    }


def to_evaluate(job: Job, models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """By the name of its evidence what is evaluated: ``dense`` is the parent as given, ``pruned`` what ships.

    Where that is int8, both are evaluated in the other precision too, which tells what quantization changes.
    """
    if not job.recipe.ships_int8:
        return dict(models)
    in_int8 = served(job, models)
    return {
        "dense": models["dense"],
        "pruned": in_int8["pruned"],
        f"dense{INT8}": in_int8["dense"],
        f"pruned{FLOATS}": models["pruned"],
    }


def shipped(job: Job, of_dense: Comparison, of_pruned: Comparison) -> Result:
    """What was evaluated in the place of the pruned model, and what int8 changes of each model's quality."""
    target = validation_target(job.recipe)
    said = [_change(name, found) for name, found in (("parent", of_dense), ("pruned model", of_pruned))]
    return {
        "runtime": target.runtime,
        "precision": target.precision,
        "int8_of_dense": asdict(of_dense.overall),
        "int8_of_pruned": asdict(of_pruned.overall),
        "statement": f"Quality is that of the pruned model as it ships, in int8 on {target.runtime}, against "
        f"the parent in floats; speed, size and memory compare both in int8. int8 alone changes "
        f"{' and '.join(said)} ({job.workload.metric}, {of_dense.confidence:.0%} intervals).",
    }


def _change(name: str, found: Comparison) -> str:
    overall = found.overall
    return f"the {name} by {overall.change:+.4f} ({overall.low:+.4f} to {overall.high:+.4f})"
