"""How a sparsity is shared out, against the published formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunekit.errors import GoalError, SelectionError
from prunekit.importance import find_weights, lamp, score_weights
from prunekit.plan import BySensitivity, OutlierWeighted, select_weights
from prunekit.plan.scope import apportion, layer_of


def network(layers=3, width=8):
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])


def uneven():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Linear(64, 40), nn.Linear(40, 2))


def kept(plan):
    return {name: stay / count for name, (stay, count) in plan.kept.items()}


def erdos_renyi_kernel(shapes, density):
    """The published code of Evci et al., 2020, written with NumPy."""
    dense = set()
    while True:
        divisor, rhs, raw = 0.0, 0.0, {}
        for name, shape in shapes.items():
            size = np.prod(shape)
            if name in dense:
                rhs -= size * (1 - density)
            else:
                rhs += size * density
                raw[name] = np.sum(shape) / np.prod(shape)
                divisor += raw[name] * size
        epsilon = rhs / divisor
        most = max(raw.values())
        if most * epsilon <= 1:
            return {name: 1.0 if name in dense else epsilon * raw[name] for name in shapes}
        dense |= {name for name in raw if raw[name] == most}


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.95])
def test_erk_is_the_published_code(sparsity):
    model = uneven()
    weights = find_weights(model)
    plan = select_weights(weights, score_weights(model, weights), sparsity=sparsity, scope="erk")
    wanted = erdos_renyi_kernel({weight.name: weight.shape for weight in weights}, 1 - sparsity)
    for name, (stay, count) in plan.kept.items():
        assert abs(stay - wanted[name] * count) <= 1
    assert sum(stay for stay, _ in plan.kept.values()) == weights.count - round(sparsity * weights.count)


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_owl_is_the_published_code_where_layers_have_one_size(sparsity):
    """Oracle: the published lines of Yin et al., 2024, on the scores' outliers."""
    model = network(4, 32)
    with torch.no_grad():
        for number, module in enumerate(model):
            module.weight[:, : 2 * number] *= 12
    weights = find_weights(model)
    scores = score_weights(model, weights)
    share = np.array(
        [(values > 5 * values.mean()).double().mean().item() for values in scores.values()], dtype=np.float64
    )
    assert len(set(share)) > 2
    density = (share - share.min()) * (1 / (share.max() - share.min()) * 0.08 * 2)
    density = density - np.mean(density) + (1 - sparsity)
    plan = select_weights(weights, scores, sparsity=sparsity, scope=OutlierWeighted(factor=5, spread=0.08))
    np.testing.assert_allclose(list(kept(plan).values()), density, atol=1 / 32**2)
    assert plan.kept == select_weights(weights, scores, sparsity=sparsity, scope="owl").kept


def test_owl_gives_all_of_a_block_one_share_and_the_total_is_right():
    names = {"model.layers.3.mlp.up.weight": "model.layers.3", "0.weight": "0", "head.weight": "head"}
    weight = find_weights(nn.Linear(2, 2)).tensors[0]
    for name, layer in names.items():
        assert layer_of(type(weight)(name, (name,), (2, 2), None)) == layer
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 40), nn.Linear(40, 4)), nn.Linear(4, 100))
    with torch.no_grad():
        model[1].weight[0] *= 50
    weights = find_weights(model)
    scores = score_weights(model, weights)
    plan = select_weights(weights, scores, sparsity=0.6, scope="owl")
    share = kept(plan)
    assert share["0.0.weight"] == pytest.approx(share["0.1.weight"], abs=1 / 160)
    assert share["1.weight"] - share["0.0.weight"] == pytest.approx(0.16, abs=1 / 160)
    assert sum(stay for stay, _ in plan.kept.values()) == weights.count - round(0.6 * weights.count)


def test_lamp_as_scope_with_magnitudes_is_lamp_as_score_over_all():
    """Oracle: Lee et al., 2021: rank the LAMP scores of the whole model."""
    model = uneven()
    weights = find_weights(model)
    scores = score_weights(model, weights)
    by_scope = select_weights(weights, scores, sparsity=0.8, scope="lamp")
    by_score = select_weights(weights, score_weights(model, weights, "lamp"), sparsity=0.8, scope="global")
    assert by_scope.masks == by_score.masks
    everything = torch.cat([lamp(values).flatten() for values in scores.values()])
    least = everything.sort(descending=True).values[round(0.2 * weights.count) - 1]
    for name, mask in by_score.masks.items():
        assert torch.equal(torch.from_numpy(mask.keep()), lamp(scores[name]) >= least)


