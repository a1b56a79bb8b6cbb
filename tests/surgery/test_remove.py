"""Removal and masking: names, attributes, forms, modes, and plans that do not fit."""

from __future__ import annotations

import copy
import dataclasses
import sys

import numpy as np
import pytest
import torch
from tests.zoo import oracles
from tests.zoo.toys import BY_NAME, CASES, groups_of
from torch import nn

from prunekit.errors import PlanError
from prunekit.graph import find_groups, trace
from prunekit.graph.pruned_graph import PrunedGraph
from prunekit.plan import Goal, PruningPlan, allocate
from prunekit.surgery import mask, remove
from prunekit.surgery.narrow import narrow
from prunekit.types import WIDTHS

GRAPHS = ("flatten by a number", "padded shortcut", "grouped-query attention", "gated unit, slices")
"""Toys whose class cannot follow half of its widths."""


def halved(name: str, sparsity: float = 0.5) -> PruningPlan:
    groups = groups_of(name).select(granularity=WIDTHS)
    draw = np.random.default_rng(3)
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in groups}
    return allocate(groups, scores, Goal("sparsity", remove=sparsity))


def removal_of(name: str, model: nn.Module | None = None):
    return remove(model or BY_NAME[name].model(), halved(name), groups_of(name))


class TestOwnClass:
    def test_attributes_of_layers_follow(self):
        model = removal_of("inverted residual").model
        block = model.blocks[0]
        assert (model.stem.in_channels, model.stem.out_channels) == (3, 4)
        assert (block.expand.in_channels, block.expand.out_channels) == (4, 8)
        assert (block.depthwise.groups, block.depthwise.in_channels, block.depthwise.out_channels) == (
            8,
            8,
            8,
        )
        assert (block.bn1.num_features, block.bn3.num_features) == (8, 4)
        assert (model.head.in_features, model.head.out_features) == (4, 5)

    @pytest.mark.parametrize(
        ("name", "path", "attributes"),
        [
            ("grouped convolution", "blocks.0.conv2", {"groups": 3, "in_channels": 6, "out_channels": 6}),
            ("group norm", "1", {"num_groups": 2, "num_channels": 4}),
            ("group norm of single channels", "1", {"num_groups": 4, "num_channels": 4}),
            ("convnext", "norm", {"normalized_shape": (4,)}),
            ("rms norm", "norm", {"normalized_shape": (4,)}),
            ("layer norm over channels and space", "norm", {"normalized_shape": (3, 3, 3)}),
            ("instance norm", "1", {"num_features": 4}),
            ("u-net", "up", {"in_channels": 4, "out_channels": 3}),
            ("tied weights", "embed", {"embedding_dim": 4, "num_embeddings": 20}),
            ("slopes", "slope", {"num_parameters": 4}),
            ("one dimension", "4", {"in_channels": 3, "out_channels": 2}),
            ("attention spelt out", "attention", {"heads": 2, "head_width": 2}),
            ("lstm", "lstm", {"hidden_size": 4, "input_size": 6}),
            ("gru with a state handed over", "decoder", {"hidden_size": 3, "input_size": 6}),
            ("linear attention", "attention", {"heads": 2}),
            ("weight norm", "2", {"in_channels": 4, "out_channels": 3}),
            ("spectral norm", "5", {"in_features": 48, "out_features": 4}),
        ],
    )
    def test_attributes_state_the_new_widths(self, name, path, attributes):
        removal = removal_of(name)
        assert removal.form == "own class", removal.reason
        module = removal.model.get_submodule(path)
        assert {key: getattr(module, key) for key in attributes} == attributes

    def test_tied_parameters_stay_tied(self):
        model = removal_of("tied weights").model
        assert model.head.weight is model.embed.weight
        assert model.head.weight.shape == (20, 4)
        assert "head.weight" not in dict(model.named_parameters())

    def test_parameters_that_do_not_train_still_do_not(self):
        model = removal_of("frozen parameters").model
        assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 2 + [True] * 4

    def test_buffers_stay_what_they_were(self):
        model = removal_of("buffers").model
        assert "scale" in model.state_dict()
        assert "shift" not in model.state_dict()
        assert "offset" not in dict(model.named_buffers())
        assert {model.scale.shape, model.shift.shape, model.offset.shape} == {(1, 4, 1, 1), (4, 1, 1)}

    def test_what_the_forward_never_reads_stays(self):
        model = removal_of("unused tensors").model
        assert model.spare.weight.shape == (8, 8)
        assert model.steps.shape == (8,)

    @pytest.mark.parametrize("training", [True, False])
    def test_mode_stays(self, training):
        model = BY_NAME["dropout"].model().train(training)
        model[1].eval()
        removed = removal_of("dropout", model).model
        assert [module.training for module in removed.modules()] == [
            module.training for module in model.modules()
        ]

    def test_hooks_and_own_attributes_stay(self):
        model = BY_NAME["perceptron"].model()
        model.note = {"author": "somebody"}
        calls = []
        model[0].register_forward_hook(lambda module, args, output: calls.append(output.shape))
        removed = removal_of("perceptron", model).model
        calls.clear()
        removed(torch.randn(3, 6))
        assert calls == [(3, 4)]
        assert removed.note == {"author": "somebody"}


