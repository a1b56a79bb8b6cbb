"""Movement of single weights: the sum of the paper, as a criterion of masks that grow in training."""

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.errors import CalibrationError

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def train(model, movement, steps, masks=None):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    products = []
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        products.append({name: -(p * p.grad).detach() for name, p in model.named_parameters()})
        movement.update()
        optimizer.step()
        if masks is not None:
            masks.step()
    return products


def test_scores_are_the_sums_over_the_steps_moved_above_zero():
    """Oracle: equation 4 summed by hand; the order inside and between parameters is that of the sums."""
    model = net()
    weights = pk.find_weights(model)
    movement = pk.WeightMovement(model, weights)
    products = train(model, movement, 5)
    scores = movement(model, weights)
    sums = {name: sum(step[name] for step in products) for name in scores}
    least = min(float(values.min()) for values in sums.values())
    assert min(float(values.min()) for values in scores.values()) == 0
    for name, values in sums.items():
        torch.testing.assert_close(scores[name], values - least)


def test_masks_that_grow_take_it_as_their_criterion_and_it_can_be_taken_up():
    """Oracle: select_weights on the sums; a copy that loads the state in between ends with the same."""
    model, weights = net(), pk.find_weights(net())
    movement = pk.WeightMovement(model, weights)
    asked = {"sparsity": 0.5, "steps": 6, "every": 6, "end": 1.0, "curve": "oneshot", "criterion": movement}
    masks = pk.GradualMasks(model, **asked)
    train(model, movement, 3, masks)
    other = pk.WeightMovement(model, weights)
    other.load_state_dict(movement.state_dict())
    train(model, movement, 2, masks)
    train(model, movement, 1)
    plan = pk.select_weights(weights, movement(model, weights), sparsity=0.5)
    masks.step()
    for weight in weights:
        kept = pk.importance.read_weight(model, weight) != 0
        assert torch.equal(kept, torch.from_numpy(plan.masks[weight.name].keep()))
    assert (other.steps, movement.steps) == (3, 6)
    with pytest.raises(CalibrationError, match="no sums for"):
        other.load_state_dict({"steps": 1, "sums": {}})


def test_without_gradients_there_is_nothing_to_go_by():
    model = net()
    movement = pk.WeightMovement(model, pk.find_weights(model))
    with pytest.raises(CalibrationError, match="No weight has a gradient"):
        movement.update()
    with pytest.raises(CalibrationError, match="No training step"):
        movement(model, pk.find_weights(model))
    (model(X).sum() * torch.nan).backward()
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        movement.update()
