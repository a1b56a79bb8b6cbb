"""Solvers on one layer against the papers' equations and brute force in NumPy float64."""

import numpy as np
import pytest
import torch
from tests.reconstruction import oracles

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.plan import Block
from prunekit.reconstruction import (
    Choice,
    Sweep,
    least_squares,
    masked_least_squares,
    remove_sets,
    remove_weights,
    sparsegpt,
)

TOLERANCE = 1e-6


def tensors(*arrays):
    return tuple(torch.from_numpy(np.asarray(array)) for array in arrays)


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_least_squares_is_numpys_optimum(damping, seed):
    w, x = oracles.layer(seed=seed)
    keep = np.array([True, False, True, True, False, True, False, True])
    moment = x.T @ x
    found = least_squares(*tensors(w, moment, keep), damping=damping)
    ridge = np.sqrt(damping * np.diag(moment)[keep].mean())
    stacked = np.vstack([x[:, keep], ridge * np.eye(keep.sum())])
    target = np.vstack([x @ w.T, ridge * w[:, keep].T])
    expected = np.linalg.lstsq(stacked, target, rcond=None)[0].T
    np.testing.assert_allclose(found.weight, expected, atol=TOLERANCE)
    np.testing.assert_allclose(found.before, ((x[:, ~keep] @ w[:, ~keep].T) ** 2).sum())
    np.testing.assert_allclose(found.after, ((x @ w.T - x[:, keep] @ expected.T) ** 2).sum(), rtol=1e-6)
    assert found.after <= found.before


def test_a_bias_takes_up_what_is_constant():
    w, x = oracles.layer()
    keep = np.arange(8) < 4
    moment, mean = x.T @ x, x.mean(0)
    found = least_squares(
        *tensors(w, moment, keep), mean=torch.from_numpy(mean), count=float(len(x)), damping=0.0
    )
    with_ones = np.hstack([x[:, keep], np.ones((len(x), 1))])
    expected = np.linalg.lstsq(with_ones, x @ w.T, rcond=None)[0].T
    np.testing.assert_allclose(found.weight, expected[:, :-1], atol=TOLERANCE)
    np.testing.assert_allclose(found.bias, expected[:, -1], atol=TOLERANCE)
    np.testing.assert_allclose(found.after, ((x @ w.T - with_ones @ expected.T) ** 2).sum(), rtol=1e-6)


def test_removed_inputs_that_kept_ones_span_cost_nothing():
    w, x = oracles.layer()
    x[:, 4:] = x[:, :4] @ np.random.default_rng(1).normal(size=(4, 4))
    keep = np.arange(8) < 4
    found = least_squares(*tensors(w, x.T @ x, keep), damping=0.0)
    np.testing.assert_allclose(x[:, keep] @ found.weight.numpy().T, x @ w.T, atol=TOLERANCE)


def test_singular_moments_are_dampened_and_said():
    w, x = oracles.layer()
    x[:, 1] = x[:, 0]
    x[:, 2] = 0
    found = least_squares(*tensors(w, x.T @ x, np.arange(8) < 5), damping=0.0)
    assert found.damping > 0
    assert found.after <= found.before
    regular = least_squares(*tensors(*oracles.layer()[:1], np.eye(8), np.arange(8) < 5), damping=0.0)
    assert regular.damping == 0


def test_a_layer_that_reads_only_zeros_is_left_alone():
    w, _ = oracles.layer()
    found = least_squares(*tensors(w, np.zeros((8, 8)), np.arange(8) < 5))
    np.testing.assert_array_equal(found.weight, w[:, :5])
    assert found.before == found.after == 0


@pytest.mark.parametrize("solver", ["least_squares", "masked", "sparsegpt"])
def test_nan_is_refused(solver):
    w, x = oracles.layer()
    x[3, 3] = np.nan
    mask = np.ones_like(w, dtype=bool)
    call = {
        "least_squares": lambda: least_squares(*tensors(w, x.T @ x, mask[0])),
        "masked": lambda: masked_least_squares(*tensors(w, x.T @ x, mask)),
        "sparsegpt": lambda: sparsegpt(*tensors(w, x.T @ x), choice=Choice(sparsity=0.5)),
    }[solver]
    with pytest.raises(CalibrationError, match="NaN"):
        call()