class TestGraphModule:
    @pytest.mark.parametrize("name", GRAPHS)
    def test_form_says_why(self, name):
        removal = removal_of(name)
        assert removal.form == "graph module"
        assert type(BY_NAME[name].model()).__name__ in removal.reason
        assert removal.form_error > 1e-9

    @pytest.mark.parametrize("name", GRAPHS)
    def test_names_are_the_original_ones(self, name):
        model = BY_NAME[name].model()
        removed = removal_of(name, model).model
        assert [key for key, _ in removed.named_parameters()] == [key for key, _ in model.named_parameters()]
        assert set(removed.state_dict()) == set(model.state_dict())

    def test_tensors_that_are_not_saved_are_still_not_saved(self):
        model = NumberedBuffers()
        plan, groups = plan_for(model, torch.randn(2, 3, 8, 8))
        removal = remove(model, plan, groups)
        assert removal.form == "graph module"
        assert set(removal.model.state_dict()) == set(model.state_dict())
        assert {name for name, _ in removal.model.named_buffers()} >= {"scale", "shift"}
        assert removal.model.get_buffer("shift").shape == (2, 1, 1)

    def test_training_mode_reaches_batch_norm_and_dropout(self):
        model = Numbered()
        plan, groups = plan_for(model, torch.randn(4, 3, 8, 8))
        removal = remove(model, plan, groups)
        assert removal.form == "graph module"
        removed = removal.model.train()
        x = torch.randn(8, 3, 8, 8)
        before = removed.get_buffer("bn.running_mean").clone()
        assert not torch.equal(removed(x), removed(x))
        assert not torch.equal(removed.get_buffer("bn.running_mean"), before)
        removed.eval()
        after = removed.get_buffer("bn.running_mean").clone()
        assert torch.equal(removed(x), removed(x))
        assert torch.equal(removed.get_buffer("bn.running_mean"), after)

    def test_batch_norm_in_training_is_that_of_the_layer(self):
        """The oracle is nn.BatchNorm2d on the same channels."""
        model = Numbered(dropout=0.0)
        plan, groups = plan_for(model, torch.randn(4, 3, 8, 8))
        removed = remove(model, plan, groups).model.train()
        kept = torch.tensor(plan.keep[next(iter(plan.keep))])
        x = torch.randn(8, 3, 8, 8)
        layer = nn.BatchNorm2d(len(kept))
        with torch.no_grad():
            hidden = model.conv(x)[:, kept]
            expected = torch.relu(layer(hidden)).reshape(8, -1) @ removed.get_parameter("head.weight").T
            assert torch.allclose(removed(x), expected + removed.get_parameter("head.bias"), atol=1e-5)
        assert torch.allclose(removed.get_buffer("bn.running_mean"), layer.running_mean, atol=1e-6)
        assert torch.allclose(removed.get_buffer("bn.running_var"), layer.running_var, atol=1e-5)

    def test_mode_is_the_models(self):
        model = BY_NAME["padded shortcut"].model()
        assert removal_of("padded shortcut", model.train()).model.training
        assert not removal_of("padded shortcut", model.eval()).model.training

    @pytest.mark.parametrize("name", GRAPHS)
    def test_copies_are_independent(self, name):
        removed = removal_of(name).model
        inputs = BY_NAME[name].inputs()
        expected = oracles.run(removed, inputs)
        twin = copy.deepcopy(removed)
        assert isinstance(twin, PrunedGraph)
        with torch.no_grad():
            for tensor in twin.parameters():
                tensor.add_(1.0)
        assert oracles.error(expected, oracles.run(removed, inputs)) == 0
        assert oracles.error(expected, oracles.run(twin, inputs)) > 0
        twin.load_state_dict(removed.state_dict(), strict=True)
        assert oracles.error(expected, oracles.run(twin, inputs)) == 0
        assert twin.train().training
        assert not removed.eval().training
        assert twin.training

    def test_it_can_be_traced_and_pruned_again(self):
        name = "padded shortcut"
        removed = removal_of(name).model
        groups = find_groups(trace(removed, *BY_NAME[name].inputs()))
        assert sorted(group.size for group in groups) == [2, 3, 4]
        scores = {group.name: np.arange(group.size, dtype=np.float32) for group in groups}
        again = remove(removed, allocate(groups, scores, Goal("sparsity", remove=0.5)), groups)
        assert again.model.get_parameter("stem.weight").shape == (2, 3, 3, 3)


