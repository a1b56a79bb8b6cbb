"""Low-rank recovery: what is trained is what is merged, zeros stay zeros, the model comes back."""

from __future__ import annotations

import copy
import importlib
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import prunekit as pk
from prunekit.errors import PlanError, SelectionError, TrainingError, UsageError
from prunekit.surgery import attach_masks

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def mlp():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


def dilated():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular", bias=False),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def sequence():
    return nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 3, dilation=2), nn.Flatten())


def volume():
    return nn.Sequential(nn.Conv3d(1, 4, 2), nn.ReLU(), nn.Conv3d(4, 2, 2, padding=1), nn.Flatten())


def transposed():
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(16, 12), nn.GELU(), Conv1D(3, 16))


NETS = {
    "linear": (mlp, (4, 12)),
    "convolutions": (dilated, (4, 2, 8, 8)),
    "one dimension": (sequence, (4, 3, 10)),
    "three dimensions": (volume, (4, 1, 4, 4, 4)),
    "transposed": (transposed, (4, 12)),
}


def net(kind, masked):
    torch.manual_seed(0)
    build, shape = NETS[kind]
    model = build().double()
    if masked:
        pk.mask_weights(model, sparsity=0.5, in_place=True)
    return model, torch.randn(shape, dtype=torch.float64)


def learn(model, x, steps=5):
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", NETS)
def test_what_was_trained_is_what_is_merged(kind, masked):
    # Oracle: the model with its adapters, before they are merged. With masks the arithmetic is the same too.
    model, x = net(kind, masked)
    plain = pk.fold_masks(copy.deepcopy(model)) if masked else copy.deepcopy(model)
    began = model(x).detach()
    adapters = pk.add_lora(model, rank=2)
    torch.testing.assert_close(model(x).detach(), began)
    losses = learn(model, x)
    assert losses[-1] < losses[0]
    for training in (True, False):
        trained = model.train(training)(x).detach()
        merged = pk.merge_lora(copy.deepcopy(model), adapters)
        torch.testing.assert_close(merged(x).detach(), trained, rtol=0 if masked else 1e-12, atol=1e-14)
    assert [type(part) for part in merged.modules()] == [type(part) for part in plain.modules()]
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert vars(merged).keys() == vars(plain).keys()


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("pattern", ["element", "2:4"])
def test_merging_fills_no_zero_and_changes_what_is_kept(pattern, folded):
    # Oracle: the positions of the zeros in the folded model, counted with NumPy.
    model, x = net("linear", False)
    model[4] = nn.Linear(8, 4).double()
    pk.mask_weights(model, sparsity=0.5 if pattern == "element" else None, pattern=pattern, in_place=True)
    before = {name: each.detach().numpy() for name, each in pk.fold_masks(model).named_parameters()}
    if folded:
        pk.fold_masks(model, in_place=True)
    adapters = pk.add_lora(model, rank=3, dropout=0.1)
    learn(model, x)
    pk.merge_lora(model, adapters)
    for name, each in model.named_parameters():
        if name.endswith("weight"):
            zero = before[name] == 0
            assert zero.mean() == 0.5
            assert (each.detach().numpy()[zero] == 0).all()
            assert (each.detach().numpy()[~zero] != before[name][~zero]).mean() > 0.9


def test_a_mask_plan_says_which_zeros_may_change():
    model, x = net("linear", False)
    masked = pk.mask_weights(model, sparsity=0.5, fold=True)
    model, plan = masked.model, masked.plan
    kept = torch.from_numpy(plan.masks["4.weight"].keep())
    with torch.no_grad():
        model[4].weight[kept] = 0.0
    adapters = pk.add_lora(model, masks=plan)
    learn(model, x)
    pk.merge_lora(model, adapters)
    assert bool((model[4].weight[~kept] == 0).all())
    assert bool((model[4].weight[kept] != 0).all())


def test_only_adapters_train_and_flags_come_back():
    model, x = net("linear", False)
    model[0].bias.requires_grad_(False)
    flags = {name: each.requires_grad for name, each in model.named_parameters()}
    held = dict(model.named_parameters())
    values = {name: each.detach().clone() for name, each in held.items()}
    adapters = pk.add_lora(model, "0", rank=2, also="*.bias")
    assert adapters.layers == ("0",)
    assert adapters.trained == 2 * (12 + 16) + 16 + 8 + 3
    learn(model, x)
    pk.merge_lora(model, adapters)
    assert {name: each.requires_grad for name, each in model.named_parameters()} == flags
    assert all(each is held[name] and each.grad is None for name, each in model.named_parameters())
    changed = {name for name, each in held.items() if not torch.equal(each.detach(), values[name])}
    assert changed == {"0.weight", "0.bias", "2.bias", "4.bias"}


