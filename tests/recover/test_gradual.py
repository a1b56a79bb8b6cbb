"""Masks that change while a model trains: exact counts, nested zeros, runs that go on where they ended."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunekit as pk
from prunekit.errors import PlanError, SelectionError, UsageError

X = torch.randn(16, 12, generator=torch.Generator().manual_seed(1))
Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
STEPS = 20


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))


def adam(model):
    return torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.1)


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)


def train(model, optimizer, schedule, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X) - Y).square().mean().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def masks(model):
    return {weight.name: pk.importance.read_weight(model, weight) != 0 for weight in pk.find_weights(model)}


def zhu_gupta(step, steps, sparsity, initial, begin, end):
    """Equation 1 of their paper, in steps."""
    last = max(1, round(end * steps))
    first = min(round(begin * steps), last - 1)
    if step < first:
        return 0.0
    progress = (min(step, last) - first) / (last - first)
    return sparsity + (initial - sparsity) * (1 - progress) ** 3


@settings(max_examples=60)
@given(
    steps=st.integers(1, 40),
    every=st.integers(1, 12),
    sparsity=st.floats(0, 0.99),
    initial=st.floats(0, 1),
    begin=st.floats(0, 0.9),
    length=st.floats(0.01, 1),
    values=st.integers(1, 4),
)
def test_counts_are_exact_at_every_step_whatever_the_ties(
    steps, every, sparsity, initial, begin, length, values
):
    """Oracle: equation 1 at the last change, rounded in each tensor; weights have few distinct values."""
    initial, end = initial * sparsity, min(1.0, begin + length)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(values)
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.randint(1, values + 1, layer.weight.shape, generator=generator))
    schedule = pk.GradualMasks(
        model, sparsity=sparsity, steps=steps, initial=initial, begin=begin, end=end, every=every
    )
    last = max(1, round(end * steps))
    first = min(round(begin * steps), last - 1)
    gone = 0
    for step in range(steps + 3):
        if step:
            schedule.step()
        wanted = zhu_gupta(step, steps, sparsity, initial, begin, end)
        if first <= step <= last and ((step - first) % every == 0 or step == last):
            gone = sum(round(wanted * count) for count in (35, 15))
        zeros = sum(int((layer.weight == 0).sum()) for layer in model)
        assert zeros == gone
        assert zeros <= wanted * 50 + 1, "at most half a weight a tensor above the schedule, by rounding"
        assert schedule.sparsity == pytest.approx(zeros / 50)
    assert gone == sum(round(sparsity * count) for count in (35, 15))


@pytest.mark.parametrize(
    "asked",
    [
        {"sparsity": 0.83},
        {"sparsity": 0.83, "scope": "global"},
        {"sparsity": 0.75, "scope": "row"},
        {"sparsity": 0.7, "scope": "erk"},
        {"sparsity": 0.7, "criterion": "lamp"},
        {"sparsity": 0.5, "pattern": "2x4", "criterion": "l2"},
        {"sparsity": 0.5, "pattern": "column"},
        {"pattern": "2:4"},
        {"pattern": "1:4"},
    ],
    ids=str,
)
def test_what_stays_is_what_the_selection_would_keep_of_the_weights_as_they_are(asked):
    """Oracle: select_weights on a copy made right before the change; parameters stay the same objects."""
    model = net()
    optimizer = sgd(model)
    before = [id(parameter) for parameter in model.parameters()]
    schedule = pk.GradualMasks(model, steps=STEPS, curve="oneshot", end=0.5, every=STEPS, **asked)
    train(model, optimizer, schedule, 9)
    assert schedule.sparsity == 0
    optimizer.zero_grad()
    (model(X) - Y).square().mean().backward()
    optimizer.step()
    dense = pk.fold_masks(model)
    schedule.step()
    wanted = pk.mask_weights(dense, **asked).plan
    for name, keep in masks(model).items():
        assert torch.equal(keep, torch.from_numpy(wanted.masks[name].keep())), name
    train(model, optimizer, schedule, 10)
    assert schedule.sparsity == pytest.approx(wanted.sparsity)
    assert sorted(before) == sorted(id(parameter) for parameter in model.parameters())
    folded = pk.fold_masks(model)
    assert torch.equal(folded.eval()(X), model.eval()(X))


@pytest.mark.parametrize("scope", ["tensor", "row", "module", "global"])
@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_what_is_gone_stays_gone_and_its_state_is_zero(scope, optimizer):
    model = net()
    steps = optimizer(model)
    schedule = pk.GradualMasks(model, sparsity=0.8, steps=STEPS, every=3, scope=scope, optimizer=steps)
    earlier = masks(model)
    for _ in range(STEPS):
        train(model, steps, schedule, 1)
        now = masks(model)
        for weight in pk.find_weights(model):
            assert not bool((now[weight.name] & ~earlier[weight.name]).any())
            stored = pk.importance.stored_parameter(model, weight)
            gone = ~now[weight.name]
            for value in steps.state[stored].values():
                if value.shape == stored.shape:
                    assert bool((value[gone] == 0).all())
            assert bool((stored[gone] == 0).all())
        earlier = now


def test_patterns_n_of_m_go_through_every_count_and_never_above_the_schedule():
    model = nn.Linear(16, 4)
    schedule = pk.GradualMasks(model, pattern="1:8", steps=20, every=1, curve="linear", end=0.7)
    for step in range(1, 21):
        schedule.step()
        groups = (model.weight.reshape(-1, 8) == 0).sum(1)
        assert groups.tolist() == [int(7 * min(step / 14, 1) + 1e-9)] * 8


def test_a_mask_that_is_there_already_goes_on():
    model = pk.mask_weights(net(), sparsity=0.5).model
    schedule = pk.GradualMasks(model, sparsity=0.8, begin=0.2, steps=STEPS, every=2)
    assert schedule.sparsity == schedule.state_dict()["initial"] == 0.5
    start = masks(model)
    train(model, sgd(model), schedule, STEPS)
    assert schedule.sparsity == pytest.approx(0.8, abs=0.01)
    assert not any(bool((now & ~start[name]).any()) for name, now in masks(model).items())


def test_scores_may_come_from_a_function():
    """Wanda with the user's own batches; oracle: mask_weights with the same."""
    batches = [pk.Batch(args=(X,))]

    def wanda(model, weights):
        return pk.score_weights(model, weights, "wanda", norms=pk.input_norms(model, weights, batches))

    model = net()
    wanted = pk.mask_weights(model, sparsity=0.5, criterion="wanda", scope="row", calibration=batches).plan
    schedule = pk.GradualMasks(
        model, sparsity=0.5, initial=0.5, steps=4, criterion=wanda, scope="row", every=9
    )
    assert schedule.sparsity == wanted.sparsity
    for name, keep in masks(model).items():
        assert torch.equal(keep, torch.from_numpy(wanted.masks[name].keep()))
    with pytest.raises(SelectionError, match="Its scores are"):
        pk.GradualMasks(
            net(),
            sparsity=0.5,
            initial=0.5,
            steps=4,
            criterion=lambda model, weights: {w.name: -torch.ones(w.shape) for w in weights},
        )


