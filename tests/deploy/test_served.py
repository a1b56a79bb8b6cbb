"""A module whose answers come from a runtime; oracle: the PyTorch model that was exported."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import SequenceClassifierOutput

from prunekit.deploy import Served, export_onnx
from prunekit.errors import ExportError, MeasurementError
from prunekit.measure import Target


@dataclass(frozen=True)
class Unknown:
    scores: torch.Tensor
    more: tuple[torch.Tensor, ...]
    said: str
    derived: torch.Tensor = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "scores", self.scores + 1)
        object.__setattr__(self, "derived", self.scores.sum(-1))


FORMS = {
    "a tensor": lambda y: y,
    "a pair": lambda y: (y, y.argmax(-1)),
    "a scalar": lambda y: (y, y.mean()),
    "a mapping": lambda y: {"scores": y, "none": None, "named": ["first", y.sum(-1)]},
    "a type that no pytree is registered for": lambda y: Unknown(y, (y + 1, y.argmax(-1)), "said"),
    "an output of transformers": lambda y: SequenceClassifierOutput(logits=y, hidden_states=(y + 1, y + 2)),
}
"""By what a model gives: how it gives it."""


class Model(nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.up, self.dropout, self.down = nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3)
        self.form = form

    def forward(self, x, *, shift):
        return self.form(self.down(self.dropout(torch.relu(self.up(x)))) + shift)


def inputs(size: int):
    return (torch.randn(size, 6),), {"shift": torch.randn(size, 3)}


def served(model, tmp_path, runtime):
    args, kwargs = inputs(2)
    export = export_onnx(model, args, kwargs, tmp_path / "model.onnx")
    return Served(export, model, (args, kwargs), Target(runtime, threads=1))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", FORMS)
def test_it_gives_what_the_model_gives_at_every_batch_size(form, runtime, tmp_path):
    torch.manual_seed(0)
    model = Model(FORMS[form]).train()
    module = served(model, tmp_path, runtime)
    assert model.training
    model.eval()
    for size in (2, 5, 1, 5):
        args, kwargs = inputs(size)
        with torch.no_grad():
            assert_same(module(*args, **kwargs), model(*args, **kwargs))


def assert_same(found, expected) -> None:
    """In the same structure, also within what the test's own type holds."""
    assert type(found) is type(expected)
    if isinstance(expected, Unknown):
        found, expected = vars(found), vars(expected)
    (ours, structure), (theirs, same) = pytree.tree_flatten(found), pytree.tree_flatten(expected)
    assert structure == same
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        else:
            assert one == other


def test_what_follows_the_batch_and_is_no_tensor_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"gives \[2\] beside its tensors, and .* \[4\]"):
        served(Model(lambda y: {"scores": y, "count": len(y)}), tmp_path, "onnxruntime")


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "says"),
    [
        ((torch.zeros(2, 6),), {}, ExportError, "Tensors were given at"),
        ((torch.zeros(2, 7),), {"shift": torch.zeros(2, 3)}, MeasurementError, "has the shape"),
    ],
)
def test_other_inputs_than_those_of_the_export_are_refused(args, kwargs, error, says, tmp_path):
    module = served(Model(FORMS["a tensor"]), tmp_path, "onnxruntime")
    with pytest.raises(error, match=says):
        module(*args, **kwargs)
