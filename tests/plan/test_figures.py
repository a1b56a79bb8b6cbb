"""Figures as sums over levers are exactly what the groups say a model costs, at any levels.

Oracle: ``Groups.cost`` of the masks, which is itself held against really removed models.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.zoo.toys import depth_of, everything_in, groups_of

from prunekit.graph import Groups
from prunekit.graph.operations import Operations
from prunekit.plan.figures import Figure, figure_of, loss_figure, operation_terms, parameter_figure, valued
from prunekit.plan.levers import Levers, find_levers

WIDTHS = (
    "basic blocks",
    "inverted residual",
    "grouped convolution",
    "depthwise with multiplier",
    "squeeze-and-excite, linear",
    "one dimension",
    "three dimensions",
    "dense block",
    "channel shuffle",
    "group norm",
    "convnext",
    "tied weights",
    "parameter used twice",
    "unused tensors",
    "attention",
    "grouped-query attention",
    "fused attention",
    "multi-query attention",
    "window attention",
    "bilinear",
    "lstm",
    "state space",
    "experts, gathered",
    "experts in a loop",
    "added in place",
    "lower precision",
)
DEPTH = (
    "basic blocks",
    "pre-activation",
    "inverted residual",
    "convnext",
    "rms norm",
    "attention",
    "grouped-query attention",
    "fused attention",
    "window attention",
    "tied weights",
    "state space",
    "c2f",
)
STEPS = 4


def levers_of(groups: Groups, seed: int = 3) -> Levers:
    draw = np.random.default_rng(seed)
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in groups}
    return find_levers(groups.prunable, scores, most_levels=STEPS)


def with_depth(name: str) -> Groups:
    """Units of all kinds; branches that overlap with layers are left to the layers."""
    found = everything_in(name)
    return found.select(granularity=sorted({group.granularity.value for group in found}))


def random_levels(levers: Levers, count: int, seed: int = 1):
    draw = np.random.default_rng(seed)
    yield np.zeros(len(levers), dtype=np.int64)
    yield levers.last
    for _ in range(count):
        yield draw.integers(0, [len(lever) for lever in levers])


def assert_figures_are_costs(groups: Groups, everything: Groups) -> None:
    levers = levers_of(groups)
    terms = operation_terms(Operations(everything), levers, everything)
    macs = valued(terms, lambda operation: operation.macs)
    params = parameter_figure(levers, everything)
    in_bytes = parameter_figure(levers, everything, in_bytes=True)
    for levels in random_levels(levers, 8):
        cost = everything.cost(levers.masks(levels))
        assert macs.at(levels) // everything.graph.batch_size == cost.macs
        assert params.at(levels) == cost.params
        assert in_bytes.at(levels) == cost.param_bytes
        for figure in (macs, params, in_bytes):
            assert figure.least() <= figure.at(levels)


@pytest.mark.parametrize("name", WIDTHS)
def test_figures_of_widths_are_costs(name):
    assert_figures_are_costs(groups_of(name), groups_of(name))


@pytest.mark.parametrize("name", DEPTH)
def test_figures_of_widths_and_depth_are_costs(name):
    assert len(depth_of(name))
    assert_figures_are_costs(with_depth(name), everything_in(name))


@pytest.mark.parametrize("name", ["fused attention", "basic blocks"])
def test_terms_list_what_is_computed(name):
    groups = with_depth(name)
    levers, operations = levers_of(groups), Operations(everything_in(name))
    terms = operation_terms(operations, levers, everything_in(name))
    for levels in random_levels(levers, 5):
        listed = [term.operations[tuple(levels[place] for place in term.scope)] for term in terms]
        left = [operation for operation in listed if operation is not None]
        assert left == list(operations.at(levers.masks(levels)))


@pytest.mark.parametrize("seed", range(4))
def test_figures_add_up(seed):
    """Oracle: the tables read one by one."""
    draw = np.random.default_rng(seed)
    sizes = [2, 3, 4]
    scopes = [(0,), (1,), (0, 1), (1, 2), (0, 1), (0, 1, 2), ()]
    tables = [(scope, draw.random(tuple(sizes[place] for place in scope))) for scope in scopes]
    figure = figure_of(tables, constant=2.0)
    assert () not in figure.terms
    for levels in np.ndindex(*sizes):
        expected = 2.0 + sum(table[tuple(levels[place] for place in scope)] for scope, table in tables)
        assert figure.at(levels) == pytest.approx(expected)
        assert figure.scaled(3.0).at(levels) == pytest.approx(3 * expected)
        assert figure.least() <= figure.at(levels)


def test_losses_add_up():
    figure = loss_figure([np.array([0.0, 1.0]), np.array([0.0, 2.0, 5.0])])
    assert [figure.at(levels) for levels in ((0, 0), (1, 1), (0, 2))] == [0.0, 3.0, 5.0]
    assert loss_figure([]).at([]) == Figure(0.0, {}).at([]) == 0.0
