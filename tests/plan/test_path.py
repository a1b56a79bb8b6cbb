import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import SelectionError
from prunekit.plan import Limits
from prunekit.plan.limits import allowed_counts
from prunekit.plan.path import global_path, uniform_levels, uniform_path
from prunekit.plan.select import keep_order
from prunekit.types import Granularity, Group


def group_of(size, blocks=1, name="g"):
    return Group(name, Granularity.CHANNEL, size, blocks, ())


def counts_of(groups):
    return [allowed_counts(group, Limits()) for group in groups]


def orders_of(groups, scores):
    return [keep_order(score, group.blocks) for score, group in zip(scores, groups, strict=True)]


@given(
    per_block=st.integers(1, 40),
    blocks=st.integers(1, 6),
    min_units=st.integers(1, 50),
    max_percent=st.integers(0, 100),
    round_to=st.integers(1, 12),
)
def test_allowed_counts_are_all_that_the_limits_allow(per_block, blocks, min_units, max_percent, round_to):
    """Oracle: every count tried, in exact fractions."""
    size = per_block * blocks
    expected = [
        kept
        for kept in range(per_block, 0, -1)
        if kept == per_block
        or (
            kept * blocks >= min_units
            and Fraction(per_block - kept, per_block) <= Fraction(max_percent, 100)
            and kept * blocks % round_to == 0
        )
    ]
    limits = Limits(min_units, max_percent / 100, round_to)
    assert allowed_counts(group_of(size, blocks), limits).tolist() == expected


@given(size=st.integers(1, 200), percent=st.integers(0, 99), round_to=st.sampled_from([1, 2, 8]))
def test_uniform_levels_round_to_the_nearest_count_and_a_half_stays(size, percent, round_to):
    """Oracle: the nearest allowed count in exact fractions, the larger of two."""
    counts = allowed_counts(group_of(size), Limits(round_to=round_to))
    wish = size * (1 - Fraction(percent, 100))
    nearest = min(counts.tolist(), key=lambda count: (abs(count - wish), -count))
    assert counts[uniform_levels(counts, percent / 100)] == nearest


def test_half_of_seven_removes_three():
    counts = allowed_counts(group_of(7), Limits())
    assert counts[uniform_levels(counts, 0.5)] == 4


def test_the_uniform_path_passes_through_every_uniform_share():
    groups = [group_of(7, name="a"), group_of(64, name="b"), group_of(24, 4, name="c")]
    path = uniform_path(groups, counts_of(groups))
    points = {tuple(path.levels(steps)) for steps in range(len(path.order) + 1)}
    for share in np.linspace(0, 0.999, 211):
        assert tuple(uniform_levels(counts, float(share)) for counts in path.counts) in points


@given(seed=st.integers(0, 99), ties=st.sampled_from([2, 5, 1000]))
def test_the_global_path_takes_the_lowest_scores_of_all_groups(seed, ties):
    """Oracle: one sort of all units; the multiset of scores removed is that of the lowest n."""
    draw = np.random.default_rng(seed)
    groups = [group_of(7, name="a"), group_of(12, name="b"), group_of(3, name="c")]
    scores = [draw.integers(0, ties, g.size).astype(np.float32) for g in groups]
    orders = [keep_order(s, 1) for s in scores]
    path = global_path(groups, counts_of(groups), orders, scores)
    lowest = sorted(np.concatenate(scores).tolist())
    # the last unit of a group cannot go, so only prefixes that leave every group one unit are compared
    for steps in range(len(path.order) + 1):
        levels = path.levels(steps)
        if (levels == path.last_levels).any():
            break
        gone = [
            s[o[0, o.shape[1] - level :]].tolist() for s, o, level in zip(scores, orders, levels, strict=True)
        ]
        assert sorted(itertools.chain(*gone)) == lowest[:steps]


def test_equal_scores_empty_no_group_before_the_others():
    groups = [group_of(10, name="a"), group_of(100, name="b")]
    scores = [np.ones(g.size, dtype=np.float32) for g in groups]
    path = global_path(groups, counts_of(groups), [keep_order(s, 1) for s in scores], scores)
    levels = path.levels(55)
    assert levels.tolist() == [5, 50]


def test_a_step_of_several_units_counts_by_their_mean():
    """Blocks: unit pairs (1, 5) and (2, 2) have the means 3 and 2 against 2.5 in the other group."""
    groups = [group_of(4, 2, name="a"), group_of(2, name="b")]
    scores = [np.float32([1, 9, 5, 9]), np.float32([2.5, 9])]
    path = global_path(groups, counts_of(groups), orders_of(groups, scores), scores)
    assert path.order.tolist() == [1, 0]
    scores[0] = np.float32([2, 9, 2, 9])
    path = global_path(groups, counts_of(groups), orders_of(groups, scores), scores)
    assert path.order.tolist() == [0, 1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_units": 0},
        {"min_units": 1.5},
        {"round_to": 0},
        {"max_sparsity": 1.1},
        {"max_sparsity": math.nan},
        {"max_sparsity": "half"},
        {"round_to": "8"},
    ],
)
def test_limits_outside_their_range_are_refused(arguments):
    with pytest.raises(SelectionError, match=f"{next(iter(arguments))}: The limit is"):
        Limits(**arguments)
