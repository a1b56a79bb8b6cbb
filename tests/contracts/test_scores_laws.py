"""The laws of criteria, over every criterion x models that the graph engine understands."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.graph import find_groups, trace
from prunekit.importance import CRITERIA, Movement, collect, needs_of, score
from prunekit.reconstruction import removal_errors


class Residual(nn.Module):
    """A residual block behind a stem, with batch norm and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(x + self.conv2(torch.relu(self.bn2(self.conv1(x)))))
        return self.head(self.drop(x.flatten(1)))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.LayerNorm(12),
        nn.ReLU(),
        nn.Linear(12, 6),
        nn.Tanh(),
        nn.Linear(6, 4),
    )


class Attention(nn.Module):
    """A layer of attention with a fused projection, the weights bare parameters, and a norm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Parameter(torch.randn(36, 12) / 3)
        self.out = nn.Parameter(torch.randn(12, 12) / 3)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.embed(x.flatten(1, 2))
        parts = nn.functional.linear(self.norm(x), self.qkv).split(12, dim=-1)
        query, key, value = (part.view(*part.shape[:2], 3, 4).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.head((x + mixed.transpose(1, 2).flatten(2) @ self.out.T).mean(1))


class Mixture(nn.Module):
    """The best two of five experts, their outputs weighted by the router."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Linear(16, 8), nn.Linear(8, 5), nn.Linear(8, 4)
        self.up, self.down = nn.Parameter(torch.randn(5, 8, 7) / 3), nn.Parameter(torch.randn(5, 7, 8) / 3)

    def forward(self, x):
        x = torch.relu(self.embed(x.flatten(1)))
        inner = torch.relu(torch.einsum("bd,edf->bef", x, self.up))
        given = torch.einsum("bef,efd->bed", inner, self.down)
        weight, chosen = self.router(x).softmax(-1).topk(2, -1)
        picked = given.gather(1, chosen[..., None].expand(-1, -1, 8))
        return self.head(x + (picked * weight[..., None]).sum(1))


MODELS = {"perceptron": perceptron, "residual": Residual, "attention": Attention, "mixture": Mixture}
CASES = [(name, criterion) for name in MODELS for criterion in CRITERIA]


def loss(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch.target)


@cache
def groups_of(name):
    torch.manual_seed(0)
    groups = find_groups(trace(MODELS[name]().eval(), (torch.randn(2, 1, 4, 4),), {}))
    assert len(groups)
    return groups


def case(name):
    groups = groups_of(name)
    torch.manual_seed(0)
    model = MODELS[name]()
    batches = [
        SimpleNamespace(args=(torch.randn(6, 1, 4, 4),), kwargs={}, target=torch.randint(0, 4, (6,)))
        for _ in range(2)
    ]
    return model, groups, batches


def scores_of(model, groups, batches, criterion, **arguments):
    """Scores; groups that the criterion says nothing about are scored by L2."""
    needs = needs_of(criterion, "l2")
    if criterion == "movement":
        stats = trained(model, groups, batches)
    elif criterion == "removal":
        stats = removal_errors(model, groups, batches)
    else:
        stats = collect(model, batches, groups=groups, needs=needs, loss=loss)
    return score(model, groups, criterion, stats=stats, fallback="l2", **arguments)


