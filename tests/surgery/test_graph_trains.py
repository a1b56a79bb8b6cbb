"""The pruned graph as a module trains as the model does: the same outputs and gradients in training mode."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.zoo import oracles
from tests.zoo.inplace import WRITING_STATE
from tests.zoo.toys import CASES, groups_of
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.graph import find_groups, trace
from prunekit.surgery.remove import reduced_graph


def step(model: nn.Module, inputs) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Gradients by parameter name, and the outputs, of one step in training mode."""
    model = copy.deepcopy(model).train()
    args, kwargs = oracles.more(inputs, count=4)
    with torch.random.fork_rng():
        torch.manual_seed(3)  # Of dropout.
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    floats = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    sum(leaf.square().sum() for leaf in floats).backward()  # pyright: ignore
    floats = [leaf.detach() for leaf in floats]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, floats


TRAINED_OTHERWISE = {"spectral norm": "its power iteration runs in training mode alone, which is not traced"}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in TRAINED_OTHERWISE], ids=lambda case: case.name
)
def test_the_graph_trains_as_the_model_does(case):
    model = case.model()
    expected, before = step(model, case.inputs())
    found, after = step(reduced_graph(model, {}, groups_of(case.name)), case.inputs())
    compare(expected, before, found, after)


@pytest.mark.parametrize("case", WRITING_STATE, ids=lambda case: case.name)
def test_the_graph_of_a_net_that_writes_its_own_state_trains_as_it_does(case):
    groups = find_groups(trace(case.model(), *case.inputs()))
    model = case.model()
    assert {g.places for g in case.groups} == {
        frozenset((part.tensor, part.dim) for part in group.slices) for group in groups
    }
    expected, before = step(model, case.inputs())
    found, after = step(reduced_graph(model, {}, groups), case.inputs())
    compare(expected, before, found, after)


def compare(expected, before, found, after):
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
