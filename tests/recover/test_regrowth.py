"""What comes back under a mask: the published rules, the optimizer's state, and what is refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.errors import TrainingError
from prunekit.recover import REGROWTH

X = torch.randn(16, 12, generator=torch.Generator().manual_seed(1))
Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))


def loss(model):
    return (model(X) - Y).square().mean()


def masked(model):
    return {
        weight.name: (
            pk.surgery.mask_on(model, weight).keep.clone(),
            pk.importance.stored_parameter(model, weight),
        )
        for weight in pk.find_weights(model)
    }


def rigl(weight, gradient, keep, exchanged):
    """Algorithm 1 of Evci et al. for one layer, in NumPy; what was dropped does not compete."""
    weight, gradient, keep = (values.double().numpy().ravel() for values in (weight, gradient, keep))
    active, gone = np.flatnonzero(keep), np.flatnonzero(keep == 0)
    drop = active[np.argsort(np.abs(weight[active]), kind="stable")[:exchanged]]
    grow = gone[np.argsort(-np.abs(gradient[gone]), kind="stable")[:exchanged]]
    after = keep.copy()
    after[drop], after[grow] = 0, 1
    return after.astype(bool)


@pytest.mark.parametrize("parts", [1, 2])
def test_regrowth_by_gradient_is_that_of_the_paper(parts):
    """One change; the gradient of the dense weights is that of a plain model, also over two micro-batches."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = pk.GradualMasks(
        model,
        sparsity=0.75,
        initial=0.75,
        steps=40,
        end=1.0,
        every=4,
        regrow="gradient",
        optimizer=optimizer,
    )
    for step in range(4):
        optimizer.zero_grad()
        plain = pk.fold_masks(model)
        for x, y in zip(X.chunk(parts), Y.chunk(parts), strict=True):
            for each in (model, plain):
                (each(x) - y).square().mean().backward()
        optimizer.step()
        if step == 3:
            before = {name: (keep, p.detach().clone()) for name, (keep, p) in masked(model).items()}
            momenta = {
                name: optimizer.state[p]["momentum_buffer"].clone() for name, (_, p) in masked(model).items()
            }
        schedule.step()
    share = 0.3 / 2 * (1 + np.cos(np.pi * 4 / 40))
    for (name, (keep, stored)), layer in zip(masked(model).items(), (plain[0], plain[2]), strict=True):
        earlier, weight = before[name]
        exchanged = int(earlier.sum()) - (keep.numel() - round((1 - 0.25 * (1 - share)) * keep.numel()))
        wanted = rigl(weight, layer.weight.grad, earlier, exchanged)
        assert exchanged > 2
        assert keep.numpy().ravel().tolist() == wanted.tolist()
        stay = keep & earlier
        assert torch.equal(stored[stay], weight[stay])
        assert not bool(stored[~stay].any()), "what comes back starts at zero"
        momentum = optimizer.state[stored]["momentum_buffer"]
        assert torch.equal(momentum[stay], momenta[name][stay])
        assert not bool(momentum[~stay].any())