def trained(model, groups, batches):
    """Movement over two steps on a copy, so that the model may be compared afterwards."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    movement = Movement(model, groups)
    for batch in batches:
        model.zero_grad()
        loss(model(*batch.args), batch).backward()
        movement.update()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    return movement.statistics()


def alone(groups, name):
    """The same groups with all but one left out."""
    return groups.freeze({g.name: "the others are scored" for g in groups if g.name != name}, operator="test")


SHIFTED = ("movement", "bypass_loss")
"""The lowest score of a group may be zero, and so may be all of them."""


@pytest.mark.parametrize(("name", "criterion"), CASES)
def test_every_unit_has_a_finite_score_that_is_not_negative(name, criterion):
    model, groups, batches = case(name)
    found = scores_of(model, groups, batches, criterion)
    assert {group.name: (group.size,) for group in groups} == {n: s.shape for n, s in found.items()}
    for values in found.values():
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        if values.any() or criterion not in SHIFTED:
            np.testing.assert_allclose(values.mean(), 1, rtol=1e-5)


@pytest.mark.parametrize(("name", "criterion"), CASES)
def test_the_same_inputs_give_the_same_scores_group_by_group(name, criterion):
    model, groups, batches = case(name)
    together = scores_of(model, groups, batches, criterion)
    for group in reversed(list(groups)):
        single = scores_of(model, alone(groups, group.name), batches, criterion)
        np.testing.assert_array_equal(single[group.name], together[group.name])


@pytest.mark.parametrize(("name", "criterion"), [c for c in CASES if c[1] != "random"])
def test_scores_follow_a_permutation_of_the_units(name, criterion):
    """Permute the units of one group in every tensor of it: the same function, the scores permuted."""
    model, groups, batches = case(name)
    before = scores_of(model, groups, batches, criterion)
    for group in groups:
        if group.blocks > 1:
            continue  # units move inside their block only; a block of one is covered by the others
        order = np.random.default_rng(0).permutation(group.size)
        permuted = copy.deepcopy(model)
        tensors = dict(permuted.named_parameters()) | dict(permuted.named_buffers())
        for part in group.slices:
            index = permuted_indices(part.units, order)
            tensor = tensors[part.tensor]
            tensor.data = tensor.data.index_select(part.dim, torch.from_numpy(index))
        after = scores_of(permuted, groups, batches, criterion)
        np.testing.assert_allclose(after[group.name], before[group.name][order], rtol=1e-3)


def permuted_indices(units, order):
    """Where each index reads from when unit ``u`` becomes unit ``order[u]``, index by index within a unit."""
    places = {unit: np.flatnonzero(units == unit) for unit in range(len(order))}
    index = np.arange(len(units))
    for unit, source in enumerate(order):
        if len(places[unit]):
            index[places[unit]] = places[source]
    return index


@pytest.mark.parametrize(("name", "criterion"), CASES)
@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_the_model_as_found(name, criterion, training):
    model, groups, batches = case(name)
    model.train(training)
    loss(model(*batches[0].args), batches[0]).backward()
    first = next(model.parameters())
    first.requires_grad_(False)
    hook = model.register_forward_hook(lambda *_: None)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = {name: dict(module._forward_hooks) for name, module in model.named_modules()}
    identities = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    rng = torch.get_rng_state()
    scores_of(model, groups, batches, criterion)
    assert torch.equal(torch.get_rng_state(), rng)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: dict(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert {name: id(value) for name, value in model.state_dict(keep_vars=True).items()} == identities
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    for name, parameter in model.named_parameters():
        assert parameter.grad is grads[name][0]
        assert torch.equal(parameter.grad, grads[name][1])
    hook.remove()


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_a_larger_unit_never_scores_lower(criterion):
    model, groups, batches = case("perceptron")
    before = scores_of(model, groups, batches, criterion, normalization="none")
    with torch.no_grad():
        model[1].weight[3] *= 2
    after = scores_of(model, groups, batches, criterion, normalization="none")
    name = next(group.name for group in groups if "1.weight" in group.tensors and group.size == 12)
    assert after[name][3] > before[name][3]
    assert (np.delete(after[name], 3) == np.delete(before[name], 3)).all()


def test_the_unit_whose_removal_changes_the_loss_most_scores_highest():
    """Oracle: the loss itself, with each unit's consumers set to zero; first order ranks like it."""
    model, groups, batches = case("perceptron")
    group = next(group for group in groups if group.size == 6)
    with torch.no_grad():
        model[6].weight *= 0.2
        model[6].weight[:, 2] *= 20
    found = scores_of(model, groups, batches, "taylor")[group.name]
    model.eval()
    changes = []
    with torch.no_grad():
        whole = [loss(model(*batch.args), batch) for batch in batches]
        for unit in range(6):
            without = copy.deepcopy(model)
            without[6].weight[:, unit] = 0
            changes.append(
                np.mean([abs(loss(without(*b.args), b) - w) for b, w in zip(batches, whole, strict=True)])
            )
    assert np.argmax(found) == np.argmax(changes) == 2
