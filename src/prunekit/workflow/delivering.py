"""The stages that measure and judge: export, validate, evaluate, gate. Only evaluate opens the test split."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from prunekit.deploy import Exported, OnnxExport, check_parity, export_onnx, feed
from prunekit.errors import ExportError
from prunekit.evaluate import compare, facts_from_results, judge, write_evidence
from prunekit.measure import (
    RUNTIMES,
    Target,
    compare_latency,
    environment,
    file_size,
    open_target,
    peak_memory,
)
from prunekit.measure.priority import real_time
from prunekit.workflow.deciding import name_of, weights_before
from prunekit.workflow.job import Job, Result
from prunekit.workflow.models import dense_model, pruned_model, read_plan
from prunekit.workflow.rundir import write_json
from prunekit.workflow.shipping import (
    EXPORTS,
    FLOATS,
    INT8,
    quantized,
    read_exports,
    shipped,
    to_evaluate,
)
from prunekit.workflow.targets import validation_target
from prunekit.workflow.validated import Validated, judged_goals
from prunekit.workload import predict

PARITY_BATCHES = (1, 8)


def run_export(job: Job) -> Result:
    """Export the dense parent and the pruned model, and quantize both where int8 ships."""
    example = job.workload.example_inputs()
    models, exports, how = _both_models(job), {}, {}
    steps = 4 if job.recipe.ships_int8 else 2
    for done, (name, model) in enumerate(models.items(), start=1):
        exports[name] = export_onnx(
            model,
            example.args,
            dict(example.kwargs),
            job.out / f"{name}.onnx",
            opset=job.recipe.export.opset,
        )
        job.progress(done, steps)
    if job.recipe.ships_int8:
        in_int8, how["quantization"] = quantized(job, exports, models["dense"])
        exports |= in_int8
    content = {name: asdict(_relative(export)) for name, export in exports.items()}
    write_json(job.out / EXPORTS, {name: {**fields, "seconds": 0.0} for name, fields in content.items()})
    return {**content, **how}


def run_validate(job: Job) -> Result:
    """Compare the exported models with PyTorch's, and measure latency, memory and size.

    Raises:
        ExportError: an exported model does not say what its PyTorch model says.
    """
    settings, target = job.recipe.validation, validation_target(job.recipe)
    models = _both_models(job)
    parity = _check_parity(job, read_exports(job))
    exports = read_exports(job, as_shipped=True)
    example = job.workload.example_inputs(target.batch)
    arrays = {name: feed(export, example.args, example.kwargs) for name, export in exports.items()}
    files = {name: Path(export.path) for name, export in exports.items()}
    is_file = RUNTIMES[target.runtime].takes == "file"
    modules_inputs = (example.args, dict(example.kwargs))
    with real_time(job.recipe.target_or_default.real_time):
        runners = {
            name: open_target(target, files[name], arrays[name])
            if is_file
            else open_target(target, models[name], modules_inputs)
            for name in exports
        }
        latency = compare_latency(
            runners["dense"],
            runners["pruned"],
            pairs=settings.pairs,
            warmup=settings.warmup,
            seed=job.seed,
            progress=job.progress,
        )
    pd.DataFrame(latency.columns()).to_parquet(job.out / "latency.parquet", index=False)
    there = target if is_file else Target(threads=target.threads)
    memory = {
        name: peak_memory(
            files[name],
            arrays[name],
            threads=there.threads,
            runtime=there.runtime,  # pyright: ignore[reportArgumentType]
            precision=there.precision,
        )
        for name in exports
    }
    goals = {}
    if job.recipe.by_target:
        peak, shipping = memory["pruned"].peak_bytes, to_evaluate(job, models)
        goals["goals"] = judged_goals(job, Validated(target, latency, peak, files["pruned"], shipping))
    return {
        "parity": parity,
        **goals,
        "latency": {
            "runtime": target.runtime,
            "batch": target.batch,
            "threads": target.threads,
            **({"precision": target.precision} if target.precision != "fp32" else {}),
            "options": runners["pruned"].options,
            **latency.summary(),
        },
        "memory": {
            **{f"{name}_bytes": use.peak_bytes for name, use in memory.items()},
            **{name: asdict(use) for name, use in memory.items()},
        },
        "size": {f"{name}_bytes": file_size(file) for name, file in files.items()},
        "environment": environment(target.threads),
    }


def _check_parity(job: Job, exports: dict[str, OnnxExport]) -> Result:
    """The parity chain over a few calibration batches, each step as one flat row."""
    exported = {name: Exported(model, exports[name]) for name, model in _both_models(job).items()}
    batches = [job.workload.example_inputs(size) for size in PARITY_BATCHES]
    parity = check_parity(
        exported["dense"], exported["pruned"], batches, threads=validation_target(job.recipe).threads
    )
    failed = [f"{step.name}: {step.reason}" for step in parity.steps if not step.passed]
    if failed:
        raise ExportError(
            f"An exported model does not say what its PyTorch model says: {' '.join(failed)}",
            remedy="Look for operators that the exporter renders differently, or try another export.opset",
        )
    steps = []
    for step in parity.steps:
        row = asdict(step)
        steps.append({**row, **(row.pop("difference") or {})})
    return {**asdict(parity), "steps": steps}


def run_evaluate(job: Job) -> Result:
    """Predict the test examples with the parent and with what ships, and compare."""
    assert job.open_test is not None
    test, settings = job.open_test(), job.recipe.evaluate
    models = to_evaluate(job, _both_models(job))
    tables: dict[str, pd.DataFrame] = {}
    for name, model in models.items():
        before = len(tables) * len(test)
        tables[name] = predict(
            model,
            test,
            job.workload,
            batch_size=settings.batch_size,
            progress=lambda done, total, before=before: job.progress(before + done, len(models) * total),
        )
        write_evidence(tables[name], job.out / f"{name}.parquet", metric=job.workload.metric)
    comparing = partial(
        compare,
        metric=job.workload.metric,
        seed=job.seed,
        resamples=settings.resamples,
        confidence=settings.confidence,
    )
    found = asdict(comparing(tables["dense"], tables["pruned"]))
    if job.recipe.ships_int8:
        of_dense = comparing(tables["dense"], tables[f"dense{INT8}"])
        of_pruned = comparing(tables[f"pruned{FLOATS}"], tables["pruned"])
        found["shipped"] = shipped(job, of_dense, of_pruned)
    return found


def run_gate(job: Job) -> Result:
    """Judge the gates of the recipe over what was evaluated and measured."""
    evaluation, validation = (
        json.loads(job.files[f"{stage}/result.json"].read_text()) for stage in ("evaluate", "validate")
    )
    results = judge(job.recipe.gates, facts_from_results(evaluation, validation))
    return {
        "accepted": all(result.passed for result in results),
        "gates": [asdict(result) for result in results],
    }


def _both_models(job: Job) -> dict[str, nn.Module]:
    """The dense parent and the pruned model after the last cycle."""
    last = job.recipe.schedule.cycles
    plan = read_plan(job.files[f"{name_of(last)}/plan/plan.json"])
    return {"dense": dense_model(job), "pruned": pruned_model(job, plan, job.files[weights_before(last + 1)])}


def _relative(export: OnnxExport) -> OnnxExport:
    """The same with file names in place of paths: the stage's directory gets its name later."""
    weights = export.weights_path
    return replace(export, path=Path(export.path).name, weights_path=Path(weights).name if weights else None)