class Numbered(nn.Module):
    """Flattens with a number in its code, so that only the graph can follow."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(36, 5)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.bn(self.conv(x))).view(-1, 36)))


class NumberedBuffers(nn.Module):
    """Buffers, saved and not, and a plain tensor attribute, and a number that only the graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.register_buffer("scale", torch.rand(4, 1, 1))
        self.register_buffer("shift", torch.rand(4, 1, 1), persistent=False)
        self.offset = torch.rand(4, 1, 1)
        self.head = nn.Linear(36, 5)

    def forward(self, x):
        return self.head((self.conv(x) * self.scale + self.shift - self.offset).view(-1, 36))


def plan_for(model: nn.Module, x):
    groups = find_groups(trace(model, x))
    scores = {group.name: np.arange(group.size, dtype=np.float32) for group in groups}
    return allocate(groups, scores, Goal("sparsity", remove=0.5)), groups


def test_masked_model_is_the_one_zeroed_by_hand():
    for case in CASES:
        groups, plan, model = groups_of(case.name), halved_or_none(case.name), case.model()
        masked = mask(model, plan, groups)
        expected = oracles.tensors_of(oracles.zeroed(model, groups, plan.keep_mask()))
        for name, tensor in oracles.tensors_of(masked).items():
            assert torch.equal(tensor, expected[name]), (case.name, name)
        assert type(masked) is type(model)


def halved_or_none(name: str) -> PruningPlan:
    return halved(name, 0.5 if len(groups_of(name).select(granularity=WIDTHS)) else 0.0)


def test_what_runs_along_with_a_parameter_is_narrowed_the_same_way():
    """An optimizer's momentum: the oracle narrows by the group's slices."""
    name = "grouped convolution"
    groups, keep = groups_of(name), halved(name).keep_mask()
    for tensor in groups.graph.trainable:
        momentum = torch.randn(groups.tensor_shape(tensor))
        expected = oracles.cut_out(groups, keep, tensor, momentum)
        assert torch.equal(narrow(groups, tensor, momentum, keep), expected)


@pytest.mark.parametrize("act", [remove, mask])
def test_a_plan_for_another_model_is_refused(act):
    model = BY_NAME["perceptron"].model()
    with pytest.raises(PlanError, match="fingerprint") as caught:
        act(model, halved("rms norm"), groups_of("perceptron"))
    assert caught.value.remedy


