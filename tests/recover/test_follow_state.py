"""State that is no copy of the parameter's shape, or belongs to a scaled parameter."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from tests.recover.following import OPTIMIZERS, cut_out, halved, learn, square, trainable
from tests.zoo.toys import groups_of
from torch import nn

import prunekit as pk
from prunekit.recover import Followed, follow
from prunekit.surgery import remove


def test_scaled_queries_and_keys_get_the_state_that_their_own_gradients_would_leave():
    # Oracle: the same optimizer on the smaller model from the start, at a learning rate of 0, given the dense
    # gradients cut out and divided by the factor: dL/d(f w) = (dL/dw) / f.
    model, plan = halved("attention", equivalent=False)
    groups = groups_of("attention")
    for kind in ("sgd", "adamw"):
        dense = trainable(model)
        optimizer = OPTIMIZERS[kind](dense.values())
        removal = remove(model, plan, groups)
        assert set(removal.scaled) == {
            f"attention.{part}" for part in ("q.weight", "k.weight", "q.bias", "k.bias")
        }
        small = trainable(removal.model)
        fresh = OPTIMIZERS[kind](small.values())
        for group in [*optimizer.param_groups, *fresh.param_groups]:
            group.update(lr=0.0, weight_decay=0.0)
        factors = {
            name: small[name].detach() / cut_out("attention", plan, name, each.detach())
            if name in removal.scaled
            else torch.ones(())
            for name, each in dense.items()
        }
        assert all(float((factors[name] - 1).abs().min()) > 0.01 for name in removal.scaled)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for name, each in dense.items():
                each.grad = torch.randn(each.shape, generator=generator)
                small[name].grad = cut_out("attention", plan, name, each.grad) / factors[name]
            optimizer.step()
            fresh.step()
        report = follow(optimizer, model, removal, plan, groups)
        assert set(report.rescaled) == set(removal.scaled)
        assert report.reset == {}
        for each in small.values():
            for key, value in fresh.state[each].items():
                torch.testing.assert_close(optimizer.state[each][key], value, rtol=1e-5, atol=1e-6)


def test_scaled_queries_and_keys_lose_state_that_is_not_known_to_scale():
    model, plan = halved("attention", equivalent=False)
    optimizer = OPTIMIZERS["rmsprop"](model.parameters())
    learn(optimizer, dict(model.named_parameters()), seed=0)
    removal = remove(model, plan, groups_of("attention"))
    report = follow(optimizer, model, removal, plan, groups_of("attention"))
    assert set(report.reset) == set(removal.scaled)
    assert report.rescaled == ()
    assert all("scaled" in reason for reason in report.reset.values())
    learn(optimizer, dict(removal.model.named_parameters()), seed=1)
    assert len(optimizer.state) == len(list(removal.model.parameters()))


def test_factored_state_is_narrowed_along_the_dimensions_it_has():
    # Oracle: the row and column means themselves, indexed by the units that stay.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    learn(optimizer, dict(model.named_parameters()), seed=0)
    before = copy.deepcopy([dict(optimizer.state[each]) for each in model.parameters()])
    result = pk.prune(model, (torch.randn(2, 6),), sparsity=0.5)
    (kept,) = (np.flatnonzero(mask) for mask in result.plan.keep_mask().values())
    report = pk.follow(optimizer, model, result, result.plan, result.groups)
    first, bias, second, _ = (optimizer.state[each] for each in result.model.parameters())
    assert torch.equal(first["row_var"], before[0]["row_var"][kept])
    assert torch.equal(first["col_var"], before[0]["col_var"])
    assert torch.equal(bias["variance"], before[1]["variance"][kept])
    assert torch.equal(second["row_var"], before[2]["row_var"])
    assert torch.equal(second["col_var"], before[2]["col_var"][:, kept])
    assert report == Followed(("0.weight", "0.bias", "2.weight"), (), (), {})
    learn(optimizer, dict(result.model.named_parameters()), seed=1)


class Keeping(torch.optim.SGD):
    """An optimizer with state of its own for every parameter."""

    def __init__(self, parameters, make):
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = make(parameter)


def test_means_that_are_known_by_name_are_narrowed_in_a_square_parameter():
    model = square()

    def make(each):
        means = {"exp_avg_sq_row": each.detach().mean(-1), "exp_avg_sq_col": each.detach().mean(-2)}
        return {"RMS": 0.5, "step": 3, **means}

    optimizer = Keeping([model[2].weight], make)
    result = pk.prune(model, (torch.randn(2, 4),), sparsity=0.5)
    pk.follow(optimizer, model, result, result.plan, result.groups)
    keep = result.plan.keep_mask()
    dense, small = model[2].weight.detach(), result.model[2].weight
    rows, columns = (np.flatnonzero(keep[_group(result, "2.weight", dim)]) for dim in (0, 1))
    state = optimizer.state[small]
    assert torch.equal(state["exp_avg_sq_row"], dense.mean(-1)[rows])
    assert torch.equal(state["exp_avg_sq_col"], dense.mean(-2)[columns])
    assert (state["RMS"], state["step"]) == (0.5, 3)


def _group(result, tensor, dim):
    return next(
        group.name
        for group in result.groups
        if any(part.tensor == tensor and part.dim == dim for part in group.slices)
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda each: {"table": torch.ones(8)}, r"'table' of shape \[8\] is not shaped like \[8, 8\]"),
        (lambda each: {"flat": each.detach().flatten()}, r"'flat' of shape \[64\]"),
        (lambda each: {"factors": [each.detach()]}, "'factors' is a list of tensors"),
    ],
    ids=["a table as long as a dimension", "flat", "a list"],
)
def test_state_of_unknown_shape_is_dropped_and_reported(make, reason):
    model = square()
    optimizer = Keeping([model[2].weight], make)
    result = pk.prune(model, (torch.randn(2, 4),), sparsity=0.5)
    report = pk.follow(optimizer, model, result, result.plan, result.groups)
    assert list(report.reset) == ["2.weight"]
    assert re.match(reason, report.reset["2.weight"])
    assert not optimizer.state[result.model[2].weight]
