"""What is left of the teacher, index by index and module by module, is what the student computes."""

from __future__ import annotations

import pytest
import torch
from tests.recover.distilling import WORDS, family, words
from tests.recover.following import halved
from tests.zoo.toys import BY_NAME, CASES, groups_of

import prunekit as pk
from prunekit.errors import PlanError, SelectionError
from prunekit.recover.distillation.pairs import select
from prunekit.surgery.narrow import narrow
from prunekit.surgery.remove import masked, remove

NETS = sorted(
    case.name for case in CASES if case.own_class and any(group.mask_equivalent for group in case.groups)
)
WITHOUT_ONE_TENSOR = {"lstm", "one-hot table", "rnn, last state", "rows routed by data"}
"""Toys in which no module gives one tensor that loses units."""


def in_blocks(name):
    return any(group.blocks > 1 for group in BY_NAME[name].groups)


def values_of(model, args, kwargs):
    """What every module gives that is called once and gives one floating tensor."""
    found, called, handles = {}, [], []

    def noting(name):
        def hook(module, given, output):
            called.append(name)
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                found[name] = output.clone()

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(noting(name)))
    with torch.no_grad():
        model.eval()(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return {name: value for name, value in found.items() if called.count(name) == 1}


def in_double(value):
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(in_double(item) for item in value)
    return {key: in_double(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    "name", [name if in_blocks(name) else pytest.param(name, marks=pytest.mark.slow) for name in NETS]
)
def test_what_is_left_of_every_value_is_what_the_smaller_model_computes(name):
    """The oracle is the masked model, by the mask law at every module."""
    model, plan = halved(name)
    groups = groups_of(name)
    model = model.double().eval()
    inputs = [in_double(each) for each in BY_NAME[name].inputs()]
    removal = remove(model, plan, groups)
    lineage = pk.Lineage.of(removal, plan, groups)
    ours, theirs = (
        values_of(each, *inputs) for each in (removal.model, masked(model, plan.keep_mask(), groups))
    )
    compared = 0
    for path, value in ours.items():
        kept = lineage.kept("hidden", lineage.name_before(path), value.ndim)
        if kept is not None:
            torch.testing.assert_close(value, select(theirs[path], kept))
            compared += any(index is not None for index in kept)
    assert (compared > 0) == (removal.form == "own class" and name not in WITHOUT_ONE_TENSOR)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_hidden_width_is_that_of_the_norms(kind):
    """The oracle is the removal of a norm's scale that numbers its own units."""
    made = family(kind, "hidden")
    lineage = pk.Lineage(made.plan, made.groups)
    norms = [name for name, each in made.teacher.named_modules() if "Norm" in type(each).__name__]
    assert len(norms) >= 5
    for name in norms:
        numbers = torch.arange(24.0)
        left = narrow(made.groups, f"{name}.weight", numbers, made.plan.keep_mask()).long()
        kept = lineage.kept("hidden", name, 3)
        assert kept[:2] == (None, None)
        assert torch.equal(kept[2], left)
        assert 0 < len(left) < 24


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_heads_of_attention_maps_are_those_that_were_kept(kind, implementation):
    """The oracle is the removal of the query weight's rows that number their own heads, six to a head."""
    made = family(kind, "head", implementation)
    lineage = pk.Lineage(made.plan, made.groups)
    name, query = {
        "bert": ("bert.encoder.layer.1.attention.self", "query"),
        "llama": ("model.layers.1.self_attn", "q_proj"),
    }[kind]
    heads = torch.arange(4).repeat_interleave(6)[:, None].expand(24, 24).float()
    left = narrow(made.groups, f"{name}.{query}.weight", heads, made.plan.keep_mask())
    kept = lineage.kept("attention", name, 4)
    assert kept[0] is kept[2] is kept[3] is None
    assert torch.equal(kept[1], left[::6, 0].long())
    assert lineage.attentions == {name.replace("1", str(layer)) for layer in range(3)}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_layer_is_the_one_it_was(kind):
    """The oracle is the weight that came along."""
    made = family(kind, "layer")
    lineage = made.lineage
    place = {"bert": "bert.encoder.layer", "llama": "model.layers"}[kind]
    assert lineage.layers == {f"{place}.{layer}" for layer in range(3)}
    layers = made.student.get_submodule(place)
    assert len(layers) == 2
    for ours in range(2):
        path = f"{place}.{ours}"
        before = made.teacher.get_submodule(lineage.name_before(path))
        for name, parameter in layers[ours].named_parameters():
            assert torch.equal(parameter, before.get_parameter(name))
        assert lineage.name_before(f"{path}.no.weights") == f"{lineage.name_before(path)}.no.weights"
    gone = {layer for layer in lineage.layers if lineage.is_gone(layer)}
    assert gone == {f"{place}.1"}


def test_a_removal_alone_is_no_lineage():
    made = family("bert", "layer")
    with pytest.raises(PlanError, match=r"Lineage.of\(removal, plan, groups\)"):
        pk.Lineage.of(made.removal)
    assert made.lineage.moved == made.removal.moved != {}


def test_a_plan_that_is_not_the_students_is_refused():
    narrower, shorter = family("bert", "neuron"), family("bert", "layer")
    for lineage, student, match in (
        (narrower.lineage, shorter.teacher, r"\[32, 24\], not \[16, 24\] as planned"),
        (pk.Lineage(shorter.plan, shorter.groups), shorter.student, "the student has it"),
        (pk.Lineage(narrower.plan, family("llama", "neuron").groups), narrower.student, "fingerprint"),
    ):
        with pytest.raises(PlanError, match=match):
            pk.Distillation(shorter.teacher, student=student, lineage=lineage)


def test_names_do_not_say_which_layer_is_which_once_some_went():
    made = family("bert", "layer")
    settings = pk.DistillationSettings(hidden=1, hidden_modules=["bert.encoder.layer.*"])
    with pytest.raises(SelectionError, match="2 modules in the student and 3 in the teacher"):
        pk.Distillation(made.teacher, settings, student=made.student, example=words(WORDS))
