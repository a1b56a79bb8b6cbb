"""A recipe whose model ships in int8: what is measured, evaluated and judged is the quantized file."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from tests.workflow import tiny_workload
from torch import nn

from prunekit.deploy import quantization
from prunekit.errors import ExportError, RecipeError
from prunekit.files import file_digest
from prunekit.measure import Target, file_size, open_target
from prunekit.recipe import load_recipe
from prunekit.workflow.opening import read_run
from prunekit.workflow.order import stages_of
from prunekit.workflow.run import _inputs
from prunekit.workflow.source import open_source, read_given

from .conftest import Project, make_project

INT8 = "target: {precision: int8}\ngates:\n"
MODELS = ("dense", "pruned")


EVIDENCE = {
    "dense": "dense",
    "pruned": "pruned.int8",
    "dense.int8": "dense.int8",
    "pruned.floats": "pruned",
}
"""By the name of a table of evidence, the exported file that it is about."""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    project = make_project(tmp_path_factory.mktemp("int8") / "project")
    project.edit("gates:\n", INT8)
    project.edit("schedule: {cycles: 2}", "schedule: {cycles: 1}")
    return project, *project.run()


def result(project: Project, stage: str) -> dict:
    return json.loads(project.file(f"{stage}/result.json").read_text())


def losses(project: Project, name: str) -> np.ndarray:
    """Of a file of the export on the test split, asked without prunekit's module around it."""
    images, labels = tiny_workload.workload().splits.open_test().examples.tensors
    target = Target(batch=len(images), precision="int8" if name.endswith(".int8") else "fp32")
    runner = open_target(target, project.file(f"export/{name}.onnx"), {"image": images.numpy()})
    logits = torch.from_numpy(next(iter(runner.outputs().values())))
    return nn.functional.cross_entropy(logits, labels, reduction="none").numpy()


def test_both_are_there_in_floats_and_in_int8(shipped):
    project, _, _ = shipped
    for name in MODELS:
        kinds = {
            which: {node.op_type for node in onnx.load(project.file(f"export/{which}.onnx")).graph.node}
            for which in (name, f"{name}.int8")
        }
        assert "QuantizeLinear" in kinds[f"{name}.int8"] - kinds[name]


def test_what_is_measured_is_the_quantized_file(shipped):
    project, _, _ = shipped
    validation = result(project, "validate")
    for name in MODELS:
        assert validation["size"][f"{name}_bytes"] == file_size(project.file(f"export/{name}.int8.onnx"))
    assert validation["latency"]["precision"] == "int8"


@pytest.mark.parametrize("table", EVIDENCE)
def test_what_is_evaluated_is_what_ships_against_the_parent_in_floats(shipped, table):
    """Oracle: the runtime alone."""
    project, _, _ = shipped
    evidence = {
        name: pd.read_parquet(project.file(f"evaluate/{name}.parquet"))["loss"].to_numpy()
        for name in EVIDENCE
    }
    np.testing.assert_allclose(evidence[table], losses(project, EVIDENCE[table]), rtol=1e-4, atol=1e-6)
    others = [values for name, values in evidence.items() if name != table]
    assert all(not np.allclose(evidence[table], values, rtol=1e-2) for values in others)


def test_what_int8_costs_by_itself_is_told(shipped):
    project, _, outcome = shipped
    told = result(project, "evaluate")["shipped"]
    right = {
        name: pd.read_parquet(project.file(f"evaluate/{name}.parquet"))["correct"].mean() for name in EVIDENCE
    }
    change = result(project, "evaluate")["overall"]["change"]
    assert change == pytest.approx(right["pruned"] - right["dense"])
    assert outcome.gates[0].observed == pytest.approx(-change)
    assert told["int8_of_dense"]["change"] == pytest.approx(right["dense.int8"] - right["dense"])
    assert told["int8_of_pruned"]["change"] == pytest.approx(right["pruned"] - right["pruned.floats"])
    assert told["statement"] in outcome.notes
    sizes = [file_size(project.file(f"export/pruned{end}.onnx")) for end in ("", ".int8")]
    assert f"the pruned model's file from {sizes[0]:,} to {sizes[1]:,} bytes" in outcome.notes[0]
    assert "ranges from 48 calibration examples" in outcome.notes[0]
    page = outcome.report.read_text()
    assert "in int8 on onnxruntime, against the parent in floats" in page
    assert "the exports before quantization" in page
    assert file_digest(project.file("export/pruned.int8.onnx")) in page
    assert "onnxruntime, int8, 1 thread" in page


def test_another_precision_repeats_what_it_changes(shipped, monkeypatch):
    project, _, _ = shipped

    def stale() -> list[str]:
        given = read_given(project.recipe)
        directory, source = read_run(project.run_dir), open_source(given)
        return [
            stage.name
            for stage in stages_of(given.recipe)
            if directory.why_stale(stage.name, _inputs(stage, source, directory))
        ]

    def stale_with(old: str, new: str) -> list[str]:
        project.edit(old, new)
        try:
            return stale()
        finally:
            project.edit(new, old)

    assert stale() == []
    assert stale_with("precision: int8", "precision: fp32") == ["export", "validate", "evaluate"]
    assert stale_with("target: {", "export: {calibration: 8}\ntarget: {") == ["export"]
    seven_bits = quantization._saturates()
    monkeypatch.setattr(quantization, "_saturates", lambda: not seven_bits)
    assert stale() == ["export"]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_measured_goal_in_int8_end_to_end(tmp_path, runtime):
    project = make_project(tmp_path / "project")
    where = f"{{runtime: {runtime}, precision: int8, most_levels: 3, variants: 1, seconds: 0.05}}"
    goal = "goal: {kind: size_bytes, reach: 12000, tolerance: 0.2}"
    project.edit("goal: {kind: macs, remove: 0.5, tolerance: 0.05}", f"{goal}\ntarget: {where}")
    project.run()
    [goal] = result(project, "validate")["goals"]
    assert goal["met"]
    assert goal["same_target"]
    assert goal["validated"] == file_size(project.file("export/pruned.int8.onnx"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("self.to(torch.float64)", "weights in double. Expected float32"),
        (
            "self.fc.register_buffer('weight_scale', torch.ones(3))",
            "'fc.weight_scale', which is what the quantizer would call one",
        ),
    ],
)
def test_what_cannot_be_quantized_is_refused_before_anything_is_trained(project, line, says):
    project.edit("gates:\n", INT8)
    workload = project.recipe.with_name("workload.py")
    text = workload.read_text()
    for old, new in (
        ("nn.Linear(16, len(CLASSES))", f"nn.Linear(16, len(CLASSES))\n        {line}"),
        ("self.stem(image)", "self.stem(image.to(self.fc.weight.dtype))"),
        ("return self.fc(", "return getattr(self.fc, 'weight_scale', 1) * self.fc("),
    ):
        assert old in text
        text = text.replace(old, new)
    workload.write_text(text)
    with pytest.raises(ExportError, match=says) as error:
        project.run()
    assert "\n" not in str(error.value)
    assert not project.file("baseline/result.json").exists()


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ("target: {runtime: torch_eager, precision: int8}\n", "target.runtime"),
        ("target: {precision: int8}\nvalidate: {runtime: torch_compile}\n", "validate.runtime"),
        ("validate: {runtime: torch_eager, precision: int8}\n", "validate.runtime"),
    ],
)
def test_modules_are_not_quantized(project, sections, key):
    project.edit("validate: {pairs: 20, warmup: 2}\n", sections)
    with pytest.raises(RecipeError, match="onnxruntime or openvino") as error:
        load_recipe(project.recipe)
    assert key in str(error.value)
