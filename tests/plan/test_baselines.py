"""Every allocation ends at its limits, and is what its name says.

Oracles: the definitions, spelt out over a perceptron; brute force for the knapsack (see test_knapsack).
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.zoo.toys import everything_in

from prunekit.graph.operations import Operations
from prunekit.plan.baselines import ALLOCATIONS
from prunekit.plan.figures import (
    Figure,
    Limit,
    figure_of,
    loss_figure,
    operation_terms,
    parameter_figure,
    valued,
)
from prunekit.plan.levers import Levers, find_levers
from prunekit.plan.losses import level_losses, structure_of
from prunekit.types import Granularity, Group, Slice

NAMES = (
    "basic blocks",
    "grouped convolution",
    "fused attention",
    "grouped-query attention",
    "channel shuffle",
)


def drawn(groups, seed: int):
    draw = np.random.default_rng(seed)
    return {group.name: draw.uniform(0.1, 1, group.size).astype(np.float32) for group in groups}


def toy(name: str, seed: int = 0):
    """Levers of a toy with scores, losses, and the figures of MACs and of parameters."""
    groups = everything_in(name)
    chosen = groups.select(granularity=sorted({group.granularity.value for group in groups}))
    scores = drawn(chosen, seed)
    levers = find_levers(chosen.prunable, scores, most_levels=5)
    macs = valued(operation_terms(Operations(groups), levers, groups), lambda operation: operation.macs)
    return levers, scores, loss_figure(level_losses(levers, scores)), macs, parameter_figure(levers, groups)


def zeros(levers: Levers):
    return np.zeros(len(levers), dtype=np.int64)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by", ALLOCATIONS)
def test_limits_are_met_and_used(by, name, share):
    levers, scores, losses, macs, params = toy(name)
    for figures in ((macs,), (macs, params)):
        limits = [Limit(figure, share * figure.at(zeros(levers))) for figure in figures]
        chosen = ALLOCATIONS[by](levers, scores, losses, limits)
        if chosen is None:
            assert by == "uniform" or not all(limit.is_met(levers.last) for limit in limits)
            continue
        assert all(limit.is_met(chosen.levels) for limit in limits)
        assert chosen.objective == pytest.approx(losses.at(chosen.levels))
        assert chosen.levels.any()
        if by in ("uniform", "global", "isomorphic"):
            assert_no_step_is_left_over(levers, chosen.levels, limits)


def assert_no_step_is_left_over(levers, levels, limits) -> None:
    """The last step that was kept is needed: some lever cannot take its step back."""

    def taken_back(place):
        moved = levels.copy()
        moved[place] -= 1
        return all(limit.is_met(moved) for limit in limits)

    assert not all(taken_back(place) for place in np.flatnonzero(levels))


@pytest.mark.parametrize("by", ALLOCATIONS)
def test_nothing_goes_where_nothing_has_to(by):
    levers, scores, losses, macs, _ = toy("basic blocks")
    chosen = ALLOCATIONS[by](levers, scores, losses, [Limit(macs, macs.at(zeros(levers)))])
    assert chosen is not None
    assert not chosen.levels.any()


@pytest.mark.parametrize("by", ALLOCATIONS)
def test_what_nothing_meets_is_none(by):
    levers, scores, losses, macs, _ = toy("basic blocks")
    assert ALLOCATIONS[by](levers, scores, losses, [Limit(macs, 0.5 * macs.least())]) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_the_knapsack_loses_least(name, seed):
    levers, scores, losses, macs, _ = toy(name, seed)
    limits = [Limit(macs, 0.5 * macs.at(zeros(levers)))]
    found = {by: allocation(levers, scores, losses, limits) for by, allocation in ALLOCATIONS.items()}
    best = found["knapsack"]
    assert best is not None
    for chosen in found.values():
        assert chosen is None or chosen.objective >= best.objective * (1 - 0.005) - 1e-9


def width(name: str, size: int) -> Group:
    part = Slice(f"{name}.weight", 0, np.arange(size), "producer")
    return Group(name, Granularity.NEURON, size, 1, (part,))


def channels(name: str, size: int) -> Group:
    part = Slice(f"{name}.scale", 0, np.arange(size), "producer")
    return Group(name, Granularity.CHANNEL, size, 1, (part,))


def kept_units(levers: Levers) -> Figure:
    return figure_of(((place,), lever.kept * lever.group.blocks) for place, lever in enumerate(levers))


def run(by: str, groups, scores, left: int):
    """The units that each group keeps, when so many are left altogether."""
    levers = find_levers(groups, scores, most_levels=100)
    losses = loss_figure(level_losses(levers, scores))
    chosen = ALLOCATIONS[by](levers, scores, losses, [Limit(kept_units(levers), left)])
    assert chosen is not None
    return {lever.name: int(lever.kept[level]) for lever, level in zip(levers, chosen.levels, strict=True)}


def test_uniform_takes_the_same_share_of_every_group():
    groups = (width("a", 10), width("b", 20), width("c", 40))
    kept = run("uniform", groups, drawn(groups, 0), 35)
    assert kept == {"a": 5, "b": 10, "c": 20}


@pytest.mark.parametrize("seed", range(3))
def test_uniform_is_within_a_level_of_one_share(seed):
    groups = (width("a", 7), width("b", 20), width("c", 33))
    for left in (55, 41, 30, 12):
        kept = run("uniform", groups, drawn(groups, seed), left)
        shares = [kept[group.name] / group.size for group in groups]
        assert max(shares) - min(shares) <= 2 / 7
        assert sum(kept.values()) == left


def test_uniform_leaves_depth_alone():
    levers, scores, losses, macs, _ = toy("basic blocks")
    chosen = ALLOCATIONS["uniform"](levers, scores, losses, [Limit(macs, 0.5 * macs.at(zeros(levers)))])
    assert chosen is not None
    depths = [place for place, lever in enumerate(levers) if lever.unit is not None]
    assert depths
    assert not chosen.levels[depths].any()


@pytest.mark.parametrize("seed", range(3))
def test_global_keeps_the_highest_scores_of_all(seed):
    groups = (width("a", 10), width("b", 20), width("c", 40))
    scores = drawn(groups, seed)
    kept = run("global", groups, scores, 31)
    ranked = np.sort(np.concatenate([scores[group.name] for group in groups]))[::-1]
    assert kept == {group.name: int((scores[group.name] >= ranked[30]).sum()) for group in groups}


def test_global_ranks_raw_scores_and_isomorphic_does_not():
    """Scores of one structure that are a thousand times larger keep it whole in a global ranking."""
    groups = (width("a", 20), width("b", 20), channels("c", 20), channels("d", 20))
    assert structure_of(groups[0]) == structure_of(groups[1]) != structure_of(groups[2])
    scores = drawn(groups, 1)
    for name in "ab":
        scores[name] = scores[name] * 1000
    kept = run("global", groups, scores, 50)
    assert kept["a"] == kept["b"] == 20
    kept = run("isomorphic", groups, scores, 40)
    assert kept["a"] + kept["b"] == kept["c"] + kept["d"] == 20


def test_isomorphic_ranks_inside_a_structure():
    groups = (width("a", 20), width("b", 20), channels("c", 20))
    scores = drawn(groups, 2)
    scores["a"] = scores["a"] * 100
    kept = run("isomorphic", groups, scores, 45)
    assert kept == {"a": 19, "b": 11, "c": 15} or kept["a"] + kept["b"] == 30
    assert kept["a"] == 20
    assert kept["b"] == 10


def test_greedy_takes_the_cheapest_step_first():
    """One unit of loss for one of cost beside one for three: the second group gives."""
    groups = (width("a", 2), width("b", 2))
    scores = {group.name: np.ones(2, dtype=np.float32) for group in groups}
    levers = find_levers(groups, scores)
    losses = loss_figure([np.array([0.0, 1.0]), np.array([0.0, 1.0])])
    costs = figure_of([((0,), np.array([4.0, 3.0])), ((1,), np.array([4.0, 1.0]))])
    chosen = ALLOCATIONS["greedy"](levers, scores, losses, [Limit(costs, 7.5)])
    assert chosen is not None
    assert chosen.levels.tolist() == [0, 1]


@pytest.mark.parametrize("by", ALLOCATIONS)
def test_scores_are_left_as_they_were(by):
    levers, scores, losses, macs, _ = toy("basic blocks")
    doubled = {name: values.astype(np.float64) for name, values in scores.items()}
    before = {name: values.copy() for name, values in doubled.items()}
    ALLOCATIONS[by](levers, doubled, losses, [Limit(macs, 0.5 * macs.at(zeros(levers)))])
    for name, values in doubled.items():
        np.testing.assert_array_equal(values, before[name])