RULES = {
    "gradual": {"sparsity": 0.8, "every": 3},
    "rigl": {"sparsity": 0.8, "initial": 0.8, "regrow": "gradient", "every": 3, "scope": "erk"},
    "every step": {"sparsity": 0.8, "regrow": "gradient", "every": 1},
    "set": {"sparsity": 0.8, "initial": 0.8, "regrow": "random", "every": 3},
    "dsd": {"sparsity": 0.5, "begin": 0.2, "end": 0.4, "lift": 0.7, "curve": "oneshot", "every": 100},
    "soft": {"sparsity": 0.6, "regrow": "soft", "every": 3},
    "2:4": {"pattern": "2:4", "every": 2},
}


@pytest.mark.parametrize("rule", RULES)
def test_a_run_taken_up_at_any_step_is_the_run_that_was_not_interrupted(rule):
    """Bit by bit: weights, masks, moments; the state goes through JSON, the model is made anew."""
    kept = []
    model = net()
    optimizer = adam(model)
    schedule = pk.GradualMasks(model, steps=STEPS, optimizer=optimizer, **RULES[rule])
    for _ in range(STEPS):
        states = (model, optimizer, schedule)
        kept.append(copy.deepcopy([each.state_dict() for each in states]))
        train(model, optimizer, schedule, 1)
    for step, (weights, moments, where) in enumerate(kept):
        other = net(seed=step + 1)
        others = adam(other)
        taken_up = pk.GradualMasks(other, steps=STEPS, optimizer=others, **RULES[rule])
        taken_up.load_state_dict(json.loads(json.dumps(where)))
        other.load_state_dict(weights)
        others.load_state_dict(moments)
        train(other, others, taken_up, STEPS - step)
        for name, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), (step, name)
        assert taken_up.state_dict() == schedule.state_dict()


