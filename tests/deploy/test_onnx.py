"""Real exports; PyTorch itself says what the files should compute."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import warnings
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from prunekit.deploy import OPSETS, export_onnx, feed, onnx_file, output_tensors
from prunekit.errors import ExportError, StorageError
from prunekit.graph import find_groups, trace
from prunekit.graph.rewrite import rewrite
from prunekit.measure import file_size, open_onnx

torch.set_num_threads(1)


def _assert_same(export, model, args, kwargs=None):
    inputs = feed(export, args, kwargs)
    found = open_onnx(export.path, inputs, threads=1).outputs()
    with torch.no_grad():
        expected = output_tensors(model(*args, **(kwargs or {})))
    assert tuple(found) == export.output_names
    for actual, wanted in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_allclose(actual, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("example", [1, 5])
def test_the_file_computes_what_the_model_computes_at_any_batch_size(tmp_path, residual, images, example):
    model = residual().eval()
    export = export_onnx(model, (images(example),), None, tmp_path / "model.onnx")
    assert (export.input_names, export.output_names) == (("x",), ("output",))
    assert (export.dynamic_batch, export.batch_size) == (True, example)
    for size in (1, 2, 7):
        _assert_same(export, model, (images(size),))
    value = onnx.load(export.path).graph.input[0]
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["batch", 1, 6, 6]


def test_nested_inputs_and_outputs_keep_their_names(tmp_path, nested, nested_inputs):
    export = export_onnx(nested, *nested_inputs(3), tmp_path / "model.onnx")
    assert export.input_names == ("x", "pair_a", "pair_b_0", "bias", "mask")
    assert export.output_names == ("logits", "extra_sum", "extra_same_0", "extra_same_1")
    for size in (1, 4):
        args, kwargs = nested_inputs(size)
        _assert_same(export, nested, args, dict(reversed(kwargs.items())))


def test_the_record_is_that_of_the_file(exported):
    export = exported[8].export
    path = Path(export.path)
    record = json.loads(json.dumps(asdict(export)))
    assert record["sha256"] == sha256(path.read_bytes()).hexdigest()
    assert record["size_bytes"] == file_size(path) == path.stat().st_size
    assert record["opset"] == onnx.load(export.path).opset_import[0].version == 20
    assert record["weights_path"] is None
    assert sorted(file.name for file in path.parent.iterdir()) == ["4.onnx", "8.onnx"]


def test_the_model_is_left_as_it_was(tmp_path, residual, images):
    model = residual()
    model.train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    export_onnx(model, (images(2),), None, tmp_path / "model.onnx")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_nothing_of_this_machine_is_in_the_file_and_nothing_is_said(tmp_path, residual, images, capfd):
    handlers = {name: list(logging.getLogger(name).handlers) for name in ("torch", "onnxscript", "onnx_ir")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export = export_onnx(residual(), (images(2),), None, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert caught == []
    assert {name: logging.getLogger(name).handlers for name in handlers} == handlers
    data = Path(export.path).read_bytes()
    for trace_of_it in (str(Path.cwd()), "site-packages", "conftest", "forward", "pkg.torch"):
        assert trace_of_it.encode() not in data
    assert socket.gethostname() == "localhost" or socket.gethostname().encode() not in data
    model = onnx.load_from_string(data)
    assert {tensor.name for tensor in model.graph.initializer} >= {"stem.weight", "head.weight", "head.bias"}


def test_the_exporters_own_table_gives_the_same_bytes(tmp_path, residual, images, exported, monkeypatch):
    """Oracle: torch.onnx as it is, which makes its table of translations anew."""
    monkeypatch.setattr("prunekit.deploy.translations._look_up", None)
    again = export_onnx(residual(), (images(2),), None, tmp_path / "model.onnx")
    assert again.sha256 == exported[8].export.sha256


def test_the_same_model_gives_the_same_bytes_in_another_process(tmp_path, exported):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from conftest import build_residual, draw_images\n"
        "from prunekit.deploy import export_onnx\n"
        "print(export_onnx(build_residual(8), (draw_images(2),), None, 'there.onnx').sha256)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == exported[8].export.sha256


def test_a_name_may_be_that_of_an_inner_value_or_of_the_other_end(tmp_path):
    class Clashing(nn.Module):
        def forward(self, mean, output):
            return {"output": mean.mean(1, keepdim=True) + output, "relu": output.relu().mean(1)}

    args = (torch.randn(3, 4), torch.randn(3, 4))
    export = export_onnx(Clashing(), args, None, tmp_path / "model.onnx")
    assert export.input_names == ("mean", "output")
    assert export.output_names == ("output_1", "relu")
    _assert_same(export, Clashing(), args)


def test_an_input_may_be_an_output_and_an_output_may_appear_twice(tmp_path):
    class Again(nn.Module):
        def forward(self, x):
            y = x * 2
            return y, y, x

    export = export_onnx(Again(), (torch.randn(3, 4),), None, tmp_path / "model.onnx")
    _assert_same(export, Again(), (torch.randn(5, 4),))


def test_a_recurrent_layer_keeps_its_batch_open(tmp_path):
    model = nn.GRU(4, 3, batch_first=True).eval()
    export = export_onnx(model, (torch.randn(2, 5, 4),), None, tmp_path / "model.onnx")
    _assert_same(export, model, (torch.randn(3, 5, 4),))


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_the_ends_of_the_opsets_are_reached_and_run(tmp_path, opset):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(64, 3))
    args = (torch.randn(2, 1, 6, 6),)
    export = export_onnx(model.eval(), args, None, tmp_path / "model.onnx", opset=opset)
    assert onnx.load(export.path).opset_import[0].version == opset
    _assert_same(export, model, args)


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[-1] + 1])
def test_another_opset_is_refused(tmp_path, residual, images, opset):
    with pytest.raises(ExportError, match=f"Opset {opset} .* 18 to 23"):
        export_onnx(residual(), (images(2),), None, tmp_path / "model.onnx", opset=opset)


def test_weights_above_the_limit_go_to_a_file_of_their_own(tmp_path, residual, images, monkeypatch):
    monkeypatch.setattr(onnx_file, "SINGLE_FILE_BYTES", 1000)
    path = tmp_path / "model.onnx"
    model = residual(64).eval()
    export = export_onnx(model, (images(2),), None, path)
    weights = tmp_path / "model.onnx.data"
    assert export.weights_path == str(weights)
    assert export.weights_sha256 == sha256(weights.read_bytes()).hexdigest()
    assert export.size_bytes == path.stat().st_size + weights.stat().st_size == file_size(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    _assert_same(export, model, (images(3),))


def test_a_model_of_one_batch_size_says_so(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x + torch.ones(2, 4)

    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"static shape of 2 for dimension input x.*dynamic_batch=False"):
        export_onnx(Fixed(), (torch.zeros(2, 4),), None, path)
    assert list(tmp_path.iterdir()) == []
    export = export_onnx(Fixed(), (torch.zeros(2, 4),), None, path, dynamic_batch=False)
    assert not export.dynamic_batch
    _assert_same(export, Fixed(), (torch.randn(2, 4),))


def test_a_refusal_is_one_paragraph_that_names_the_line_and_carries_what_was_said(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError) as caught:
        export_onnx(Branching(), (torch.ones(2, 4),), None, tmp_path / "model.onnx")
    text = str(caught.value)
    assert "\n" not in text
    assert "return x if x.sum() > 0 else -x" in text
    assert Path(__file__).name in text
    assert "The exporter said" in caught.value.__notes__[0]


def test_wrong_example_inputs_are_told_from_a_refusal(tmp_path, residual):
    with pytest.raises(ExportError, match="Residual does not run on the example inputs"):
        export_onnx(residual(), (torch.zeros(2, 3),), None, tmp_path / "model.onnx")

    class Silent(nn.Module):
        def forward(self, x):
            return "nothing"

    with pytest.raises(ExportError, match="Silent gives no tensor"):
        export_onnx(Silent(), (torch.zeros(2, 3),), None, tmp_path / "model.onnx")


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path, residual, images, monkeypatch):
    with pytest.raises(StorageError, match="absent"):
        export_onnx(residual(), (images(2),), None, tmp_path / "absent" / "model.onnx")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was there")

    def full(path, data):
        path.write_bytes(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_file, "_store", full)
    with pytest.raises(StorageError, match="No space left"):
        export_onnx(residual(seed=1), (images(2),), None, path)
    assert path.read_bytes() == b"what was there"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_inputs_given_in_another_way_are_refused(exported, images):
    export = exported[8].export
    with pytest.raises(ExportError, match=r"\[1\]\['x'\]"):
        feed(export, (), {"x": images(2)})
    with pytest.raises(ExportError, match=r"given at \[\]"):
        feed(export, ())


def test_the_graph_of_a_model_has_the_names_of_its_own_class(tmp_path, exported, images):
    """As after a removal that the attributes of the class cannot follow."""
    model, own = exported[8].model.eval(), exported[8].export
    groups = find_groups(trace(model, (images(2),)))
    graph, _ = rewrite(groups, {}, dict(model.state_dict(keep_vars=True)))
    export = export_onnx(graph, (images(2),), None, tmp_path / "graph.onnx")
    assert (export.input_names, export.output_names) == (own.input_names, own.output_names)
    _assert_same(export, model, (images(3),))
