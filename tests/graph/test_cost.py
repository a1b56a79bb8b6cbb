"""``Groups.cost`` says what the really removed model has and does, without removing anything.

Oracles: the sizes of the removed model's parameters, and torch.utils.flop_counter run on it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.zoo.case import Case
from tests.zoo.oracles import counted_cost
from tests.zoo.toys import CASES, groups_of
from torch import nn

from prunekit.graph import find_groups, trace
from prunekit.plan import Goal, allocate
from prunekit.surgery.remove import reduced_graph
from prunekit.types import Cost


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


UNSEEN = ("lstm", "bilinear", "spectral norm", "einsum", "experts", "lower precision")
"""Toys with products that torch's counter does not see, its own or einsum's over dimensions of one; of
"lower precision" ``Groups.cost`` leaves out what runs in it.
"""


def unseen(case: Case, model: nn.Module) -> int:
    """Multiplications of the toy's one product that torch's counter does not see."""
    return model.vector.numel() if case.name == "unwrapped parameters" else 0  # pyright: ignore


def assert_is(case: Case, cost: Cost, model: nn.Module) -> None:
    params, macs = counted_cost(model, case.inputs())
    macs = cost.macs if case.name.startswith(UNSEEN) else macs + unseen(case, model)
    bytes_of_all = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    assert cost == Cost(params=params, macs=macs, param_bytes=bytes_of_all)


def test_cost_of_the_dense_model(case):
    assert_is(case, groups_of(case.name).cost(), case.model())


@pytest.mark.parametrize("sparsity", [0.25, 0.9])
def test_cost_after_removal(case, sparsity):
    groups = groups_of(case.name)
    draw = np.random.default_rng(7)
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in groups}
    goal = Goal("sparsity", remove=sparsity if len(groups) else 0.0)
    plan = allocate(groups, scores, goal)
    cost = groups.cost(plan.keep_mask())
    assert_is(case, cost, reduced_graph(case.model(), plan.keep_mask(), groups))
    assert plan.after == cost
    assert plan.before == groups.cost()


def test_groups_that_are_absent_are_whole():
    groups = groups_of("basic blocks")
    everything = {group.name: np.ones(group.size, dtype=bool) for group in groups}
    assert groups.cost({}) == groups.cost() == groups.cost(everything)


def test_bytes_follow_the_type():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).to(torch.bfloat16)
    model[2].double()
    groups = find_groups(trace(nn.Sequential(*model[:2]), torch.randn(2, 4, dtype=torch.bfloat16)))
    assert groups.cost() == Cost(params=30, macs=24, param_bytes=60)


def test_cost_by_hand():
    """A 3 x 3 convolution from 3 to 8 channels over 8 x 8 places, 8 to 5 channels at each of 8 x 8 places."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    groups = find_groups(trace(model, torch.randn(2, 3, 8, 8)))
    (group,) = groups
    keep = {group.name: np.arange(8) < 6}
    assert groups.cost().macs == 8 * 27 * 64 + 5 * 8 * 64
    assert groups.cost(keep).macs == 6 * 27 * 64 + 5 * 6 * 64
    assert groups.cost(keep).params == 6 * 28 + 5 * 7


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_macs_are_those_of_one_example(batch):
    groups = find_groups(trace(nn.Linear(4, 6), torch.randn(batch, 4)))
    assert groups.cost().macs == 24
