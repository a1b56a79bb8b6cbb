"""What cannot be distilled is refused, with what was given, what was expected, where, and what to do."""

from __future__ import annotations

import pytest
import torch
from tests.recover.distilling import WORDS, bert, family, words
from torch import nn

import prunekit as pk
from prunekit.errors import SelectionError, ShapeError, TrainingError, UsageError
from prunekit.surgery.remove import reduced_graph
from prunekit.workload import Batch


def batch():
    return Batch(args=(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)),), ids=("a", "b", "c"))


class Net(nn.Module):
    def __init__(self, width=5, classes=4, outputs=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.unused = nn.Linear(6, width), nn.Linear(2, 2)
        self.twice = nn.ReLU()
        self.last = nn.Linear(width, classes)
        self.outputs = outputs

    def forward(self, x):
        return self.outputs(self.last(self.twice(self.twice(self.first(x)))))


SETTINGS = [
    ({"temperature": 0}, "temperature is 0.*> 0"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": "2"}, "temperature is '2'"),
    ({"logits": 0}, "all weights are 0.*a weight > 0"),
    ({"hidden": -0.5}, "hidden is -0.5.*>= 0"),
    ({"attention": float("inf")}, "attention is inf"),
    ({"task": True}, "task is True"),
    ({"hidden_distance": "l1"}, "hidden_distance is 'l1'.*mse, cosine"),
    ({"attention_distance": "cosine"}, "kl, mse"),
    ({"projection": "learnt"}, "identity, linear"),
    ({"hidden_modules": "layer.*"}, "hidden_modules is 'layer.*'.*list of patterns"),
    ({"attention_modules": [3]}, "attention_modules"),
    ({"causal": "yes"}, "causal is 'yes'"),
]


@pytest.mark.parametrize(("given", "match"), SETTINGS)
def test_settings_that_cannot_be(given, match):
    with pytest.raises(UsageError, match=match) as error:
        pk.DistillationSettings(**given)
    assert error.value.where == "distillation settings"


OUTPUTS = [
    (
        Net(classes=7),
        Net(classes=4),
        ShapeError,
        r"student gives \[3, 7\], the teacher \[3, 4\].*same number",
    ),
    (
        Net(outputs=lambda logits: (logits,)),
        Net(outputs=lambda logits: (logits.sum(), logits)),
        ShapeError,
        "item 0 of 1 and the teacher's item 1 of 2.*logits_of",
    ),
    (
        Net(outputs=lambda logits: {"logits": logits}),
        Net(),
        ShapeError,
        "'logits' and the teacher's the output",
    ),
    (Net(), Net(outputs=lambda logits: {"scores": logits}), TrainingError, "in a dict of scores.*logits_of"),
    (Net(outputs=lambda logits: logits.sum()), Net(), TrainingError, "outputs of the student: no logits"),
    (Net(outputs=lambda logits: [1, None]), Net(), TrainingError, "in a list of 2"),
]


@pytest.mark.parametrize(("student", "teacher", "error", "match"), OUTPUTS)
def test_outputs_that_do_not_match(student, teacher, error, match):
    with pytest.raises(error, match=match):
        pk.Distillation(teacher)(student, batch())
    with pytest.raises(error, match=match):
        pk.Distillation(teacher, student=student, example=batch())


MODULES = [
    (["nowhere"], SelectionError, "pattern 'nowhere' matches no module.*first"),
    ({"first": "nowhere"}, SelectionError, "the teacher, a Net, has no module 'nowhere'.*first"),
    ({"nowhere": "first"}, SelectionError, "the student, a Net, has no module 'nowhere'"),
    (["unused"], TrainingError, "'unused' of the teacher was not called"),
    (["twice"], TrainingError, "'twice' of the teacher was called twice"),
    ((), SelectionError, "no modules are named, and there is no lineage"),
    (
        ["first"],
        ShapeError,
        r"gives \[3, 4\], and what it has of the teacher is \[3, 5\].*projection='linear'",
    ),
]


@pytest.mark.parametrize(("modules", "error", "match"), MODULES)
def test_hidden_states_that_are_not_there(modules, error, match):
    settings = pk.DistillationSettings(hidden=1, hidden_modules=modules)
    student, teacher = Net(width=4), Net()
    with pytest.raises(error, match=match):
        pk.Distillation(teacher, settings, student=student, example=batch())
    assert not any(each._forward_hooks for model in (student, teacher) for each in model.modules())


def test_what_is_missing():
    with pytest.raises(UsageError, match=r"task loss has the weight 0.5 and no loss was given.*loss="):
        pk.Distillation(Net(), pk.DistillationSettings(task=0.5))
    settings = pk.DistillationSettings(hidden=1, hidden_modules=["first"])
    with pytest.raises(UsageError, match="no student was given"):
        pk.Distillation(Net(), settings)
    with pytest.raises(UsageError, match="no example was given"):
        pk.Distillation(Net(), settings, student=Net())


def test_a_graph_module_has_no_layers():
    made = family("bert", "neuron")
    graph = reduced_graph(made.teacher, made.plan.keep_mask(), made.groups)
    settings = pk.DistillationSettings(hidden=1, logits=0)
    with pytest.raises(TrainingError, match=r"of a graph module.*distil the logits only"):
        pk.Distillation(made.teacher, settings, student=graph, lineage=made.lineage)
    logits = pk.Distillation(made.teacher, student=graph, lineage=made.lineage)
    own = pk.Distillation(made.teacher, student=made.student, lineage=made.lineage)
    found, expected = (each(model, words(WORDS)) for each, model in ((logits, graph), (own, made.student)))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_fused_attention_gives_no_maps():
    settings = pk.DistillationSettings(attention=1, attention_modules=["bert.encoder.layer.*.attention.self"])
    with pytest.raises(TrainingError, match=r"fused attention.*set_attn_implementation\('eager'\)"):
        pk.Distillation(bert("sdpa"), settings, student=bert("sdpa"), example=words(WORDS))
    with pytest.raises(TrainingError, match="of the student: it gave"):
        pk.Distillation(bert(), settings, student=bert("sdpa"), example=words(WORDS))


def test_maps_after_dropout_are_no_distribution():
    student, settings = bert(), {"attention": 1, "attention_modules": ["bert.encoder.layer.*.attention.self"]}
    objective = pk.Distillation(
        bert(), pk.DistillationSettings(**settings), student=student, example=words(WORDS)
    )
    torch.manual_seed(0)
    with pytest.raises(TrainingError, match=r"the student's attention sums to.*dropout.*'mse'"):
        objective(student.train(), words(WORDS))
    squared = pk.DistillationSettings(**settings, attention_distance="mse")
    objective = pk.Distillation(bert(), squared, student=student, example=words(WORDS))
    assert float(objective(student, words(WORDS)).detach()) > 0


def test_heads_without_a_plan_are_not_matched():
    made = family("bert", "head")
    settings = pk.DistillationSettings(attention=1, attention_modules=["bert.encoder.layer.*.attention.self"])
    with pytest.raises(ShapeError, match=r"gives \[3, 2, 7, 7\].*\[3, 4, 7, 7\].*Lineage.of"):
        pk.Distillation(made.teacher, settings, student=made.student, example=words(WORDS))


@pytest.mark.parametrize(
    ("counted", "match"),
    [
        (lambda given: torch.ones(3, 9), r"\[3, 7, 24\], and the mask of positions \[3, 9\]"),
        (lambda given: torch.ones(3), r"it is \[3\].*\[examples, positions\]"),
        (lambda given: 3, "it is int"),
    ],
)
def test_a_mask_of_another_shape(counted, match):
    settings = pk.DistillationSettings(hidden=1, hidden_modules=["bert.encoder.layer.*"])
    with pytest.raises(ShapeError, match=match):
        pk.Distillation(bert(), settings, student=bert(), example=words(WORDS), counted=counted)
    whole = pk.Distillation(
        bert(), settings, student=bert(), example=words(WORDS), counted=lambda given: None
    )
    assert float(whole(bert(), words(WORDS)).detach()) == 0
