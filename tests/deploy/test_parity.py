"""Models that agree, models that were tampered with, and models that do not run."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from prunekit.deploy import Exported, check_parity, difference, export_onnx
from prunekit.errors import ExportError

torch.set_num_threads(1)


def _batch(*args, **kwargs):
    return SimpleNamespace(args=args, kwargs=kwargs)


@pytest.fixture
def models(exported):
    """A parent and a narrower model of the same class."""
    return exported[8], exported[4]


def test_both_models_say_the_same_in_both_places(models, images):
    parity = check_parity(*models, [_batch(images(3)), _batch(images(3)), _batch(images(5))])
    assert parity.passed
    assert [step.name for step in parity.steps] == [
        f"{name}, batch {size}" for name in ("dense", "pruned") for size in (1, 3, 5)
    ]
    for step in parity.steps:
        assert step.difference.max_rel <= step.tolerance == 1e-4
        assert step.difference.argmax_agreement == 1.0
        assert "within" in step.reason
    assert [step.difference.examples for step in parity.steps[:3]] == [1, 6, 5]
    assert parity.parent_to_pruned.max_rel > 0.01
    assert parity.parent_to_pruned.examples == 11
    assert json.loads(json.dumps(asdict(parity)))["passed"]


def test_a_batch_of_one_is_joined_by_a_batch_of_two(models, images):
    parity = check_parity(*models, [_batch(images(1))])
    assert [step.batch_size for step in parity.steps] == [1, 2, 1, 2]
    assert parity.passed


def test_a_tampered_weight_is_found_and_reported(tmp_path, models, images):
    dense, pruned = models
    model = onnx.load(pruned.export.path)
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    shifted = numpy_helper.to_array(head) + np.array([0.01, 0, 0, 0, 0], np.float32)
    head.CopyFrom(numpy_helper.from_array(shifted, "head.bias"))
    onnx.save(model, str(tmp_path / "tampered.onnx"))
    pruned = replace(pruned, export=replace(pruned.export, path=str(tmp_path / "tampered.onnx")))
    parity = check_parity(dense, pruned, [_batch(images(4))])
    assert not parity.passed
    assert [step.passed for step in parity.steps] == [True, True, False, False]
    assert parity.steps[3].difference.max_abs == pytest.approx(0.01, rel=0.01)
    assert "above the tolerance" in parity.steps[3].reason
    assert check_parity(dense, pruned, [_batch(images(4))], tolerance=0.5).passed


def test_a_file_that_is_gone_fails_its_steps_only(models, images):
    dense, pruned = models
    gone = Exported(dense.model, replace(dense.export, path="/nowhere/model.onnx"))
    parity = check_parity(gone, pruned, [_batch(images(2))])
    assert [step.passed for step in parity.steps] == [False, False, True, True]
    assert "no such file" in parity.steps[0].reason
    assert parity.steps[0].difference is None
    assert parity.parent_to_pruned is not None


def test_inputs_that_do_not_fit_fail_and_are_not_raised(models, images):
    parity = check_parity(*models, [_batch(x=images(2))])
    assert not parity.passed
    assert all("as in the example inputs" in step.reason for step in parity.steps)
    parity = check_parity(*models, [_batch(torch.zeros(2, 3, 6, 6))])
    assert all("does not run on a batch" in step.reason for step in parity.steps)
    assert parity.parent_to_pruned is None
    with pytest.raises(ExportError, match="No batch"):
        check_parity(*models, [])


def test_outputs_that_are_not_numbers_fail(tmp_path):
    class Logarithm(nn.Module):
        def forward(self, x):
            return x.log()

    model = Logarithm()
    exported = Exported(model, export_onnx(model, (torch.ones(2, 3),), None, tmp_path / "model.onnx"))
    parity = check_parity(exported, exported, [_batch(-torch.ones(2, 3))])
    assert not parity.passed
    assert parity.steps[0].reason == "An output is not finite."
    assert json.loads(json.dumps(asdict(parity)))["steps"][0]["difference"]["max_abs"] is None
    assert check_parity(exported, exported, [_batch(torch.zeros(2, 3))]).passed  # -inf in both


def test_a_model_of_one_batch_size_is_checked_at_that_one(tmp_path, residual, images):
    model = residual()
    export = export_onnx(model, (images(3),), None, tmp_path / "model.onnx", dynamic_batch=False)
    exported = Exported(model, export)
    parity = check_parity(exported, exported, [_batch(images(3))])
    assert [step.batch_size for step in parity.steps] == [3, 3]
    assert parity.passed
    assert not check_parity(exported, exported, [_batch(images(4))]).passed


def test_nested_inputs_and_outputs_go_through(tmp_path, nested, nested_inputs):
    export = export_onnx(nested, *nested_inputs(3), tmp_path / "model.onnx")
    exported = Exported(nested, export)
    batches = [_batch(*args, **kwargs) for args, kwargs in map(nested_inputs, (2, 4))]
    parity = check_parity(exported, exported, batches)
    assert parity.passed
    assert parity.parent_to_pruned.max_abs == 0.0


def test_models_are_compared_in_evaluation_mode_and_left_in_theirs(models, images):
    training = [replace(exported, model=copy.deepcopy(exported.model).train()) for exported in models]
    assert check_parity(*training, [_batch(images(2))]).passed
    assert all(module.training for exported in training for module in exported.model.modules())


def test_the_difference_is_that_of_its_definition():
    expected = [np.array([[1.0, 2.0], [4.0, -8.0]]), np.array([10, 20])]
    actual = [np.array([[1.0, 2.5], [4.0, -8.0]]), np.array([10, 21])]
    found = difference(expected, actual)
    assert (found.max_abs, found.max_rel) == (1.0, max(0.5 / 8, 1 / 20))
    assert (found.argmax_agreement, found.examples) == (1.0, 2)
    swapped = difference(expected[:1], [expected[0][:, ::-1]])
    assert swapped.argmax_agreement == 0.0
    assert difference([np.zeros(3)], [np.full(3, 0.25)]).max_rel == 0.25
    assert difference([np.zeros(3)], [np.full(3, np.nan)]).max_abs is None
