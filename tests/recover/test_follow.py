"""What follows a removal holds what the dense model's optimizers and averages hold, cut out with NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.recover.following import OPTIMIZERS, cut_out, halved, learn, same_state, square, trainable
from tests.zoo import oracles
from tests.zoo.toys import groups_of
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunekit as pk
from prunekit.errors import PlanError, TrainingError
from prunekit.plan import Goal, allocate
from prunekit.recover import TrainingSettings, check_optimizer, follow, follow_average, train
from prunekit.recover.training import stepper
from prunekit.recover.training.optimizers import make_optimizer
from prunekit.surgery import Removal, remove

TOYS = (
    "basic blocks",
    "flatten",
    "tied weights",
    "depthwise with multiplier",
    "shuffled unit",
    "unused tensors",
    "frozen parameters",
    "grouped-query attention",
    "slopes",
)
"""Residual, flattened, tied, grouped, permuted, unread and frozen parameters; blocks; a graph module."""


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", TOYS)
def test_a_step_of_the_smaller_model_is_the_dense_step_cut_out(name, kind):
    # Oracle: the dense optimizer on the masked model, given the same gradients; its result cut out.
    model, plan = halved(name)
    dense = trainable(model)
    optimizer = OPTIMIZERS[kind](dense.values())
    learn(optimizer, dense, seed=0)
    removal = remove(model, plan, groups_of(name))
    masked = pk.mask(model, plan, groups_of(name))
    on_masked = OPTIMIZERS[kind](trainable(masked).values())
    on_masked.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    follow(optimizer, model, removal, plan, groups_of(name))

    check_optimizer(optimizer, removal.model)
    small, generator = trainable(removal.model), torch.Generator().manual_seed(1)
    for tensor_name, parameter in trainable(masked).items():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if tensor_name in small:
            small[tensor_name].grad = cut_out(name, plan, tensor_name, parameter.grad)
    on_masked.step()
    optimizer.step()
    assert len(small) > 0
    for tensor_name, parameter in trainable(masked).items():
        if tensor_name in small:
            expected = cut_out(name, plan, tensor_name, parameter.detach())
            torch.testing.assert_close(small[tensor_name].detach(), expected, rtol=0, atol=0)
            same_state(
                optimizer.state[small[tensor_name]],
                {
                    key: cut_out(name, plan, tensor_name, value) if value.shape == parameter.shape else value
                    for key, value in on_masked.state[parameter].items()
                },
            )


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_training_goes_on_as_on_the_masked_model(kind):
    # Oracle: training the masked model in float64 with real gradients, its removed units put back to zero.
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    ).double()
    data = torch.randn(5, 8, 6, dtype=torch.float64)

    def run(net, optimizer, batches):
        for x in batches:
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()

    optimizer = OPTIMIZERS[kind](model.parameters())
    run(model, optimizer, data)
    result = pk.prune(model, (data[0],), sparsity=0.5)
    masked = pk.mask(model, result.plan, result.groups)
    on_masked = OPTIMIZERS[kind](masked.parameters())
    on_masked.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    pk.follow(optimizer, model, result, result.plan, result.groups)
    for x in data:
        run(masked, on_masked, [x])
        zeroed = pk.mask(masked, result.plan, result.groups)
        masked.load_state_dict(zeroed.state_dict())
    run(result.model, optimizer, data)
    keep = result.plan.keep_mask()
    for name, parameter in result.model.named_parameters():
        dense = masked.get_parameter(name).detach()
        expected = oracles.cut_out(result.groups, keep, name, dense)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.relu(self.linear(self.norm(x)))


def stack() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *[Block() for _ in range(4)], nn.Linear(8, 2))


def test_layers_that_leave_take_their_state_with_them():
    model = stack()
    groups = [{"params": list(part.parameters()), "lr": 0.1 / (n + 1)} for n, part in enumerate(model)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=10)
    learn(optimizer, dict(model.named_parameters()), seed=0)
    scheduler.step()
    before = {name: optimizer.state[each]["exp_avg"].clone() for name, each in model.named_parameters()}
    rates = [group["lr"] for group in optimizer.param_groups]
    result = pk.prune(model, (torch.randn(2, 4),), granularity="layer", sparsity=0.5)

    report = pk.follow(optimizer, model, result, result.plan, result.groups)

    assert len(result.model) == 4
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert sorted(len(group["params"]) for group in optimizer.param_groups) == [0, 0, 2, 2, 4, 4]
    names = {name for name, _ in result.model.named_parameters()}
    came_from = {name: result.moved.get(name, name) for name in names}
    assert set(report.gone) == before.keys() - set(came_from.values())
    assert (report.narrowed, report.reset) == ((), {})
    for name, parameter in result.model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], before[came_from[name]])
    assert len(optimizer.state) == len(names)
    check_optimizer(optimizer, result.model)
    learn(optimizer, dict(result.model.named_parameters()), seed=1)
    scheduler.step()
    # Oracle: the closed form of LinearLR, from 1/3 of the peak to the peak in 10 steps.
    factor = 1 / 3 + 2 / 3 * 2 / 10
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [0.1 / (n + 1) * factor for n in range(6)]
    )


def test_what_the_graph_module_does_not_read_is_gone():
    model, plan = halved("grouped-query attention")
    removal = remove(model, plan, groups_of("grouped-query attention"))
    assert removal.form == "graph module"
    model.spare = nn.Linear(3, 3)  # pyright: ignore
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    learn(optimizer, dict(model.named_parameters()), seed=0)
    report = follow(optimizer, model, removal, plan, groups_of("grouped-query attention"))
    assert report.gone == ("spare.weight", "spare.bias")
    check_optimizer(optimizer, removal.model)
    assert len(optimizer.param_groups[0]["params"]) == len(list(removal.model.parameters()))


def test_parameters_that_were_not_trained_stay_out():
    model, plan = halved("basic blocks")
    removal = remove(model, plan, groups_of("basic blocks"))
    chosen = [each for name, each in model.named_parameters() if name.endswith("bias")]
    names = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    optimizer = torch.optim.Adam(chosen)
    report = follow(optimizer, model, removal, plan, groups_of("basic blocks"))
    held = {id(each) for each in optimizer.param_groups[0]["params"]}
    assert held == {id(removal.model.get_parameter(name)) for name in names}
    assert set(report.narrowed) <= set(names)
    assert not optimizer.state


class Wrapping(torch.optim.Optimizer):
    """Shows the groups and the state of another optimizer as its own, as accelerate's does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)


