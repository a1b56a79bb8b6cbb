"""Exports in int8: close to what they were made from, smaller, and computing in int8 what should."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from prunekit.deploy import OnnxExport, export_onnx, feed, quantize_onnx
from prunekit.errors import ExportError, StorageError
from prunekit.files import file_digest
from prunekit.measure import Target, file_size, open_target


class Convolving(nn.Module):
    """Convolutions with batch normalization, a sum and one product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.block, self.block_norm = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 8)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(x)))
        return self.head((x + torch.relu(self.block_norm(self.block(x)))).mean((2, 3)))


class Attending(nn.Module):
    """One layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(32), nn.Linear(32, 96)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x):
        heads = self.mix(self.norm(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        x = x + nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return x + self.down(nn.functional.gelu(self.up(x)))


MODELS = {"convolving": (Convolving, (3, 12, 12)), "attending": (Attending, (10, 32))}


def exported(name: str, folder: Path, examples: int = 8):
    """A model of the table in floating point, with the inputs of a call."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make().eval(), torch.randn(examples, *shape)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    export = export_onnx(model, (x,), None, folder / f"{name}.onnx")
    return export, feed(export, (x,))


def _output(target: Target, export: OnnxExport, inputs: dict[str, np.ndarray]) -> np.ndarray:
    [output] = open_target(target, export.path, inputs).outputs().values()
    return output


def _largest_scale(export: OnnxExport) -> float:
    constants = onnx.load(export.path).graph.initializer
    scales = [each for each in constants if each.name.endswith("_scale") and not each.dims]
    return max(float(onnx.numpy_helper.to_array(each)) for each in scales)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_is_close_to_what_it_was_made_from_at_any_batch(tmp_path, name, runtime):
    export, inputs = exported(name, tmp_path)
    small = quantize_onnx(export, [inputs], tmp_path / "int8.onnx")
    for examples in (1, 8):
        some = {key: value[:examples] for key, value in inputs.items()}
        dense = _output(Target(runtime, batch=examples), export, some)
        found = _output(Target(runtime, batch=examples, precision="int8"), small, some)
        error = np.linalg.norm(found - dense) / np.linalg.norm(dense)
        assert 0 < error < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_the_record_is_that_of_the_file_and_the_source_stays(tmp_path, name):
    export, inputs = exported(name, tmp_path)
    small = quantize_onnx(export, [inputs], tmp_path / "int8.onnx")
    assert (small.size_bytes, small.sha256) == (file_size(small.path), file_digest(Path(small.path)))
    assert file_digest(Path(export.path)) == export.sha256
    own = {"path", "size_bytes", "sha256", "seconds"}
    fields = {key: value for key, value in vars(export).items() if key not in own}
    assert fields == {key: value for key, value in vars(small).items() if key not in own}
    assert {path.name for path in tmp_path.iterdir()} == {"int8.onnx", f"{name}.onnx"}


def test_weights_take_a_quarter(tmp_path):
    model, x = nn.Linear(1024, 1024).eval(), torch.randn(4, 1024)
    export = export_onnx(model, (x,), None, tmp_path / "model.onnx")
    small = quantize_onnx(export, [feed(export, (x,))], tmp_path / "int8.onnx")
    assert small.size_bytes == pytest.approx(export.size_bytes / 4, rel=0.02)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    export, inputs = exported("convolving", tmp_path)
    first, second = (quantize_onnx(export, [inputs], tmp_path / f"{n}.onnx") for n in range(2))
    assert first.sha256 == second.sha256


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        # The rectified sum, its mean and the product; a bias of a product is added behind it.
        ("convolving", {"Conv": 2, "Add": 1, "ReduceMean": 0, "Gemm": 1}),
        ("attending", {"Conv": 0, "Add": 0, "Softmax": 0, "LayerNormalization": 0, "MatMul": 3}),
    ],
)
def test_transformers_compute_their_products_with_weights_in_int8_and_nothing_else(tmp_path, name, kinds):
    export, inputs = exported(name, tmp_path)
    graph = onnx.load(quantize_onnx(export, [inputs], tmp_path / "int8.onnx").path).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    found = Counter(
        node.op_type
        for node in graph.node
        if all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2])
    )
    assert {kind: found[kind] for kind in kinds} == kinds


def test_more_inputs_widen_the_ranges(tmp_path):
    export, inputs = exported("convolving", tmp_path)
    wide = {key: 10 * value for key, value in inputs.items()}
    scales = [
        _largest_scale(quantize_onnx(export, calls, tmp_path / "int8.onnx"))
        for calls in ([inputs], [inputs, wide])
    ]
    assert scales[1] > 5 * scales[0]


def test_nobody_else_s_log_is_touched(tmp_path):
    before = list(logging.root.handlers)
    export, inputs = exported("convolving", tmp_path)
    quantize_onnx(export, [inputs], tmp_path / "int8.onnx")
    assert logging.root.handlers == before


BAD = {
    "no inputs": (lambda export, inputs: (export, []), ExportError, "no inputs to find the ranges"),
    "inputs of another name": (
        lambda export, inputs: (export, [{"y": inputs["x"]}]),
        ExportError,
        "cannot be quantized",
    ),
    "a file that is gone": (
        lambda export, inputs: (replace(export, path=export.path + ".gone"), [inputs]),
        ExportError,
        "no such file",
    ),
    "weights elsewhere": (
        lambda export, inputs: (replace(export, weights_path="weights"), [inputs]),
        ExportError,
        "a file of their own",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_quantized_is_said_and_leaves_nothing(tmp_path, case):
    change, error, says = BAD[case]
    export, inputs = exported("convolving", tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(error, match=says):
        quantize_onnx(*change(export, inputs), tmp_path / "out" / "int8.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_is_not_there_is_said(tmp_path):
    export, inputs = exported("convolving", tmp_path)
    with pytest.raises(StorageError, match="could not be written"):
        quantize_onnx(export, [inputs], tmp_path / "nowhere" / "int8.onnx")
