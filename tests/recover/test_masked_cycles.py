"""Score, mask, recover, again and again: nested masks, counts by the curve, and rewinding in between."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.errors import PlanError, SelectionError, UsageError

X = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))


def recover(model, cycle, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X) - cycle).square().mean().backward()
        optimizer.step()


def zeros(model):
    return torch.cat([(model[place].weight == 0).flatten() for place in (0, 2)])


@pytest.mark.parametrize(
    ("curve", "wanted"),
    [
        (None, [0.5, 0.75, 0.875]),
        ("linear", [0.2917, 0.5833, 0.875]),
        ([[0.5, 0.4], [1, 1]], [0, 0.35, 0.875]),
    ],
    ids=["geometric", "linear", "steps"],
)
def test_the_sparsity_of_each_cycle_is_that_of_the_curve_and_masks_are_nested(curve, wanted):
    """Oracle: 0.875 in three cycles that each halve what is left, and the shares of the curves."""
    model, seen = net(), []
    parameters = {id(parameter) for parameter in model.parameters()}

    def watched(model, cycle):
        seen.append(zeros(model))
        recover(model, cycle)
        assert torch.equal(zeros(model), seen[-1])

    plan = pk.mask_in_cycles(model, watched, sparsity=0.875, cycles=3, curve=curve, scope="global")
    assert [float(gone.float().mean()) for gone in seen] == pytest.approx(wanted, abs=0.002)
    assert all(bool((later | ~earlier).all()) for earlier, later in pairwise(seen))
    assert plan.sparsity == pytest.approx(0.875, abs=0.002)
    assert {id(parameter) for parameter in model.parameters()} == parameters


def test_each_cycle_scores_the_weights_as_they_are():
    """Oracle: the same steps written out."""
    ours, by_hand = net(), net()
    pk.mask_in_cycles(ours, recover, sparsity=0.75, cycles=2)
    for cycle, sparsity in ((1, 0.5), (2, 0.75)):
        by_hand = pk.mask_weights(by_hand, sparsity=sparsity).model
        recover(by_hand, cycle)
    assert torch.equal(ours(X), by_hand(X))


def test_with_a_point_every_recovery_begins_at_the_early_weights():
    model = net()
    recover(model, 1, steps=1)
    point = pk.early_point(model, 0.1)
    recover(model, 1, steps=20)

    def watched(model, cycle):
        for place in (0, 2):
            weight, early = model[place].weight, point.tensors[f"{place}.weight"]
            assert torch.equal(weight, torch.where(weight == 0, 0.0, early))
            assert torch.equal(model[place].bias, point.tensors[f"{place}.bias"])
        recover(model, cycle)

    plan = pk.mask_in_cycles(model, watched, sparsity=0.75, cycles=2, point=point)
    assert plan.sparsity == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"sparsity": 0.0}, UsageError, "sparsity is 0.0"),
        ({"sparsity": 1}, UsageError, "sparsity is 1"),
        ({"cycles": 0}, UsageError, "cycles is 0"),
        ({"curve": "bend"}, UsageError, "'bend'"),
        ({"criterion": "beauty"}, SelectionError, "'beauty'"),
        ({"point": pk.early_point(nn.Linear(2, 2), 0.1)}, PlanError, "another model"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(wrong, error, says):
    with pytest.raises(error, match=says):
        pk.mask_in_cycles(net(), recover, **{"sparsity": 0.5, "cycles": 2} | wrong)
