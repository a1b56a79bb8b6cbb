"""Levels of levers: laws over toys of every kind; the masks of a plan are those of ``allocate``."""

from __future__ import annotations

import numpy as np
import pytest
from tests.zoo.toys import depth_of, everything_in, groups_of

from prunekit.errors import SelectionError, ShapeError
from prunekit.plan import Goal, Limits, allocate
from prunekit.plan.levers import find_levers
from prunekit.plan.limits import allowed_counts

NAMES = (
    "basic blocks",
    "grouped convolution",
    "depthwise with multiplier",
    "channel shuffle",
    "convnext",
    "grouped-query attention",
    "fused attention",
    "experts, gathered",
)
LIMITS = (
    Limits(),
    Limits(min_units=3),
    Limits(max_sparsity=0.6),
    Limits(round_to=4),
    Limits(min_units=2, max_sparsity=0.75, round_to=2),
)


def drawn(groups, seed: int = 0):
    draw = np.random.default_rng(seed)
    return {group.name: draw.random(group.size).astype(np.float32) for group in groups}


@pytest.mark.parametrize("most", [2, 3, 8, 1000])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_levels_fall_and_keep_to_the_limits(name, limits, most):
    groups = tuple(everything_in(name))
    levers = find_levers(groups, drawn(groups), limits=limits, most_levels=most)
    for lever in levers:
        assert (np.diff(lever.kept) < 0).all()
        assert 2 <= len(lever) <= max(most, 2)
        if lever.unit is None:
            allowed = allowed_counts(lever.group, limits)
            assert lever.kept[0] == lever.group.units_per_block
            assert set(lever.kept) <= set(allowed)
            if len(allowed) <= most:
                assert lever.kept.tolist() == allowed.tolist()
            else:  # A rounder width may lie half a step beside the fewest.
                assert lever.kept[-1] - allowed[-1] <= (allowed[0] - allowed[-1]) / (most - 1) / 2
        else:
            assert lever.kept.tolist() == [1, 0]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("name", ["basic blocks", "fused attention", "grouped-query attention"])
def test_no_more_layers_are_offered_than_may_go(name, limits):
    groups = tuple(depth_of(name))
    scores = drawn(groups)
    levers = find_levers(groups, scores, limits=limits)
    for group in groups:
        allowed = allowed_counts(group, limits)
        offered = [lever.unit for lever in levers if lever.group.name == group.name]
        lowest = np.argsort(-scores[group.name], kind="stable")[allowed[-1] :]
        assert offered == sorted(set(lowest.tolist()) - set(group.pinned))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_masks_are_those_of_a_uniform_plan(name, share):
    groups = groups_of(name)
    scores = drawn(groups, 3)
    plan = allocate(groups, scores, Goal("sparsity", remove=share), limits=Limits(min_units=1))
    asked = plan.keep_mask()
    kept = {  # A mask may have lost blocks to a group around it; the lever says what other blocks keep.
        group.name: int(asked[group.name].reshape(group.blocks, -1).sum(axis=1).max()) * group.blocks
        for group in groups
        if group.name in asked
    }
    whole = [group.name for group in groups if kept.get(group.name, group.size) == group.size]
    levers = find_levers(
        [group for group in groups if group.name not in whole],
        scores,
        limits=Limits(min_units=1),
        widths={name: [count] for name, count in kept.items() if name not in whole},
    )
    masks = levers.masks(levers.last)
    for group in groups:
        if group.name not in whole:
            np.testing.assert_array_equal(masks[group.name], asked[group.name])


@pytest.mark.parametrize("name", NAMES)
def test_masks_at_random_levels(name):
    groups = tuple(everything_in(name))
    levers = find_levers(groups, drawn(groups), most_levels=4)
    draw = np.random.default_rng(5)
    assert levers.masks(np.zeros(len(levers), dtype=int)) == {}
    for _ in range(5):
        levels = draw.integers(0, [len(lever) for lever in levers])
        masks = levers.masks(levels)
        for lever, level in zip(levers, levels, strict=True):
            gone = lever.removed(level)
            if lever.group.name in masks:
                assert not masks[lever.group.name][gone].any()
        for mask in masks.values():
            assert not mask.all()


def test_levels_are_nested():
    groups = tuple(groups_of("channel shuffle"))
    for lever in find_levers(groups, drawn(groups)):
        for level in range(1, len(lever)):
            assert set(lever.removed(level - 1)) < set(lever.removed(level))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"most_levels": 1}, "at least 2"),
        ({"widths": {"": [999]}}, "widths"),
        ({"limits": Limits(max_sparsity=0.5), "widths": {"": [1]}}, "widths"),
        ({"per_group": {"nothing.*": Limits()}}, "matches no"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    groups = tuple(groups_of("perceptron"))
    if "widths" in arguments:
        arguments = {**arguments, "widths": {groups[0].name: arguments["widths"][""]}}
    with pytest.raises(SelectionError, match=message):
        find_levers(groups, drawn(groups), **arguments)


def test_scores_have_to_fit():
    groups = tuple(groups_of("perceptron"))
    with pytest.raises(ShapeError, match="no scores"):
        find_levers(groups, {})
    with pytest.raises(ShapeError, match="shape"):
        find_levers(groups, {group.name: np.zeros(group.size + 1) for group in groups})
