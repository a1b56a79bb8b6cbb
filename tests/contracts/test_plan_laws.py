"""The laws of plans, over goals x scopes x models that the graph engine understands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.errors import GoalError, SelectionError
from prunekit.graph import find_groups, trace
from prunekit.plan import Goal, Limits, PruningPlan, allocate
from prunekit.plan.limits import limits_by_group
from prunekit.surgery import remove
from prunekit.types import DEPTH, Granularity


class Convolutional(nn.Module):
    """Two residual stages, a grouped convolution and a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 24, 3, padding=1)
        self.outer = nn.Conv2d(24, 16, 1)
        self.grouped = nn.Conv2d(16, 32, 3, groups=4)
        self.hidden = nn.Linear(32 * 4, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(torch.relu(self.hidden(torch.relu(self.grouped(x)).flatten(1))))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 33), nn.ReLU(), nn.Linear(33, 4))


ALONG = sorted(set(Granularity) - DEPTH)
"""Every kind of unit that lies along dimensions; layers have laws of their own."""

MODELS = {"perceptron": (perceptron, (2, 16)), "convolutional": (Convolutional, (2, 1, 4, 4))}


def made(name):
    torch.manual_seed(0)
    build, shape = MODELS[name]
    return build().eval(), torch.randn(shape)


@pytest.fixture(scope="module", params=list(MODELS))
def groups(request):
    model, inputs = made(request.param)
    return find_groups(trace(model, (inputs,), {})).select(granularity=ALONG)


def tied_scores(groups, seed, ties):
    draw = np.random.default_rng(seed)
    return {group.name: draw.integers(0, ties, group.size).astype(np.float32) for group in groups}


def check(plan, groups):
    """What every plan obeys."""
    masks = plan.keep_mask()
    assert plan.fingerprint == groups.fingerprint
    assert plan.before == groups.cost()
    assert plan.after == groups.cost(masks)
    for group in groups:
        kept = plan.widths[group.name][1]
        assert kept >= 1
        if group.name in masks:
            assert masks[group.name].sum() == kept < group.size
            per_block = masks[group.name].reshape(group.blocks, -1).sum(axis=1)
            assert len(set(per_block.tolist()) - {0}) == 1  # 0 = the block went with the group around it
            gone = np.flatnonzero(~masks[group.name]).tolist()
            assert plan.removed(group.name) == tuple(gone)
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert PruningPlan.from_json(plan.to_json()).digest == plan.digest