def test_modules_and_rows_compete_by_themselves():
    module = nn.LSTM(4, 8)
    weights = find_weights(nn.ModuleList([module, nn.Linear(4, 4)]))
    scores = {weight.name: torch.rand(weight.shape) for weight in weights}
    scores["0.weight_hh_l0"] += 2
    by_module = select_weights(weights, scores, sparsity=0.25, scope="module").kept
    assert by_module["0.weight_hh_l0"] == (256, 256)
    assert by_module["0.weight_ih_l0"] == (32, 128)
    assert by_module["1.weight"] == (12, 16)
    by_row = select_weights(weights, scores, sparsity=0.25, scope="row")
    for mask in by_row.masks.values():
        assert (mask.keep().sum(axis=1) == mask.shape[1] * 3 // 4).all()


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1000)), min_size=1, max_size=20))
def test_whole_numbers_add_up_and_are_next_to_what_was_wanted(cases):
    wanted = {str(number): share * most for number, (share, most) in enumerate(cases)}
    most = {str(number): count for number, (_, count) in enumerate(cases)}
    total = round(math.fsum(wanted.values()))
    counts = apportion(wanted, most, total)
    assert sum(counts.values()) == total
    for name, count in counts.items():
        assert 0 <= count <= most[name]
        assert abs(count - wanted[name]) < 1 + 1e-6


CONVEX = {0.25: 0.1, 0.5: 0.3, 0.75: 0.9, 1.0: 3.0}
STEEP = {0.25: 1.0, 0.5: 3.0, 0.75: 8.0, 1.0: 20.0}
CLIFF = {0.25: 0.9, 0.5: 1.0, 0.75: 1.05, 1.0: 9.0}


def expected_loss(curves, plan):
    return sum(
        np.interp(1 - stay / count, [0, *curves[name]], [0, *curves[name].values()])
        for name, (stay, count) in plan.kept.items()
    )


def by_brute_force(curves, counts, sparsity):
    """The least loss over all shares in steps of a 32nd that remove enough."""
    grid = np.arange(33) / 32
    least = math.inf
    for shares in itertools.product(grid, repeat=len(curves)):
        removed = sum(share * count for share, count in zip(shares, counts, strict=True))
        if abs(removed - sparsity * sum(counts)) < 1e-9:
            loss = sum(
                np.interp(share, [0, *curve], [0, *curve.values()])
                for share, curve in zip(shares, curves.values(), strict=True)
            )
            least = min(least, loss)
    return least


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
@pytest.mark.parametrize(
    "shapes", [(CONVEX, STEEP, CONVEX), (CONVEX, CLIFF, STEEP), (CLIFF, CLIFF, CLIFF)], ids=str
)
def test_shares_by_sensitivity_are_the_cheapest(shapes, sparsity):
    """Oracle: brute force; greedy equals it where curves are convex, and is never better."""
    weights = find_weights(network())
    curves = {weight.name: curve for weight, curve in zip(weights, shapes, strict=True)}
    scores = {weight.name: torch.rand(weight.shape) for weight in weights}
    exact = select_weights(weights, scores, sparsity=sparsity, scope=BySensitivity(curves))
    greedy = select_weights(weights, scores, sparsity=sparsity, scope=BySensitivity(curves, "greedy"))
    least = by_brute_force(curves, [64, 64, 64], sparsity)
    for plan in (exact, greedy):
        assert sum(stay for stay, _ in plan.kept.values()) == 192 - round(sparsity * 192)
    assert expected_loss(curves, exact) == pytest.approx(least, rel=1e-6)
    assert expected_loss(curves, greedy) >= least - 1e-9
    if CLIFF not in shapes:
        assert expected_loss(curves, greedy) == pytest.approx(least, rel=1e-6)


def test_what_a_scope_cannot_do_is_refused():
    weights = find_weights(network())
    scores = {weight.name: torch.rand(weight.shape) for weight in weights}
    short = {weight.name: {0.5: 1.0} for weight in weights}
    with pytest.raises(GoalError, match=r"at most 0\.5000"):
        select_weights(weights, scores, sparsity=0.6, scope=BySensitivity(short))
    with pytest.raises(SelectionError, match=r"no curve for 2\.weight"):
        select_weights(
            weights, scores, sparsity=0.1, scope=BySensitivity({"0.weight": {0.5: 1.0}, "1.weight": {1: 2}})
        )
    for curves in ({"a": {}}, {"a": {0.5: math.nan}}, {"a": {1.5: 1.0}}, {"a": {0.0: 0.0}}):
        with pytest.raises(SelectionError):
            BySensitivity(curves)
    with pytest.raises(SelectionError, match="no scope 'all'"):
        select_weights(weights, scores, sparsity=0.5, scope="all")
    for wrong in (None, -0.1, 1.1, math.nan, True, "half"):
        with pytest.raises(SelectionError, match="sparsity"):
            select_weights(weights, scores, sparsity=wrong)
