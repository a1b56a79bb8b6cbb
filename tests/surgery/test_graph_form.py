"""Models without values are compared by their graphs; what that removes is what is removed by values."""

from __future__ import annotations

import pytest
import torch
from tests.recover.following import halved
from tests.zoo.toys import BY_NAME
from torch import nn
from torch.utils import _pytree as pytree

import prunekit as pk
from prunekit.errors import PlanError, ProofError
from prunekit.plan import Goal, allocate
from prunekit.ranks import ALONE
from prunekit.surgery.graph_form import form_of

TOYS = (
    "basic blocks",
    "flatten",
    "tied weights",
    "depthwise with multiplier",
    "shuffled unit",
    "unused tensors",
    "frozen parameters",
)


def meta_of(name: str) -> tuple[nn.Module, pk.Groups]:
    case = BY_NAME[name]
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf, case.inputs()
    )
    with torch.device("meta"):
        model = case.build()
    return model, pk.find_groups(pk.trace(model, args, kwargs))


@pytest.mark.parametrize("name", TOYS)
def test_removal_decided_without_values_is_that_decided_with_them(name):
    model, plan = halved(name)
    meta, groups = meta_of(name)
    assert groups.fingerprint == plan.fingerprint
    expected = pk.remove(model, plan, pk.find_groups(pk.trace(model, *BY_NAME[name].inputs())))
    assert expected.form == "own class"
    removal = pk.remove_sharded(model, plan, groups, meta, shard=None, ranks=ALONE)
    found, wanted = removal.model.state_dict(), expected.model.state_dict()
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []
    args, kwargs = BY_NAME[name].inputs()
    outputs = [pytree.tree_leaves(each.eval()(*args, **kwargs)) for each in (removal.model, expected.model)]
    assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))
    assert pk.verify_sharded(model, removal, plan, groups, args, kwargs, ranks=ALONE).passed


def test_the_proof_sees_a_value_that_is_not_the_dense_models():
    model, plan = halved("flatten")
    meta, groups = meta_of("flatten")
    removal = pk.remove_sharded(model, plan, groups, meta, shard=None, ranks=ALONE)
    with torch.no_grad():
        next(iter(removal.model.parameters())).mul_(1.01)
    args, kwargs = BY_NAME["flatten"].inputs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    proof = pk.verify_sharded(model, removal, plan, groups, args, kwargs, ranks=ALONE)
    assert {law.law: law.passed for law in proof.laws} == {"permutation": True, "mask": False, "form": True}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Scaled(nn.Module):
    """Divides by the root of its width, as attention does."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, x):
        x = torch.relu(self.up(x))
        return self.down(x / x.shape[-1] ** 0.5)


def test_a_class_that_computes_something_else_is_refused():
    with torch.device("meta"):
        meta = Scaled()
        groups = pk.find_groups(pk.trace(meta, (torch.zeros(2, 4),)))
    model = Scaled()
    plan = allocate(groups, pk.score(model, groups, "l2"), Goal("sparsity", remove=0.5), criterion="l2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ProofError, match=r"it computes aten\.div"):
        pk.remove_sharded(model, plan, groups, meta, shard=None, ranks=ALONE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_twin_of_another_model_is_refused():
    with torch.device("meta"):
        meta = Scaled()
        groups = pk.find_groups(pk.trace(meta, (torch.zeros(2, 4),)))
    model = Scaled()
    plan = allocate(groups, pk.score(model, groups, "l2"), Goal("sparsity", remove=0.5), criterion="l2")
    with pytest.raises(PlanError, match="the same names, shapes and dtypes"):
        pk.remove_sharded(model, plan, groups, meta.double(), shard=None, ranks=ALONE)
    with pytest.raises(PlanError, match="on the meta device"):
        pk.remove_sharded(model, plan, groups, Scaled(), shard=None, ranks=ALONE)


class Written(nn.Module):
    """One linear layer and what ``then`` makes of it."""

    def __init__(self, then) -> None:
        super().__init__()
        self.linear, self.then = nn.Linear(4, 6), then

    def forward(self, x):
        return self.then(self.linear(x))


SAME = {
    "there and back": lambda x: x.reshape(-1, 2, 3).reshape(-1, 6).relu(),
    "a new dimension": lambda x: x.unsqueeze(1).expand(-1, 1, -1).reshape(-1, 6).relu(),
    "all of it": lambda x: x[:, 0:].contiguous().relu(),
    "nobody reads it": lambda x: (x.sin(), x.relu())[1],
}
OTHER = {
    "another shape": lambda x: x.reshape(-1, 2, 3).relu(),
    "another order": lambda x: x.reshape(-1, 2, 3).transpose(1, 2).reshape(-1, 6).relu(),
    "a part of it": lambda x: x[:, 1:].relu(),
    "another constant": lambda x: (x * 1.0).relu(),
    "another operator": lambda x: x.sigmoid(),
    "once more": lambda x: x.relu().relu(),
    "a number of its own": lambda x: x.relu() + torch.ones(6, device=x.device),
    "written into a view": lambda x: x.view(-1, 2, 3).relu_().view(-1, 6),
}


def form(then):
    with torch.device("meta"):
        model, x = Written(then), torch.zeros(2, 4)
    return form_of(model, ((x,), {}), {name: name for name, _ in model.named_parameters()})


@pytest.mark.parametrize("then", SAME.values(), ids=SAME)
def test_shapes_that_change_back_and_copies_are_forgiven(then):
    assert form(torch.relu).difference(form(then)) == ""


@pytest.mark.parametrize("then", OTHER.values(), ids=OTHER)
def test_whatever_else_differs_is_a_difference(then):
    assert form(torch.relu).difference(form(then))
    assert form(then).difference(form(torch.relu))


def test_tensors_are_told_apart_by_name():
    with torch.device("meta"):
        model, x = Written(torch.relu), torch.zeros(2, 4)
    names = {"linear.weight": "linear.weight", "linear.bias": "another.bias"}
    assert form(torch.relu).difference(form_of(model, ((x,), {}), names))
