"""What levels lose: laws over levers of many shapes, closed forms of small ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import nnls
from tests.zoo.toys import everything_in

from prunekit.errors import SelectionError, ShapeError
from prunekit.plan.levers import find_levers
from prunekit.plan.losses import level_losses, loss_curves, removed_shares, structure_of
from prunekit.types import Granularity, Group, Slice

NAMES = (
    "basic blocks",
    "grouped convolution",
    "depthwise with multiplier",
    "pooling",
    "channel shuffle",
    "convnext",
    "grouped-query attention",
    "fused attention",
)
"""Toys with levers of every kind, in blocks and not."""
NORMALIZATIONS = ("share", "isomorphic", "none")


def width(name: str, size: int, *, blocks: int = 1, kind: str = "neuron") -> Group:
    units = np.arange(size)
    slices = (
        Slice(f"{name}.weight", 0, units, "producer"),
        Slice(f"{name}.next.weight", 1, units, "consumer"),
    )
    return Group(f"{name}:{kind}", Granularity(kind), size, blocks, slices)


def layers(name: str, size: int) -> Group:
    slices = tuple(Slice(f"{name}.{unit}.weight", 0, np.full(4, unit), "producer") for unit in range(size))
    return Group(f"{name}:layer", Granularity.LAYER, size, 1, slices, least=0)


def drawn(groups, seed: int = 0, low: float = 0.0):
    draw = np.random.default_rng(seed)
    return {group.name: draw.uniform(low, 1, group.size).astype(np.float32) for group in groups}


def toy(name: str, seed: int = 0, low: float = 0.0):
    groups = tuple(everything_in(name))
    scores = drawn(groups, seed, low)
    return find_levers(groups, scores), scores


def measured_of(levers, seed: int, every: int = 1):
    """Noisy increases, some of them negative, of every n-th lever at two or three of its levels."""
    draw = np.random.default_rng(seed)
    found = {}
    for lever in levers.all[::every]:
        chosen = sorted({1, len(lever) // 2, len(lever) - 1} - {0})
        found[lever.name] = {float(removed_shares(lever)[at]): float(draw.normal(0.3, 0.5)) for at in chosen}
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_losses_are_0_at_the_whole_and_never_fall(name, low):
    levers, scores = toy(name, low=low)
    tables = [level_losses(levers, scores, normalization=way) for way in NORMALIZATIONS]
    tables += [level_losses(levers, scores, measured_of(levers, seed, 1 + seed)) for seed in range(3)]
    for table in tables:
        assert [len(losses) for losses in table] == [len(lever) for lever in levers]
        for losses in table:
            assert losses.dtype == np.float64
            assert losses[0] == 0
            assert np.isfinite(losses).all()
            assert (np.diff(losses) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_measured_increases_that_rise_are_met(name):
    levers, scores = toy(name, seed=1)
    points = {
        lever.name: {float(share): 0.3 * share**2 for share in removed_shares(lever)[1:][::2]}
        for lever in levers
    }
    for lever, curve in zip(levers, loss_curves(levers, scores, points), strict=True):
        assert curve.lever == lever.name
        assert curve.source == "measured"
        np.testing.assert_allclose(curve.losses[1::2], list(points[lever.name].values()), rtol=1e-12)


def test_from_scores_alone_a_level_loses_the_share_of_the_sum_that_goes():
    """Oracle: the sums by hand, of one block, of two, and of layers."""
    groups = (width("a", 4), width("b", 4, blocks=2), layers("c", 2))
    scores = {
        "a:neuron": np.array([4, 1, 3, 2], dtype=np.float32),
        "b:neuron": np.array([1, 3, 6, 2], dtype=np.float32),
        "c:layer": np.array([1, 3], dtype=np.float32),
    }
    levers = find_levers(groups, scores)
    a, b, *depth = level_losses(levers, scores)
    np.testing.assert_allclose(a, np.array([0, 1, 3, 6]) / 10)
    np.testing.assert_allclose(b, np.array([0, 1 + 2]) / 12)
    for lever, losses in zip(levers.all[2:], depth, strict=True):
        np.testing.assert_allclose(losses, [0, scores["c:layer"][lever.unit] / 2])
    raw = level_losses(levers, scores, normalization="none")
    np.testing.assert_allclose(raw[0], [0, 1, 3, 6])
    np.testing.assert_allclose(raw[1], [0, 3])


def test_a_share_does_not_depend_on_the_scale_or_the_size_of_a_group():
    groups = (width("a", 8), width("b", 16))
    ramp = np.arange(1, 9, dtype=np.float32)
    scores = {"a:neuron": ramp, "b:neuron": 100 * np.repeat(ramp, 2)}
    levers = find_levers(groups, scores, widths={"a:neuron": [4, 2], "b:neuron": [8, 4]})
    a, b = level_losses(levers, scores)
    np.testing.assert_allclose(a, b)


def test_groups_of_one_structure_compete_by_their_scores_and_structures_as_equals():
    """Oracle: sums by hand. a and b are alike, c is of another kind."""
    groups = (width("a", 2), width("b", 4), width("c", 2, kind="channel"))
    scores = {
        "a:neuron": np.array([1, 1], dtype=np.float32),
        "b:neuron": np.array([1, 1, 2, 2], dtype=np.float32),
        "c:channel": np.array([100, 300], dtype=np.float32),
    }
    assert structure_of(groups[0]) == structure_of(groups[1]) != structure_of(groups[2])
    assert structure_of(layers("x", 2)) == structure_of(layers("y", 5))
    levers = find_levers(groups, scores)
    a, b, c = level_losses(levers, scores, normalization="isomorphic")
    np.testing.assert_allclose(a, np.array([0, 1]) / 4)  # The mean of the sums 2 and 6.
    np.testing.assert_allclose(b, np.array([0, 1, 2, 4]) / 4)
    np.testing.assert_allclose(c, np.array([0, 100]) / 400)


def test_scores_below_0_cost_nothing_and_groups_without_any_nothing_at_all():
    groups = (width("a", 4), width("b", 4))
    scores = {
        "a:neuron": np.array([-5, -1, 1, 3], dtype=np.float32),
        "b:neuron": np.zeros(4, dtype=np.float32),
    }
    a, b = level_losses(find_levers(groups, scores), scores)
    np.testing.assert_allclose(a, [0, 0, 0, 0.25])
    np.testing.assert_allclose(b, np.zeros(4))


def flat(size: int = 8, **widths: int):
    """Levers over units that all score the same: the amount that goes is the share of the units."""
    groups = tuple(width(name, size) for name in (widths or {"a": 0}))
    scores = {group.name: np.ones(size, dtype=np.float32) for group in groups}
    return find_levers(groups, scores), scores


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.5])
def test_beyond_and_between_two_points_a_power_of_the_amount_goes_on(power):
    """Oracle: a loss that is a power of the share, measured at two points."""
    levers, scores = flat()
    share = removed_shares(levers[0])
    (curve,) = loss_curves(levers, scores, {"a:neuron": {s: 2 * s**power for s in (share[2], share[5])}})
    assert curve.power == pytest.approx(power)
    np.testing.assert_allclose(curve.amounts, share)
    np.testing.assert_allclose(curve.losses[2:], 2 * share[2:] ** power)
    before = curve.losses[2] * (share[1] / share[2]) ** max(power, 1)
    assert curve.losses[1] == pytest.approx(before)


def test_one_point_sets_the_scale_of_the_scores_curve():
    groups = (width("a", 8),)
    scores = drawn(groups)
    levers = find_levers(groups, scores)
    (shape,) = level_losses(levers, scores)
    (curve,) = loss_curves(levers, scores, {"a:neuron": {float(removed_shares(levers[0])[4]): 0.7}})
    assert curve.power == 1
    np.testing.assert_allclose(curve.losses, 0.7 * shape / shape[4], rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    ("increases", "expected"),
    [
        ((0.1, -0.2, 0.5), (0, 0, 0.5)),  # What falls is pooled, and the pool of -0.05 counts as 0.
        ((0.3, -0.1, 0.5), (0.1, 0.1, 0.5)),
        ((-0.2, 0.1, 0.4), (0, 0.1, 0.4)),
        ((-1.0, -2.0, -3.0), (0, 0, 0)),
        ((0.0, 0.0, 0.4), (0, 0, 0.4)),
        ((0.6, 0.4, 0.2), (0.4, 0.4, 0.4)),
    ],
)
def test_measured_decreases_are_pooled(increases, expected):
    """Oracle: isotonic regression by hand."""
    levers, scores = flat()
    shares = removed_shares(levers[0])[[2, 4, 6]]
    points = dict(zip(shares.tolist(), increases, strict=True))
    (losses,) = level_losses(levers, scores, {"a:neuron": points})
    np.testing.assert_allclose(losses[[2, 4, 6]], expected, atol=1e-15)
    assert (np.diff(losses) >= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_of_all_rising_losses_from_0_up_the_nearest_to_what_was_measured_is_taken(seed):
    """Oracle: non-negative least squares over the rises (Lawson and Hanson, in SciPy)."""
    levers, scores = flat()
    shares = removed_shares(levers[0])[1:]
    increases = np.random.default_rng(seed).normal(0.1, 0.4, len(shares))
    rises, _ = nnls(np.tril(np.ones((len(shares), len(shares)))), increases)
    points = dict(zip(shares.tolist(), increases.tolist(), strict=True))
    (losses,) = level_losses(levers, scores, {"a:neuron": points})
    np.testing.assert_allclose(losses[1:], np.cumsum(rises), atol=1e-12)


def test_units_that_score_0_cost_what_was_measured():
    groups = (width("a", 8),)
    scores = {"a:neuron": np.array([0] * 6 + [1] * 2, dtype=np.float32)}
    levers = find_levers(groups, scores)
    share = removed_shares(levers[0])
    points = {float(share[2]): 0.1, float(share[5]): 0.4}
    (losses,) = level_losses(levers, scores, {"a:neuron": points})
    np.testing.assert_allclose(losses[[2, 5]], [0.1, 0.4])
    assert losses[2] < losses[3] < losses[4] < losses[5]


def test_what_was_not_measured_borrows_the_median_of_its_kind_and_says_so():
    groups = (*(width(name, 8) for name in "abcd"), layers("e", 2))
    scores = {group.name: np.ones(group.size, dtype=np.float32) for group in groups}
    levers = find_levers(groups, scores)
    points = {f"{name}:neuron": {0.5: scale} for name, scale in zip("abc", (1.0, 2.0, 30.0), strict=True)}
    curves = {curve.lever: curve for curve in loss_curves(levers, scores, points)}
    np.testing.assert_allclose(curves["d:neuron"].losses, curves["b:neuron"].losses)
    assert curves["d:neuron"].source == "borrowed from 3 measured of the kind neuron"
    assert curves["b:neuron"].source == "measured"
    assert curves[levers[4].name].source == "borrowed from 3 measured of other kinds"
    assert curves[levers[4].name].losses[1] == pytest.approx(4.0)
    with_layer = points | {levers[4].name: {1.0: 0.3}}
    other = loss_curves(levers, scores, with_layer)[4]
    assert (other.losses[1], other.source) == (0.3, "measured")
    assert {curve.source for curve in loss_curves(levers, scores)} == {"scores"}


def test_what_measured_as_no_loss_counts_a_hundredth_of_its_kind_by_its_scores():
    groups = (*(width(name, 8) for name in "abc"), layers("d", 2))
    scores = {group.name: np.ones(group.size, dtype=np.float32) for group in groups}
    scores["d:layer"] = np.array([1.0, 3.0], dtype=np.float32)
    levers = find_levers(groups, scores)
    free, first, second = "c:neuron", *(lever.name for lever in list(levers)[3:])
    points = {name: {0.5: 1.0, 1.0: 2.0} for name in ("a:neuron", "b:neuron")}
    points |= {free: {0.5: -1.0, 1.0: 0.0}, first: {1.0: -0.1}, second: {1.0: 0.0}}
    found = {curve.lever: curve.losses for curve in loss_curves(levers, scores, points)}
    np.testing.assert_allclose(found[free], 0.01 * found["a:neuron"])
    # No layer measured a loss, so that widths tell: 1 at a half, linear; layers of 0.5 and 1.5 averages.
    np.testing.assert_allclose([found[first][-1], found[second][-1]], [0.01, 0.03], rtol=0.01)


def test_levers_that_borrow_count_no_less_than_levers_that_measured_no_loss():
    groups = tuple(width(name, 8) for name in "abcd")
    scores = {group.name: np.ones(group.size, dtype=np.float32) for group in groups}
    levers = find_levers(groups, scores)
    points = {"a:neuron": {0.5: 1.0}, "b:neuron": {0.5: 0.0}, "c:neuron": {0.5: 1e-9}}
    costly, free, cheap, borrowed = loss_curves(levers, scores, points)
    for curve in (free, cheap, borrowed):
        np.testing.assert_allclose(curve.losses, 0.005 * costly.losses, rtol=1e-6)


def test_where_nothing_measured_a_loss_nothing_costs_any():
    levers, scores = flat()
    (losses,) = level_losses(levers, scores, {"a:neuron": {0.5: 0.0, 1.0: -1.0}})
    np.testing.assert_array_equal(losses, 0)


@pytest.mark.parametrize(
    ("sensitivities", "says"),
    [
        ({"b:neuron": {0.5: 1.0}}, "Sensitivities are given of b:neuron"),
        ({"a:neuron": {0.0: 1.0}}, "shares above 0, up to 1"),
        ({"a:neuron": {1.5: 1.0}}, "shares above 0, up to 1"),
        ({"a:neuron": {math.nan: 1.0}}, "shares above 0, up to 1"),
        ({"a:neuron": {0.5: math.inf}}, "finite increases"),
        ({"a:neuron": {}}, "no measured points"),
        ({}, "no measured points"),
    ],
)
def test_sensitivities_that_are_none_are_refused(sensitivities, says):
    levers, scores = flat()
    with pytest.raises(SelectionError, match=says):
        level_losses(levers, scores, sensitivities)


def test_scores_and_normalizations_that_do_not_fit_are_refused():
    levers, scores = flat()
    with pytest.raises(SelectionError, match="normalization"):
        level_losses(levers, scores, normalization="most")  # pyright: ignore
    with pytest.raises(SelectionError, match="measured losses compare"):
        level_losses(levers, scores, {"a:neuron": {0.5: 1.0}}, normalization="none")
    for wrong in ({}, {"a:neuron": np.ones(3)}, {"a:neuron": np.full(8, np.nan)}):
        with pytest.raises(ShapeError, match="a finite one for each of the 8 units"):
            level_losses(levers, wrong)
    group = replace(width("a", 8), size=8)
    assert level_losses(find_levers([], {}), {}, {}) == ()
    assert structure_of(group) == structure_of(width("z", 32))