def test_the_step_before_a_change_is_a_step_like_any_other():
    """Oracle: the same masks without regrowth; the gradient that is gathered trains nothing."""
    runs = []
    for rule in ("gradient", "none"):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        schedule = pk.GradualMasks(model, sparsity=0.75, initial=0.75, steps=40, every=4, regrow=rule)
        for _ in range(4):
            optimizer.zero_grad()
            loss(model).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            runs.append(copy.deepcopy(pk.fold_masks(model).state_dict()))
            schedule.step()
    for ours, wanted in zip(runs[:4], runs[4:], strict=True):
        assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("pattern", "scope", "rule"),
    [
        ("element", "tensor", "random"),
        ("element", "global", "gradient"),
        ("element", "row", "gradient"),
        ("element", "erk", "random"),
        ("2x4", "tensor", "gradient"),
        ("2:4", None, "random"),
    ],
)
def test_every_exchange_keeps_the_counts_and_moves_something(pattern, scope, rule):
    """The counts of the scope before and after; at the end nothing is exchanged any more."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sparsity = None if pattern == "2:4" else 0.5
    schedule = pk.GradualMasks(
        model,
        sparsity=sparsity,
        initial=0.5,
        pattern=pattern,
        scope=scope,
        steps=20,
        end=0.8,
        every=2,
        regrow=replace(REGROWTH[rule], share=0.6),
    )
    first = masked(model)
    total = sum(int(keep.sum()) for keep, _ in first.values())
    changed = 0
    for step in range(1, 21):
        earlier = masked(model)
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        schedule.step()
        now = masked(model)
        moved = any(not torch.equal(now[name][0], keep) for name, (keep, _) in earlier.items())
        assert not moved or (step % 2 == 0 and step < 16)
        changed += moved
        assert sum(int(keep.sum()) for keep, _ in now.values()) == total
        for name, (keep, _) in now.items():
            if scope in ("tensor", "erk"):
                assert int(keep.sum()) == int(first[name][0].sum())
            if scope == "row":
                assert torch.equal(keep.sum(1), first[name][0].sum(1))
            if pattern == "2:4":
                assert bool((keep.reshape(-1, 4).sum(1) == 2).all())
            if pattern == "2x4":
                blocks = keep.reshape(keep.shape[0] // 2, 2, -1, 4).float().mean((1, 3))
                assert bool(((blocks == 0) | (blocks == 1)).all())
    assert changed >= 3


def test_random_regrowth_drops_the_smallest_and_draws_from_the_seed():
    """The same seed gives the same masks; another one drops the same and grows others."""
    found = {}
    for seed in (0, 0, 1):
        model = net()
        schedule = pk.GradualMasks(
            model, sparsity=0.75, initial=0.75, steps=10, every=2, regrow="random", seed=seed
        )
        before = masked(model)
        schedule.step()
        schedule.step()
        for name, (keep, _) in masked(model).items():
            earlier = before[name][0]
            dropped = earlier & ~keep
            exchanged = int(dropped.sum())
            kept = round(0.25 * keep.numel())
            assert exchanged == kept - (keep.numel() - round((1 - 0.25 * 0.7) * keep.numel()))
            assert int((keep & ~earlier).sum()) == exchanged
            weight = dict(net().named_parameters())[name].detach().abs()
            assert weight[dropped].max() <= weight[earlier & keep].min()
            found.setdefault((name, seed), keep)
            assert torch.equal(found[name, seed], keep)
    grown = [found["0.weight", seed] & ~masked(net_at_start())["0.weight"][0] for seed in (0, 1)]
    assert not torch.equal(*grown)


def net_at_start():
    model = net()
    pk.GradualMasks(model, sparsity=0.75, initial=0.75, steps=10, every=2)
    return model


def test_where_little_had_gone_what_was_dropped_fills_the_rest():
    """One weight of four had gone, three are dropped: it comes back, and the two largest of those dropped."""
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(1.0, 17).reshape(4, 4))
    rule = replace(REGROWTH["random"], share=0.2)
    pk.GradualMasks(model, sparsity=1 / 16, initial=1 / 16, steps=10, every=1, regrow=rule).step()
    gone = (pk.surgery.mask_on(model, next(iter(pk.find_weights(model)))).keep == 0).flatten()
    assert gone.nonzero().flatten().tolist() == [1], "1 was gone and is back; 2, 3 and 4 were dropped"


def test_gradients_that_are_no_numbers_move_nothing_and_missing_ones_are_an_error():
    model = net()
    schedule = pk.GradualMasks(model, sparsity=0.5, initial=0.5, steps=9, every=1, end=1.0, regrow="gradient")
    before = masked(model)
    (loss(model) * torch.inf).backward()
    schedule.step()
    assert all(torch.equal(keep, before[name][0]) for name, (keep, _) in masked(model).items())
    loss(model).backward()
    schedule.step()
    assert any(not torch.equal(keep, before[name][0]) for name, (keep, _) in masked(model).items())
    with pytest.raises(TrainingError, match="No masked parameter had a gradient"):
        schedule.step()