def test_masked_least_squares_is_the_optimum_of_every_row():
    w, x = oracles.layer()
    keep = np.random.default_rng(2).random(w.shape) < 0.5
    keep[0] = False
    moment = x.T @ x
    found = masked_least_squares(*tensors(w, moment, keep), damping=0.0)
    expected = np.array([oracles.best_row(*row[:1], moment, row[1]) for row in zip(w, keep, strict=True)])
    np.testing.assert_allclose(found.weight, expected, atol=TOLERANCE)
    np.testing.assert_allclose(found.after, oracles.cost(w, expected, moment), rtol=1e-6)
    assert (found.weight.numpy()[~keep] == 0).all()


SWEEPS = [
    {"choice": Choice(sparsity=0.5)},
    {"choice": Choice(sparsity=0.37)},
    {"choice": Choice(pattern="2:4")},
    {"choice": Choice(pattern="4:8")},
    {"choice": Choice(pattern="1:4")},
    {"keep": True},
]


@pytest.mark.parametrize("given", SWEEPS, ids=str)
@pytest.mark.parametrize("block_size", [1, 3, 8, 128])
def test_sparsegpt_follows_the_papers_equations(given, block_size):
    w, x = oracles.layer(rows=6, inputs=16, samples=60, seed=5)
    moment = x.T @ x
    mask = np.random.default_rng(3).random(w.shape) < 0.6 if "keep" in given else None
    options = {"keep": torch.from_numpy(mask)} if mask is not None else given
    choice = given.get("choice", None)
    found = sparsegpt(
        *tensors(w, moment), sweep=Sweep(block_size=block_size, selection_size=4, damping=0.02), **options
    )
    expected, expected_mask = oracles.sparsegpt(
        w,
        moment,
        0.02,
        keep=mask,
        sparsity=None if choice is None or choice.n_of_m else choice.sparsity,
        n_m=None if choice is None or choice.n_of_m is None else (choice.n_of_m.n, choice.n_of_m.m),
    )
    np.testing.assert_array_equal(found.keep, expected_mask)
    plain = np.where(expected_mask, w, 0)
    for row in range(len(w)):
        better = oracles.cost(w[row : row + 1], expected[row : row + 1], moment) <= oracles.cost(
            w[row : row + 1], plain[row : row + 1], moment
        )
        wanted = expected[row] if better else plain[row]
        np.testing.assert_allclose(found.solution.weight[row], wanted, atol=TOLERANCE)
    assert found.solution.after <= found.solution.before


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
def test_counts_are_exact_with_ties(sparsity):
    w = torch.ones(7, 24)
    found = sparsegpt(w, torch.eye(24), choice=Choice(sparsity=sparsity), sweep=Sweep(selection_size=8))
    assert int((~found.keep).sum()) == round(sparsity * w.numel())
    assert (found.solution.weight[~found.keep] == 0).all()


def test_the_order_by_the_diagonal_is_a_permuted_natural_one():
    w, x = oracles.layer(rows=6, inputs=16, samples=60, seed=5)
    order = np.argsort(-np.diag(x.T @ x), kind="stable")
    found = sparsegpt(
        *tensors(w, x.T @ x), choice=Choice(sparsity=0.5), sweep=Sweep("diagonal", selection_size=4)
    )
    by_hand = sparsegpt(
        *tensors(w[:, order], x[:, order].T @ x[:, order]),
        choice=Choice(sparsity=0.5),
        sweep=Sweep(selection_size=4),
    )
    np.testing.assert_allclose(found.solution.weight[:, order], by_hand.solution.weight, atol=TOLERANCE)
    kept = sparsegpt(*tensors(w, x.T @ x), choice=Choice(pattern="2:4"), sweep=Sweep("diagonal")).keep
    assert (kept.reshape(6, 4, 4).sum(2) == 2).all()


