"""Constant positions follow the units they name; the expected ones are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.zoo.constants import ORDER, Ordered
from tests.zoo.toys import BY_NAME, groups_of
from torch import nn

from prunekit.errors import PlanError
from prunekit.graph import find_groups, trace
from prunekit.graph.constants import renumbered
from prunekit.plan import Goal, PruningPlan, allocate
from prunekit.surgery import remove

KEPT = [0, 1, 3, 5, 7]
LEFT = [2, 1, 0, 4, 3]
"""What is left of ORDER = 3 1 0 2 7 6 5 4, which is 3 1 0 7 5, counted among KEPT."""


def plan_for(groups, name: str = "first:neuron") -> PruningPlan:
    scores = {
        group.name: np.isin(np.arange(group.size), KEPT).astype(np.float32)
        for group in groups.select(only=name)
    }
    return allocate(groups.select(only=name), scores, Goal("sparsity", remove=3 / 8))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("order in a buffer", "order"),
        ("order in a plain tensor", "places"),
        ("order by index_select", "order"),
        ("order by gather", "order"),
    ],
)
def test_the_users_tensor_is_counted_anew(name, tensor):
    groups = groups_of(name)
    model = BY_NAME[name].model()
    removal = remove(model, plan_for(groups), groups.select(only="first:neuron"))
    assert removal.form == "own class"
    assert getattr(removal.model, tensor).tolist() == LEFT
    assert getattr(removal.model, tensor).dtype == torch.int64
    assert getattr(model, tensor).tolist() == ORDER
    untouched = {"order", "places"} - {tensor}
    assert [getattr(removal.model, other).tolist() for other in untouched] == [ORDER]


@pytest.mark.parametrize("name", ["order written out", "order counted"])
def test_positions_without_a_buffer_are_held_by_the_graph(name):
    groups = groups_of(name)
    removal = remove(BY_NAME[name].model(), plan_for(groups), groups.select(only="first:neuron"))
    assert removal.form == "graph module"
    held = [value.tolist() for value in removal.model.buffers() if value.shape == (5,)]
    counted = [np.arange(8).reshape(2, 4).T.ravel(), np.array(ORDER)][name == "order written out"]
    assert held == [[KEPT.index(place) for place in counted if place in KEPT]]
    assert set(removal.model.state_dict()) == set(BY_NAME[name].model().state_dict())


def test_a_model_with_other_positions_is_refused():
    groups = groups_of("order in a buffer")
    model = BY_NAME["order in a buffer"].model()
    model.order.copy_(torch.arange(8))  # pyright: ignore
    with pytest.raises(PlanError, match="other positions") as error:
        remove(model, plan_for(groups), groups.select(only="first:neuron"))
    assert "order" in str(error.value)
    assert model.order.tolist() == list(range(8))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_looked_up_is_what_was_looked_up(seed):
    """``(x[kept])[renumbered] == (x[positions])[those kept]``, for positions with repeats."""
    draw = np.random.default_rng(seed)
    kept = draw.random(20) < 0.6
    positions = draw.integers(0, 20, 33)
    x = draw.random(20)
    assert np.array_equal(x[kept][renumbered(positions, kept)], x[positions][kept[positions]])


def looking_up(use, **given):
    return find_groups(trace(Ordered(use, **given), torch.randn(2, 6)))


def test_take_along_dim_is_followed():
    groups = looking_up(lambda model, x: x.take_along_dim(model.order[None], 1))
    assert groups["first:neuron"].size == 8


@pytest.mark.parametrize(
    ("what", "use"),
    [
        ("a mask", lambda model, x: x[:, model.order > 3].sum(-1, keepdim=True) + x),
        ("values of the input", lambda model, x: x[:, (x[0, :8] * 0).long()]),
        ("random positions", lambda model, x: x[:, torch.randperm(8)]),
        ("positions out of two dimensions", lambda model, x: x[torch.arange(2)[:, None], model.order]),
        ("rounded real numbers", lambda model, x: x[:, (model.share * 8).long()]),
    ],
)
def test_other_positions_freeze(what, use):
    model = Ordered(use)
    model.register_buffer("share", torch.rand(8))
    groups = find_groups(trace(model, torch.randn(2, 6)))
    assert "first:neuron" not in groups, what


def test_positions_without_values_freeze():
    with torch.device("meta"):
        model = Ordered(lambda model, x: x[:, model.order])
        groups = find_groups(trace(model, torch.randn(2, 6)))
    assert isinstance(model, nn.Module)
    assert "first:neuron" not in groups