def test_dense_sparse_dense_is_plain_training_from_zeros_once_the_masks_are_lifted():
    """Oracle: a plain model and optimizer with the zeros put in by hand, bit by bit."""
    model, plain = net(), net()
    optimizer, by_hand = sgd(model), sgd(plain)
    schedule = pk.GradualMasks(model, steps=STEPS, optimizer=optimizer, **RULES["dsd"])
    train(model, optimizer, schedule, 5)
    train(plain, by_hand, None, 5)
    assert torch.equal(plain(X), model(X))
    train(model, optimizer, schedule, 8)
    keep = masks(model)
    assert schedule.sparsity == pytest.approx(0.5)
    train(model, optimizer, schedule, 1)
    assert all(torch.equal(now, keep[name]) for name, now in masks(model).items())
    plain.load_state_dict(pk.fold_masks(model).state_dict())
    by_hand.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert schedule.sparsity == 0, "lifted after step 14"
    train(model, optimizer, schedule, 6)
    train(plain, by_hand, None, 6)
    assert torch.equal(plain(X), model(X))
    for name, now in masks(model).items():
        assert bool(now.all())
        assert not bool(keep[name].all())


def test_soft_pruning_zeroes_and_trains_on_until_the_masks_hold():
    """Oracle: plain training with the lowest magnitudes set to zero by hand."""
    model, plain = net(), net()
    optimizer, by_hand = sgd(model), sgd(plain)
    schedule = pk.GradualMasks(model, sparsity=0.6, initial=0.6, regrow="soft", steps=10, end=0.9, every=3)
    for step in range(10):
        if step % 3 == 0:
            for layer in (plain[0], plain[3]):
                lowest = np.argsort(layer.weight.detach().abs().numpy().ravel(), kind="stable")
                with torch.no_grad():
                    layer.weight.view(-1)[torch.from_numpy(lowest[: round(0.6 * layer.weight.numel())])] = 0.0
        if step < 9:
            train(model, optimizer, schedule, 1)
            train(plain, by_hand, None, 1)
            if step % 3 != 2:
                assert torch.equal(plain(X), model(X))
                assert schedule.sparsity == 0
    assert schedule.sparsity == pytest.approx(0.6, abs=0.01)
    train(model, optimizer, schedule, 1)
    assert sum(int((~now).sum()) for now in masks(model).values()) == round(0.6 * 192) + round(0.6 * 128)


def test_a_compiled_model_trains_like_one_that_is_not():
    models = [net(), net()]
    for model in models:
        call = torch.compile(model, backend="aot_eager") if model is models[1] else model
        optimizer = sgd(model)
        schedule = pk.GradualMasks(model, steps=8, optimizer=optimizer, **RULES["rigl"] | {"every": 2})
        for _ in range(8):
            optimizer.zero_grad()
            (call(X) - Y).square().mean().backward()
            optimizer.step()
            schedule.step()
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value)