def test_single_precision_gives_the_same_mask_and_nearly_the_same_weights():
    w, x = oracles.layer(rows=6, inputs=16, samples=200, seed=5)
    exact, single = (
        sparsegpt(torch.from_numpy(w), torch.from_numpy(x.T @ x).to(dtype), choice=Choice(sparsity=0.5))
        for dtype in (torch.float64, torch.float32)
    )
    assert torch.equal(exact.keep, single.keep)
    np.testing.assert_allclose(single.solution.weight, exact.solution.weight, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sets", [[[0, 1], [2, 3], [4, 5], [6, 7]], [[0], [3], [5, 6, 7]]], ids=str)
def test_sets_go_as_in_brute_force(seed, sets):
    w, x = oracles.layer(seed=seed)
    moment = x.T @ x
    found = remove_sets(*tensors(w, moment), sets, len(sets) - 1, damping=0.05)
    order, errors, weight = oracles.greedy_row(w, oracles.damped(moment, 0.05), sets, len(sets) - 1)
    assert list(found.order) == order
    np.testing.assert_allclose(found.errors, errors, rtol=1e-6)
    np.testing.assert_allclose(found.weight, weight, atol=TOLERANCE)


@pytest.mark.parametrize("block", [(1, 1), (1, 2), (3, 2), (6, 1)])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
def test_weights_and_blocks_go_as_in_brute_force(block, share):
    w, x = oracles.layer(rows=6, inputs=8, seed=7)
    moment = oracles.damped(x.T @ x, 0.01)
    sets = np.arange(8).reshape(-1, block[1]).tolist()
    groups = w.reshape(-1, block[0], 8)
    count = round(share * len(groups) * len(sets))
    found = remove_weights(*tensors(w, x.T @ x), count=count, pattern=Block(*block))
    traces = [oracles.greedy_row(group, moment, sets, len(sets))[:2] for group in groups]
    losses = [np.diff([0.0, *errors]) for _, errors in traces]
    taken = [0] * len(groups)
    for _ in range(count):
        heads = [loss[t] if t < len(loss) else np.inf for loss, t in zip(losses, taken, strict=True)]
        taken[int(np.argmin(heads))] += 1
    keep = np.ones((len(groups), len(sets)), bool)
    for row, ((order, _), number) in enumerate(zip(traces, taken, strict=True)):
        keep[row, order[:number]] = False
    keep = keep.repeat(block[0], 0).repeat(block[1], 1)
    np.testing.assert_array_equal(found.keep, keep)
    expected = np.array([oracles.best_row(row, moment, kept) for row, kept in zip(w, keep, strict=True)])
    np.testing.assert_allclose(found.solution.weight, expected, atol=TOLERANCE)


def test_n_of_m_goes_as_in_brute_force():
    w, x = oracles.layer(rows=4, inputs=8, seed=8)
    moment = oracles.damped(x.T @ x, 0.01)
    found = remove_weights(*tensors(w, x.T @ x), pattern="2:4")
    for row in range(4):

        def allowed(gone, candidate):
            return sum(g // 4 == candidate // 4 for g in gone) < 2

        order, _, weight = oracles.greedy_row(w[row : row + 1], moment, [[i] for i in range(8)], 4, allowed)
        assert set(np.flatnonzero(~found.keep[row].numpy())) == set(order)
        np.testing.assert_allclose(found.solution.weight[row], weight[0], atol=TOLERANCE)


def test_greedy_costs_no_more_than_the_sweep():
    w, x = oracles.layer(rows=6, inputs=16, samples=60, seed=5)
    greedy = remove_weights(*tensors(w, x.T @ x), count=48)
    swept = sparsegpt(*tensors(w, x.T @ x), choice=Choice(sparsity=0.5))
    assert greedy.solution.after < swept.solution.after


BAD = {
    "both": (SelectionError, lambda w, h: Choice(sparsity=0.4, pattern="2:4")),
    "neither": (SelectionError, lambda w, h: Choice()),
    "sparsity": (SelectionError, lambda w, h: Choice(sparsity=1.5)),
    "n of m": (SelectionError, lambda w, h: Choice(pattern="4:4")),
    "block": (SelectionError, lambda w, h: Choice(sparsity=0.5, pattern="1x4")),
    "order": (SelectionError, lambda w, h: Sweep("random")),
    "block_size": (SelectionError, lambda w, h: Sweep(block_size=0)),
    "count beside n:m": (SelectionError, lambda w, h: remove_weights(w, h, count=1, pattern="2:4")),
    "nothing": (SelectionError, lambda w, h: sparsegpt(w, h)),
    "damping": (SelectionError, lambda w, h: least_squares(w, h, torch.ones(8) > 0, damping=-1.0)),
    "not divisible": (ShapeError, lambda w, h: sparsegpt(w, h, choice=Choice(pattern="2:3"))),
    "moments": (ShapeError, lambda w, h: sparsegpt(w, h[:4], choice=Choice(sparsity=0.5))),
    "mask": (ShapeError, lambda w, h: least_squares(w, h, torch.ones(7) > 0)),
    "sets overlap": (ShapeError, lambda w, h: remove_sets(w, h, [[0, 1], [1]], 1)),
    "too many": (SelectionError, lambda w, h: remove_sets(w, h, [[0, 1]], 2)),
    "does not divide": (ShapeError, lambda w, h: remove_weights(w, h, count=1, pattern="2x3")),
    "count": (SelectionError, lambda w, h: remove_weights(w, h, count=99)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    error, call = BAD[case]
    w, x = oracles.layer()
    with pytest.raises(error):
        call(*tensors(w, x.T @ x))
