"""Exports in int8: close to what they were made from, smaller, and computing in int8 what should."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
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
    """One layer of a transformer that normalizes sums, as BERT does: products and sums read the same."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.up, self.down = nn.Linear(32, 96), nn.Linear(32, 128), nn.Linear(128, 32)
        self.first, self.second, self.third = (nn.LayerNorm(32) for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        heads = self.mix(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        x = self.second(x + nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return self.third(x + self.down(nn.functional.gelu(self.up(x))))


class Speaking(nn.Module):
    """A table of words, which also reads the last word off where it is tied."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(64, 32), nn.Linear(32, 32)
        self.out = nn.Linear(32, 64, bias=False)
        self.register_buffer("order", torch.randperm(64))
        if tied:
            self.out.weight = self.words.weight

    def forward(self, words):
        x = torch.tanh(self.mix(self.words(self.order[words])))
        return nn.functional.linear(x[:, -1], self.out.weight)


MODELS = {
    "convolving": (Convolving, lambda: torch.randn(8, 3, 12, 12)),
    "attending": (Attending, lambda: torch.randn(8, 10, 32)),
    "speaking": (partial(Speaking, tied=False), lambda: torch.randint(0, 64, (8, 6))),
    "speaking, tied": (partial(Speaking, tied=True), lambda: torch.randint(0, 64, (8, 6))),
}


def exported(name: str, folder: Path):
    """A model of the table in floating point, with the inputs of a call."""
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model, x = make().eval(), inputs()
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
    assert small.size_bytes == pytest.approx(export.size_bytes / 4, rel=0.03)  # And a scale for each channel.


def test_the_same_model_gives_the_same_bytes(tmp_path):
    export, inputs = exported("convolving", tmp_path)
    first, second = (quantize_onnx(export, [inputs], tmp_path / f"{n}.onnx") for n in range(2))
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("name", [name for name in MODELS if name != "convolving"])
def test_between_products_with_weights_floats_stay(tmp_path, name):
    export, inputs = exported(name, tmp_path)
    graph = onnx.load(quantize_onnx(export, [inputs], tmp_path / "int8.onnx").path).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    rounded = [node for node in products if "DequantizeLinear" in map(made_by.get, node.input)]
    assert len(rounded) == {"attending": 3}.get(name, 2)  # Attention's two products have no weights.
    for node in graph.node:
        kinds = {made_by.get(each) for each in node.input}
        assert node.op_type != "QuantizeLinear" or not kinds & {"MatMul", "Gemm"}
        looked_up = [each for each in node.input if made_by.get(each) == "DequantizeLinear"]
        if node not in rounded and node.op_type != "QuantizeLinear":
            assert all(each == "embedding" for each in looked_up)


def test_tables_are_looked_up_in_int8_unless_a_product_reads_them_too(tmp_path):
    looked_up = {}
    for name in ("speaking", "speaking, tied"):
        export, inputs = exported(name, tmp_path)
        graph = onnx.load(quantize_onnx(export, [inputs], tmp_path / "int8.onnx").path).graph
        tables = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        [lookup] = [each for each in graph.node if each.op_type == "Gather" and "embedding" in each.name]
        looked_up[name] = str(tables[lookup.input[0]].dtype)
    assert looked_up == {"speaking": "uint8", "speaking, tied": "float32"}


def test_where_all_computes_in_int8_sums_do_too(tmp_path):
    export, inputs = exported("convolving", tmp_path)
    sums = {}
    for scheme in ("all", "weighted"):
        path = quantize_onnx(export, [inputs], tmp_path / "int8.onnx", scheme=scheme).path
        graph = onnx.load(path).graph
        made_by = {output: node.op_type for node in graph.node for output in node.output}
        [read] = [node.input for node in graph.node if node.op_type == "Add"]
        sums[scheme] = [made_by[name] == "DequantizeLinear" for name in read]
    assert sums == {"all": [True, True], "weighted": [False, False]}


def test_seven_bits_leave_the_highest_unused(tmp_path):
    export, inputs = exported("convolving", tmp_path)
    largest = []
    for seven in (False, True):
        small = quantize_onnx(export, [inputs], tmp_path / "int8.onnx", seven_bits=seven)
        graph = onnx.load(small.path).graph
        weights = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) > 1]
        largest.append(max(np.abs(values.astype(int)).max() for values in weights if values.dtype == np.int8))
    assert largest == [127, 64]


def test_more_inputs_widen_the_ranges(tmp_path):
    export, inputs = exported("convolving", tmp_path)
    wide = {key: 10 * value for key, value in inputs.items()}
    scales = [
        _largest_scale(quantize_onnx(export, calls, tmp_path / "int8.onnx"))
        for calls in ([inputs], [inputs, wide])
    ]
    assert scales[1] > 5 * scales[0]


def test_the_root_of_all_logs_gets_no_handler(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    export, inputs = exported("convolving", tmp_path)
    quantize_onnx(export, [inputs], tmp_path / "int8.onnx")
    assert logging.root.handlers == []


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
    "the name of the source": (
        lambda export, inputs: (export, [inputs], export.path),
        ExportError,
        "the name of its source",
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
        quantize_onnx(*[*change(export, inputs), tmp_path / "out" / "int8.onnx"][:3])
    assert not list((tmp_path / "out").iterdir())


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.weight_scale = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.ones(8))

    def forward(self, x):
        return nn.functional.linear(x, self.weight) * self.weight_scale


@pytest.mark.parametrize(
    ("model", "says"),
    [(nn.Sequential(nn.ReLU()), "Nothing in the model computes in int8"), (Doubling(), "'weight_scale'")],
)
def test_models_that_have_nothing_or_names_of_the_quantizer_are_refused(tmp_path, model, says):
    x = torch.randn(4, 8)
    export = export_onnx(model.eval(), (x,), None, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=says):
        quantize_onnx(export, [feed(export, (x,))], tmp_path / "int8.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"}


def test_a_folder_that_is_not_there_is_said(tmp_path):
    export, inputs = exported("convolving", tmp_path)
    with pytest.raises(StorageError, match="could not be written"):
        quantize_onnx(export, [inputs], tmp_path / "nowhere" / "int8.onnx")