def test_steps_beyond_the_end_change_nothing():
    model = net()
    optimizer = sgd(model)
    schedule = pk.GradualMasks(model, sparsity=0.8, steps=STEPS, end=1.0, every=7)
    train(model, optimizer, schedule, STEPS)
    final = masks(model)
    train(model, optimizer, schedule, STEPS)
    assert all(torch.equal(now, final[name]) for name, now in masks(model).items())
    pk.fold_masks(model, in_place=True)
    schedule.step()
    assert all(torch.equal(now, final[name]) for name, now in masks(model).items())


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"sparsity": 1.0}, UsageError, "sparsity is 1.0"),
        ({"sparsity": -0.1}, SelectionError, "sparsity is -0.1"),
        ({"sparsity": None}, SelectionError, "sparsity is None"),
        ({"sparsity": float("nan")}, SelectionError, "sparsity is nan"),
        ({"steps": 0}, UsageError, "steps is 0"),
        ({"steps": 2.5}, UsageError, "steps is 2.5"),
        ({"every": 0}, UsageError, "every is 0"),
        ({"begin": 0.8, "end": 0.8}, UsageError, "end is 0.8"),
        ({"begin": -0.1}, UsageError, "begin is -0.1"),
        ({"end": 1.1}, UsageError, "end is 1.1"),
        ({"initial": 0.9}, UsageError, "initial is 0.9"),
        ({"lift": 0.8}, UsageError, "lift is 0.8"),
        ({"lift": True}, UsageError, "lift is True"),
        ({"criterion": "beauty"}, SelectionError, "no criterion 'beauty'"),
        ({"criterion": "wanda"}, SelectionError, "needs norms"),
        ({"curve": "bend"}, UsageError, "schedule is 'bend'"),
        ({"scope": "house"}, SelectionError, "no scope 'house'"),
        ({"pattern": "1:4"}, SelectionError, "1:4"),
        ({"regrow": "weeds"}, UsageError, "regrow is 'weeds'"),
        ({"regrow": "random", "scope": "lamp"}, SelectionError, "'lamp' divides"),
        ({"regrow": "random", "pattern": "2:4", "sparsity": None}, SelectionError, "less than one weight"),
        ({"seed": -1}, UsageError, "seed"),
        ({"optimizer": sgd(net())}, UsageError, "holds none of the parameters"),
        ({"weights": pk.find_weights(nn.Linear(4, 4))}, PlanError, "another model"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_the_model_left_alone(wrong, error, says):
    model = net()
    with pytest.raises(error, match=says):
        pk.GradualMasks(model, **{"sparsity": 0.5, "steps": STEPS} | wrong)
    assert list(model.state_dict()) == list(net().state_dict())


def test_a_model_without_weights_to_mask_is_refused():
    with pytest.raises(SelectionError, match="no weights"):
        pk.GradualMasks(nn.BatchNorm1d(3), sparsity=0.5, steps=4)


def test_the_state_of_another_schedule_is_refused():
    schedule = pk.GradualMasks(net(), sparsity=0.5, steps=STEPS)
    for other in ({"sparsity": 0.6}, {"every": 3}, {"regrow": "random"}, {"curve": [[0.5, 1.0]]}):
        state = pk.GradualMasks(net(), **{"sparsity": 0.5, "steps": STEPS} | other).state_dict()
        with pytest.raises(UsageError, match=f"differs in {next(iter(other))}"):
            schedule.load_state_dict(state)
    with pytest.raises(UsageError, match="model"):
        schedule.load_state_dict(pk.GradualMasks(nn.Linear(4, 4), sparsity=0.5, steps=STEPS).state_dict())
    with pytest.raises(UsageError, match="step"):
        schedule.load_state_dict({})


def test_masks_that_were_folded_too_early_are_missed():
    model = net()
    schedule = pk.GradualMasks(model, sparsity=0.5, steps=4, every=2)
    pk.fold_masks(model, in_place=True)
    schedule.step()
    with pytest.raises(PlanError, match="no longer on the model"):
        schedule.step()
