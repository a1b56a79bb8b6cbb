"""The laws of masks on single weights, over patterns x scopes x criteria x models."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import prunekit as pk
from prunekit.importance import WEIGHT_CRITERIA
from prunekit.importance.weight_criteria import seed_of
from prunekit.plan import WEIGHT_SCOPES, BySensitivity, NOfM
from prunekit.plan.pattern import parse_pattern, spread


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(8, 16, 3), nn.Conv2d(16, 24, 3, groups=2)
        self.head = nn.Linear(24, 8)

    def forward(self, x):
        x = torch.relu(self.stem(x.reshape(-1, 8, 1, 1).expand(-1, 8, 5, 5)))
        return self.head(torch.relu(self.grouped(x)).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.layers[2].weight = self.layers[0].weight
        self.last = nn.Linear(8, 16, dtype=torch.bfloat16)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.last(x.bfloat16()).float()


def perceptron():
    return nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 8, dtype=torch.float32))


MODELS = {"perceptron": perceptron, "convolutional": Convolutional, "tied": Tied}
PATTERNS = ["element", "2:4", "4:8", "2x4", "1x8", "4x1", "row", "column"]
SCOPES = [*WEIGHT_SCOPES, "sensitivity"]
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def loss(outputs, batch):
    return outputs.square().mean()


@cache
def built(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    return model, pk.find_weights(model)


@cache
def scored(name, criterion):
    model, weights = built(name)
    norms = pk.input_norms(model, weights, [SimpleNamespace(args=(X,), kwargs={})])
    generator = torch.Generator().manual_seed(2)
    gradients = {weight.name: torch.randn(weight.shape, generator=generator) for weight in weights}
    return pk.score_weights(model, weights, criterion, norms=norms, gradients=gradients)


def scope_of(name, weights):
    if name != "sensitivity":
        return name
    return BySensitivity({weight.name: {0.5: 1.0 + n, 1.0: 4.0} for n, weight in enumerate(weights)})


def plans(pattern, scope, sparsity):
    for name in MODELS:
        for criterion in WEIGHT_CRITERIA:
            model, weights = built(name)
            scores = scored(name, criterion)
            if isinstance(parse_pattern(pattern), NOfM):
                plan = pk.select_weights(weights, scores, pattern=pattern, criterion=criterion)
            else:
                plan = pk.select_weights(
                    weights,
                    scores,
                    sparsity=sparsity,
                    pattern=pattern,
                    scope=scope_of(scope, weights),
                    criterion=criterion,
                )
            yield model, weights, plan


def pieces_kept(weight, mask, pattern):
    """Kept pieces as a grid, after checking that every piece stands or falls as one."""
    matrix = weight.to_matrix(torch.from_numpy(mask.keep()))
    high, wide = parse_pattern(pattern).piece(weight)
    grid = matrix[::high, ::wide]
    assert torch.equal(spread(grid, (high, wide)), matrix)
    return grid


CASES = [(pattern, scope) for pattern in PATTERNS for scope in (["tensor"] if ":" in pattern else SCOPES)]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(("pattern", "scope"), CASES)
def test_counts_are_exact_and_pieces_stay_whole(pattern, scope, sparsity):
    for _, weights, plan in plans(pattern, scope, sparsity):
        grids = {weight.name: pieces_kept(weight, plan.masks[weight.name], pattern) for weight in weights}
        total = sum(grid.numel() for grid in grids.values())
        gone = total - sum(int(grid.sum()) for grid in grids.values())
        parsed = parse_pattern(pattern)
        if isinstance(parsed, NOfM):
            for grid in grids.values():
                assert bool((grid.reshape(-1, parsed.m).sum(1) == parsed.n).all())
            continue
        if sparsity in (0.0, 1.0):
            assert gone == sparsity * total
        elif scope == "row":
            for grid in grids.values():
                columns = grid.shape[1]
                assert bool((grid.sum(1) == columns - round(sparsity * columns)).all())
        elif scope in ("tensor", "module"):
            for grid in grids.values():
                assert int(grid.sum()) == grid.numel() - round(sparsity * grid.numel())
        elif pattern not in ("row", "column") or scope in ("global", "lamp"):
            assert gone == round(sparsity * total)
        else:
            weighed = sum(
                weight.count * (1 - float(grids[weight.name].double().mean())) for weight in weights
            )
            most = sum(weight.count / grids[weight.name].numel() for weight in weights)
            assert abs(weighed - sparsity * weights.count) <= most


@pytest.mark.parametrize(("pattern", "scope"), CASES)
def test_deciding_is_repeatable_and_changes_nothing(pattern, scope):
    states = {name: {k: v.clone() for k, v in built(name)[0].state_dict().items()} for name in MODELS}
    first = [plan for _, _, plan in plans(pattern, scope, 0.4)]
    again = [plan for _, _, plan in plans(pattern, scope, 0.4)]
    assert [plan.digest for plan in first] == [plan.digest for plan in again]
    for name, state in states.items():
        for key, value in built(name)[0].state_dict().items():
            assert torch.equal(value, state[key])


@pytest.mark.parametrize("criterion", WEIGHT_CRITERIA)
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_finite_and_not_negative_and_follow_the_parameter_alone(name, criterion):
    model, weights = built(name)
    scores = scored(name, criterion)
    for weight in weights:
        assert tuple(scores[weight.name].shape) == weight.shape
        assert bool((scores[weight.name] >= 0).all())
        assert bool(torch.isfinite(scores[weight.name]).all())
    if not WEIGHT_CRITERIA[criterion].needs:
        alone = pk.score_weights(model, pk.find_weights(model, only=weights.tensors[-1].name), criterion)
        assert torch.equal(alone[weights.tensors[-1].name], scores[weights.tensors[-1].name])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", MODELS)
def test_attached_equals_folded_equals_zeros_by_hand(name, pattern):
    """Oracle: the model with its parameters set to zero where the mask says so."""
    model, weights = built(name)
    asked = {} if ":" in pattern else {"sparsity": 0.5}
    plan = pk.select_weights(weights, scored(name, "l2"), pattern=pattern, criterion="l2", **asked)
    masked = pk.attach_masks(model, plan)
    folded = pk.fold_masks(masked)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for key, mask in plan.masks.items():
            by_hand.get_parameter(key).masked_fill_(~torch.from_numpy(mask.keep()), 0.0)
        assert torch.equal(masked(X), by_hand(X))
        assert torch.equal(folded(X), by_hand(X))
    assert list(folded.state_dict()) == list(model.state_dict())
    for key, value in by_hand.state_dict().items():
        assert torch.equal(folded.state_dict()[key], value)


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("criterion", WEIGHT_CRITERIA)
def test_what_stays_at_a_higher_sparsity_stays_at_a_lower_one(criterion, scope):
    for name in MODELS:
        _, weights = built(name)
        before = None
        for sparsity in (0.1, 0.5, 0.9):
            plan = pk.select_weights(weights, scored(name, criterion), sparsity=sparsity, scope=scope)
            keep = np.concatenate([mask.keep().ravel() for mask in plan.masks.values()])
            assert before is None or not (keep & ~before).any()
            before = keep


AMOUNTS = [0.0, 0.1, 0.25, 0.5, 0.77, 1.0]


def fresh(name):
    torch.manual_seed(5)
    return {"linear": nn.Linear(24, 16), "convolution": nn.Conv2d(8, 16, 3)}[name]


def mask_here(module, **asked):
    return torch.from_numpy(pk.mask_weights(module, **asked).plan.masks["weight"].keep())


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_masks_equal_those_of_torch(name, amount):
    """Oracle: torch.nn.utils.prune on the same tensors, without ties."""
    module = fresh(name)
    l1 = prune.l1_unstructured(copy.deepcopy(module), "weight", amount).weight_mask.bool()
    assert torch.equal(mask_here(module, sparsity=amount, criterion="l1"), l1)
    for criterion, n in (("l1", 1), ("l2", 2), ("linf", float("inf"))):
        whole = prune.ln_structured(copy.deepcopy(module), "weight", amount, n=n, dim=0).weight_mask.bool()
        assert torch.equal(mask_here(module, sparsity=amount, criterion=criterion, pattern="row"), whole)
    twin = copy.deepcopy(module)
    torch.manual_seed(seed_of("weight", 7))
    drawn = prune.random_unstructured(twin, "weight", amount).weight_mask.bool()
    assert torch.equal(mask_here(module, sparsity=amount, criterion="random", seed=7), drawn)


@pytest.mark.parametrize("n", [1, 2, 3.5, float("inf")])
def test_masks_of_any_norm_equal_those_of_torch(n):
    """Oracle: torch's ln_structured over inputs, with the power as an argument."""
    module = fresh("linear")
    wanted = prune.ln_structured(copy.deepcopy(module), "weight", 0.5, n=n, dim=1).weight_mask.bool()
    weights = pk.find_weights(module)
    scores = pk.score_weights(module, weights, "magnitude")
    plan = pk.select_weights(weights, scores, sparsity=0.5, pattern="column", power=n)
    assert torch.equal(torch.from_numpy(plan.masks["weight"].keep()), wanted)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_masks_over_the_whole_model_equal_those_of_torch(amount):
    """Oracle: torch's global_unstructured, without ties."""
    model = Convolutional()
    twin = copy.deepcopy(model)
    names = ["stem", "grouped", "head"]
    prune.global_unstructured(
        [(getattr(twin, name), "weight") for name in names], prune.L1Unstructured, amount=amount
    )
    plan = pk.mask_weights(model, sparsity=amount, scope="global").plan
    for name in names:
        wanted = getattr(twin, name).weight_mask.bool().numpy()
        np.testing.assert_array_equal(plan.masks[f"{name}.weight"].keep(), wanted)