@settings(max_examples=25)
@given(percent=st.integers(0, 99), seed=st.integers(0, 9), ties=st.sampled_from([1, 2, 100]))
def test_uniform_sparsity_gives_the_exact_count_in_every_group(groups, percent, seed, ties):
    """Oracle: integer arithmetic, the nearest count per block, a half kept, at least one."""

    def kept_of(units):
        return max(1, (units * (100 - percent) + 50) // 100)

    scores, goal = tied_scores(groups, seed, ties), Goal("sparsity", remove=percent / 100)
    if percent and all(kept_of(group.units_per_block) == group.units_per_block for group in groups):
        with pytest.raises(GoalError, match="removes nothing at all"):
            allocate(groups, scores, goal)
        return
    plan = allocate(groups, scores, goal)
    check(plan, groups)

    blocks_left = {"stem:channel": kept_of(4), "grouped:channel": kept_of(4)}  # inside stem:channel_group
    for group in groups:
        left = blocks_left.get(group.name, 1) if group.blocks > 1 else 1
        assert plan.widths[group.name] == (group.size, kept_of(group.units_per_block) * left)


@settings(max_examples=25)
@given(percent=st.integers(0, 89), seed=st.integers(0, 9), ties=st.sampled_from([1, 2, 100]))
def test_global_sparsity_gives_the_count_over_all_groups(groups, percent, seed, ties):
    """Within half a step of the widest group (its number of blocks) or the tolerance, whatever the ties."""
    goal = Goal("sparsity", remove=percent / 100, tolerance=0.05)
    plan = allocate(groups, tied_scores(groups, seed, ties), goal, scope="global", max_sparsity=1.0)
    check(plan, groups)
    total, kept = map(sum, zip(*plan.widths.values(), strict=True))
    assert abs(kept - total * (1 - percent / 100)) <= 0.05 * total * (1 - percent / 100) + 1


@settings(max_examples=25)
@given(
    percent=st.integers(0, 60),
    kind=st.sampled_from(["macs", "params"]),
    scope=st.sampled_from(["uniform", "global"]),
    seed=st.integers(0, 9),
    ties=st.sampled_from([1, 3, 1000]),
)
def test_macs_and_params_are_reached_within_two_percent(groups, percent, kind, scope, seed, ties):
    plan = allocate(groups, tied_scores(groups, seed, ties), Goal(kind, remove=percent / 100), scope=scope)
    check(plan, groups)
    before, after = getattr(plan.before, kind), getattr(plan.after, kind)
    asked = before * (1 - percent / 100)
    assert abs(after - asked) <= 0.02 * asked + 1


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_the_most_that_can_go_leaves_one_unit_per_block(groups, scope):
    least = {group.name: np.zeros(group.size, dtype=bool) for group in groups}
    for group in groups:
        least[group.name][:: group.units_per_block] = True
    reach = groups.cost(least).params
    plan = allocate(
        groups,
        tied_scores(groups, 0, 2),
        Goal("params", reach=reach, tolerance=0),
        scope=scope,
        max_sparsity=1.0,
    )
    check(plan, groups)
    assert [after for _, after in plan.widths.values()] == [1] * len(groups)
    with pytest.raises(GoalError, match=f"The nearest found leaves {reach:,}"):
        allocate(
            groups, tied_scores(groups, 0, 2), Goal("params", reach=reach // 2), scope=scope, max_sparsity=1.0
        )


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_asking_for_more_never_keeps_a_unit_that_asking_for_less_removes(groups, scope, kind):
    """Holds on the path; a tolerance this wide makes no departure from it necessary."""
    scores = tied_scores(groups, 1, 1000)
    previous = {group.name: np.ones(group.size, dtype=bool) for group in groups}
    for percent in range(0, 60, 4):
        goal = Goal(kind, remove=percent / 100, tolerance=0.5)
        masks = previous | dict(allocate(groups, scores, goal, scope=scope).keep_mask())
        for name, mask in masks.items():
            assert not (mask & ~previous[name]).any()
        previous = masks
    assert not all(mask.all() for mask in previous.values())


@pytest.mark.parametrize("kinds", [ALONG, ["channel", "neuron"]])
@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("name", list(MODELS))
def test_plans_made_one_after_the_other_compose_into_one(name, scope, kinds):
    """Oracle: the model pruned three times in turn computes what the composed plan removes at once."""
    model, inputs = made(name)
    groups = find_groups(trace(model, (inputs,), {})).select(granularity=kinds)
    small, small_groups, whole = model, groups, None
    for seed in range(3):
        goal = Goal("params", remove=0.25, tolerance=0.1)
        plan = allocate(small_groups, tied_scores(small_groups, seed, 1000), goal, scope=scope)
        small = remove(small, plan, small_groups).model
        whole = plan if whole is None else whole.then(plan)
        small_groups = find_groups(trace(small, (inputs,), {})).select(granularity=kinds)
        assert small_groups.cost() == plan.after
    at_once = remove(model, whole, groups).model
    assert groups.cost(whole.keep_mask()) == whole.after
    with torch.no_grad():
        torch.testing.assert_close(at_once(inputs), small(inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", list(MODELS))
def test_patterns_of_limits_match_what_patterns_of_a_selection_match(name):
    """Oracle: ``Groups.select``; the groups it leaves are those that a limit of no removal keeps whole."""
    model, inputs = made(name)
    found = find_groups(trace(model, (inputs,), {})).select(granularity=ALONG)
    tensors = [tensor for group in found for tensor in group.tensors]
    patterns = {group.name for group in found} | set(tensors) | {t.rpartition(".")[0] for t in tensors}
    for pattern in sorted(patterns | {"*.weight", "*:channel"}):
        try:
            matched = {group.name for group in found.select(only=[pattern])}
        except SelectionError:
            with pytest.raises(SelectionError, match="matches no prunable group"):
                limits_by_group(tuple(found), Limits(), {pattern: Limits(round_to=2)})
            continue
        held = limits_by_group(tuple(found), Limits(), {pattern: Limits(round_to=2)})
        own = {group.name for group, limits in zip(found, held, strict=True) if limits.round_to == 2}
        assert own == matched


def test_the_same_question_gives_the_same_plan(groups):
    scores = tied_scores(groups, 2, 3)
    plans = [allocate(groups, scores, Goal("macs", remove=0.4), scope="global") for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].to_json() == plans[1].to_json()