def test_a_wrapped_optimizer_follows_with_the_one_inside():
    model = square()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    learn(inner, dict(model.named_parameters()), seed=0)
    result = pk.prune(model, (torch.randn(2, 4),), sparsity=0.5)
    report = pk.follow(Wrapping(inner), model, result, result.plan, result.groups)
    check_optimizer(inner, result.model)
    assert len(report.narrowed) == len(inner.state) - 1 == 5


def test_a_gradient_scaler_goes_on():
    model = square()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

    def step(net):
        optimizer.zero_grad()
        scaler.scale(net(torch.ones(2, 4)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    step(model)
    result = pk.prune(model, (torch.randn(2, 4),), sparsity=0.5)
    pk.follow(optimizer, model, result, result.plan, result.groups)
    before = [each.detach().clone() for each in result.model.parameters()]
    step(result.model)
    assert scaler.get_scale() == 16.0  # Two good steps, one before and one after.
    after = list(result.model.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_state_dict_of_the_followed_optimizer_loads_into_a_new_one():
    model = square()
    optimizer = torch.optim.AdamW(model.parameters())
    learn(optimizer, dict(model.named_parameters()), seed=0)
    result = pk.prune(model, (torch.randn(2, 4),), sparsity=0.5)
    pk.follow(optimizer, model, result, result.plan, result.groups)
    new = torch.optim.AdamW(result.model.parameters())
    new.load_state_dict(optimizer.state_dict())
    for parameter in result.model.parameters():
        assert new.state[parameter].keys() == {"step", "exp_avg", "exp_avg_sq"}
        same_state(new.state[parameter], optimizer.state[parameter])


@pytest.mark.parametrize("name", ["basic blocks", "grouped-query attention"])
def test_a_moving_average_follows(name):
    # Oracles: the dense average cut out with NumPy; then the formula of the average.
    model, plan = halved(name)
    groups = groups_of(name)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for seed in range(3):
        learn(torch.optim.SGD(model.parameters(), lr=0.1), dict(model.named_parameters()), seed)
        average.update_parameters(model)
    dense = {key: value.detach().clone() for key, value in average.module.named_parameters()}
    removal = remove(model, plan, groups)

    follow_average(average, removal, plan, groups)

    expected = {key: cut_out(name, plan, key, value) for key, value in dense.items()}
    for key, value in average.module.named_parameters():
        assert torch.equal(value, expected[key])
    assert int(average.n_averaged) == 3
    average.update_parameters(removal.model)
    assert int(average.n_averaged) == 4
    for key, value in average.module.named_parameters():
        now = 0.9 * expected[key] + 0.1 * removal.model.get_parameter(key)
        torch.testing.assert_close(value, now.detach())


def test_an_average_that_would_not_pair_with_the_model_is_refused():
    model, plan = halved("basic blocks")
    removal = remove(model, plan, groups_of("basic blocks"))
    average = AveragedModel(model)
    before = average.module
    other = copy.copy(removal)
    object.__setattr__(other, "model", nn.Linear(2, 2))
    with pytest.raises(TrainingError, match="other tensors than the model"):
        follow_average(average, other, plan, groups_of("basic blocks"))
    assert average.module is before


def test_a_stale_optimizer_is_found():
    model, plan = halved("basic blocks")
    removal = remove(model, plan, groups_of("basic blocks"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    check_optimizer(optimizer, model)
    with pytest.raises(TrainingError, match=r"are not the model's.*Call follow\(\)"):
        check_optimizer(optimizer, removal.model)


def test_our_own_training_makes_an_optimizer_of_the_very_model_it_trains(workload, monkeypatch):
    made = []

    def make(*args, **kwargs):
        made.append(make_optimizer(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(stepper, "make_optimizer", make)
    settings = TrainingSettings(epochs=1, batch_size=32, learning_rate=0.01)
    model = workload.build()
    train(model, workload, settings)
    small = pk.prune(model, workload.example_inputs().args, sparsity=0.5).model
    train(small, workload, settings)
    check_optimizer(made[0], model)
    check_optimizer(made[1], small)
    with pytest.raises(TrainingError):
        check_optimizer(made[0], small)


def _left_as_it_was(optimizer, model) -> None:
    assert all(
        one is other
        for one, other in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=False)
    )


def test_optimizers_that_cannot_follow_are_refused_and_left_alone():
    model, plan = halved("basic blocks")
    removal = remove(model, plan, groups_of("basic blocks"))
    groups = groups_of("basic blocks")
    stranger = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(3))], lr=0.1)
    with pytest.raises(TrainingError, match=r"1 of the \d+ parameters of SGD are not the model's.*\[3\]"):
        follow(stranger, model, removal, plan, groups)
    _left_as_it_was(stranger, model)
    with pytest.raises(TrainingError, match=r"LBFGS keeps parameters in its attribute '_params'"):
        follow(torch.optim.LBFGS(model.parameters()), model, removal, plan, groups)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match=r"has the shape \[.*as planned"):
        follow(optimizer, model, Removal(copy.deepcopy(model), "own class", "", 0.0), plan, groups)
    _left_as_it_was(optimizer, model)
    with pytest.raises(PlanError, match="fingerprint"):
        follow(optimizer, model, removal, plan, groups_of("flatten"))
    follow(optimizer, model, removal, plan, groups)
    with pytest.raises(TrainingError, match="holds the smaller model's parameters already"):
        follow(optimizer, model, removal, plan, groups)


def test_layers_are_told_apart_by_name_when_numbers_move_up():
    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    learn(optimizer, dict(model.named_parameters()), seed=0)
    before = {
        name: optimizer.state[each]["momentum_buffer"].clone() for name, each in model.named_parameters()
    }
    groups = pk.find_groups(pk.trace(model, (torch.randn(2, 4),))).select(granularity="layer")
    (group,) = groups
    plan = allocate(groups, {group.name: np.array([0, 3, 2, 1], np.float32)}, Goal("sparsity", remove=0.25))
    removal = remove(model, plan, groups)
    follow(optimizer, model, removal, plan, groups)
    for new, old in (("1", "2"), ("2", "3"), ("3", "4"), ("4", "5")):
        for leaf, parameter in removal.model.get_submodule(new).named_parameters():
            assert torch.equal(optimizer.state[parameter]["momentum_buffer"], before[f"{old}.{leaf}"])