@pytest.mark.parametrize("act", [remove, mask])
def test_a_model_changed_since_it_was_traced_is_refused(act):
    model = BY_NAME["perceptron"].model()
    model[2] = nn.Linear(8, 9)
    model[4] = nn.Linear(9, 4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PlanError, match=r"2\.weight"):
        act(model, halved("perceptron"), groups_of("perceptron"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_plan_of_an_earlier_version_of_the_model_is_refused():
    plan = halved("perceptron")
    smaller = remove(BY_NAME["perceptron"].model(), plan, groups_of("perceptron")).model
    groups = find_groups(trace(smaller, torch.randn(2, 6)))
    with pytest.raises(PlanError, match="fingerprint"):
        remove(smaller, plan, groups)


def test_plans_of_two_steps_compose():
    """Two removals in a row give what one removal of the composed plan gives, bit by bit.

    But for the queries and keys of a class that scales by its own width: they are rounded at each removal.
    """
    for name in ("basic blocks", "grouped convolution", "attention", "tied weights"):
        model, groups, first = BY_NAME[name].model(), groups_of(name), halved(name, 0.25)
        middle = remove(model, first, groups).model
        later_groups = find_groups(trace(middle, *BY_NAME[name].inputs())).select(granularity=WIDTHS)
        draw = np.random.default_rng(5)
        scores = {group.name: draw.random(group.size).astype(np.float32) for group in later_groups}
        second = allocate(later_groups, scores, Goal("sparsity", remove=0.4))
        stepwise = oracles.tensors_of(remove(middle, second, later_groups).model)
        at_once = oracles.tensors_of(remove(model, first.then(second), groups).model)
        for tensor in model.state_dict():
            scaled = name == "attention" and tensor.split(".")[1] in ("q", "k")
            tolerance = {"rtol": 1e-6, "atol": 0} if scaled else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(stepwise[tensor], at_once[tensor], **tolerance, msg=f"{name} {tensor}")


def test_a_plan_survives_being_written_down():
    plan = PruningPlan.from_json(halved("attention").to_json())
    first = remove(BY_NAME["attention"].model(), plan, groups_of("attention")).model.state_dict()
    second = removal_of("attention").model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in second)


STEPS = ("narrow", "copied", "replace_everywhere", "graph_form", "follow_shapes", "precision_of", "Rivals")
"""What removal does one after the other; the first and the third more than once."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["basic blocks", "attention spelt out", "spectral norm"])
def test_an_error_half_way_leaves_the_model_alone(monkeypatch, name, step):
    model = BY_NAME[name].model()
    before = copy.deepcopy(oracles.tensors_of(model))
    attributes = [{key: repr(value) for key, value in vars(part).items()} for part in model.modules()]
    room = sys.modules["prunekit.surgery.remove"]  # The room's own name is that of its function.
    right, calls = getattr(room, step), []

    def fails(*args, **kwargs):
        calls.append(step)
        if len(calls) > (step in ("narrow", "replace_everywhere")):
            raise MemoryError("half-way")
        return right(*args, **kwargs)

    monkeypatch.setattr(room, step, fails)
    with pytest.raises(MemoryError, match="half-way"):
        removal_of(name, model)
    after = oracles.tensors_of(model)
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())
    assert [{key: repr(value) for key, value in vars(part).items()} for part in model.modules()] == attributes


def test_a_constant_in_the_code_is_narrowed_in_the_graph():
    """The oracle computes what is left by hand."""
    model = Ramp()
    plan, groups = plan_for(model, torch.randn(2, 6))
    removal = remove(model, plan, groups)
    assert removal.form == "graph module"
    (kept,) = (torch.tensor(units) for units in plan.keep.values())
    x = torch.randn(5, 6)
    hidden = torch.relu(model.first(x))[:, kept] * (kept + 1)
    expected = hidden @ model.last.weight[:, kept].T + model.last.bias
    assert len(kept) == 4
    assert torch.allclose(removal.model(x), expected, atol=1e-5)


class Ramp(nn.Module):
    """Scales its neurons by numbers in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]))


def test_a_plan_with_other_sizes_is_refused():
    plan = halved("perceptron")
    other = dataclasses.replace(plan, fingerprint="0" * 64)
    with pytest.raises(PlanError, match="000000000000"):
        remove(BY_NAME["perceptron"].model(), other, groups_of("perceptron"))