def test_layers_that_lost_units_are_adapted():
    # Oracle: the shapes before and after.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    result = pk.prune(model, (torch.randn(4, 6),), sparsity=0.5, only="2:*")
    names = pk.pruned_layers(result, result.plan, result.groups)
    assert names == ("2", "4")
    adapters = pk.add_lora(result.model, names, rank=2)
    assert adapters.layers == names
    learn(result.model, torch.randn(4, 6))
    merged = pk.merge_lora(result.model, adapters)
    assert merged[2].weight.shape == (8, 6)


class Own(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


def test_what_cannot_be_adapted_is_left_out_and_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)
            self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
            self.own = Own(8, 8)
            self.normed = parametrizations.weight_norm(nn.Linear(8, 8))
            self.first = nn.Linear(8, 8)
            self.second = nn.Linear(8, 8)
            self.second.weight = self.first.weight
            self.plain = nn.Linear(8, 8)

    adapters = pk.add_lora(Net())
    assert adapters.layers == ("plain",)
    reasons = {name: reason.split(" ")[-1] for name, reason in adapters.left_out.items()}
    assert reasons == {
        "attention.out_proj": "layer",
        "depthwise": "groups",
        "own": "own",
        "normed": "parametrization",
        "first": "another",
        "second": "another",
    }


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"rank": 0}, UsageError, "at least 1"),
        ({"rank": -2}, UsageError, "at least 1"),
        ({"rank": True}, UsageError, "at least 1"),
        ({"alpha": 0}, UsageError, "above 0"),
        ({"dropout": 1.0}, UsageError, "below 1"),
        ({"only": "nowhere"}, SelectionError, "matches no module"),
        ({"also": "nowhere"}, SelectionError, "matches no parameter"),
        ({"only": "1"}, SelectionError, "can be adapted"),
    ],
)
def test_mistakes_leave_the_model_alone(given, error, says):
    model = mlp()
    before = repr(model), {name: each.requires_grad for name, each in model.named_parameters()}
    with pytest.raises(error, match=says):
        pk.add_lora(model, **given)
    assert (repr(model), {name: each.requires_grad for name, each in model.named_parameters()}) == before


def test_adapters_that_are_there_already():
    model = mlp()
    adapters = pk.add_lora(model)
    with pytest.raises(UsageError, match="already"):
        pk.add_lora(model)
    with pytest.raises(PlanError, match="no adapter"):
        pk.merge_lora(mlp(), adapters)
    pk.merge_lora(model, adapters)
    with pytest.raises(PlanError, match="not merged yet"):
        pk.merge_lora(model, adapters)


def test_masks_of_another_model():
    plan = pk.mask_weights(nn.Linear(4, 4), sparsity=0.5).plan
    with pytest.raises(PlanError, match="fingerprint"):
        pk.add_lora(mlp(), masks=plan)


def test_an_update_that_is_no_number_is_not_merged():
    model = mlp()
    adapters = pk.add_lora(model)
    weights = [model[place].base_layer.weight.detach().clone() for place in (0, 2, 4)]
    with torch.no_grad():
        model[4].lora_A["recovery"].weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="layer '4'"):
        pk.merge_lora(model, adapters)
    assert all(torch.equal(model[p].base_layer.weight, w) for p, w in zip((0, 2, 4), weights, strict=True))


def test_a_graph_has_no_layers():
    graph = torch.export.export(mlp(), (torch.randn(2, 12),)).module()
    with pytest.raises(SelectionError, match="It is a graph"):
        pk.add_lora(graph)


def test_the_same_seed_gives_the_same_adapters_and_leaves_the_random_state():
    first, second = mlp(), mlp()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    pk.add_lora(first, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    pk.add_lora(second, seed=1)
    assert torch.equal(first[0].lora_A["recovery"].weight, second[0].lora_A["recovery"].weight)


def test_no_warning_and_half_precision():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, x = transposed().bfloat16(), torch.randn(4, 12, dtype=torch.bfloat16)
        plan = pk.mask_weights(model, sparsity=0.5, only="0.weight").plan
        attach_masks(model, plan, in_place=True)
        adapters = pk.add_lora(model, rank=2)
        learn(model, x)
        trained = model(x).detach()
        pk.merge_lora(model, adapters)
    assert adapters.layers == ("0",)
    torch.testing.assert_close(model(x).detach(), trained, rtol=0, atol=0)
    assert float(np.mean(model[0].weight.detach().float().numpy() == 0)) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("room", "package", "command"),
    [
        ("lora.layers", "peft", "prunekit[lora]"),
        ("loops.trainer", "transformers", "transformers[torch]"),
        ("loops.lightning", "lightning.pytorch", "prunekit[lightning]"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(room, package, command, monkeypatch):
    monkeypatch.delitem(sys.modules, f"prunekit.recover.{room}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=re.escape(f"pip install '{command}")):
        importlib.import_module(f"prunekit.recover.{room}")
