"""Cuts while a model trains: exact at every cycle, nothing comes back, resumed runs go on bit by bit."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from tests.recover.following import same_state
from torch import nn

import prunekit as pk
from prunekit.errors import GoalError, SelectionError, TrainingError, UsageError
from prunekit.recover import PlannedCut, Shrinking, TrainingSettings, shares, train
from prunekit.surgery import sound

STEPS = 12


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 20, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(320, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(1)
    return torch.randn(STEPS, 8, 1, 8, 8), torch.randint(0, 3, (STEPS, 8))


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def shrinking(model, data, optimizer=None, **given):
    given = {"steps": STEPS, "sparsity": 0.6, "cycles": 3, "end": 0.75, **given}
    return Shrinking(model, (data[0][0],), optimizers=[optimizer] if optimizer else [], **given)


def learn(model, optimizer, companion, data, start=0, stop=STEPS, seen=None):
    for x, y in zip(data[0][start:stop], data[1][start:stop], strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        companion.step()
        if seen is not None:
            seen.append((model[0].out_channels, model[3].out_channels))


def test_every_cycle_is_exact_against_the_dense_model_and_nothing_comes_back(data):
    # Oracle: NumPy's rounding of the dense widths; a cut after 3, 6 and 9 steps.
    model, seen, plans = net(), [], []
    optimizer = adamw(model)
    companion = shrinking(model, data, optimizer)
    for step in range(STEPS):
        learn(model, optimizer, companion, data, step, step + 1, seen)
        plans.append(companion.plan)
    left = [1.0, *(1 - 0.6 * share for share in shares("cubic", 3))]
    expected = [tuple(round(width * left[cycle]) for width in (10, 20)) for cycle in (0, 1, 2, 3)]
    assert seen == [expected[0]] * 2 + [expected[1]] * 3 + [expected[2]] * 3 + [expected[3]] * 4
    assert seen[-1] == (4, 8)
    pk.check_optimizer(optimizer, model)
    made = [plan for plan in plans if plan is not None]
    for earlier, later in itertools.pairwise(made):
        assert all(set(later.keep[name]) <= set(units) for name, units in earlier.keep.items())
    assert made[-1].before.params == sum(each.numel() for each in net().parameters())
    assert made[-1].after.params == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("goal", ["macs", "params"])
def test_the_goal_of_the_whole_model_is_met(goal, data):
    model = net()
    optimizer = adamw(model)
    companion = shrinking(model, data, optimizer, goal=goal, cycles=2, scope="global")
    learn(model, optimizer, companion, data)
    plan = companion.plan
    assert getattr(plan.after, goal) / getattr(plan.before, goal) == pytest.approx(0.4, rel=0.02)


@pytest.mark.parametrize(("interrupted", "criterion"), [(2, "l2"), (3, "l2"), (7, "taylor"), (12, "l2")])
def test_a_resumed_run_is_the_uninterrupted_one(interrupted, criterion, data):
    # Oracle: the run that was not interrupted, bit by bit; what is loaded went through JSON.
    def begin():
        model = net()
        optimizer = adamw(model)
        batch = pk.Batch((data[0][0],), target=data[1][0], ids=tuple("abcdefgh"))
        given = {"criterion": criterion}
        if criterion == "taylor":
            given |= {
                "calibration": [batch],
                "loss": lambda out, each: nn.functional.cross_entropy(out, each.target),
            }
        return model, optimizer, shrinking(model, data, optimizer, **given)

    whole, first, second = begin(), begin(), begin()
    learn(*whole, data)
    learn(*first, data, stop=interrupted)
    second[2].load_state_dict(json.loads(json.dumps(first[2].state_dict())))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    learn(*second, data, start=interrupted)
    same_state(second[0].state_dict(), whole[0].state_dict())
    assert second[2].plan.keep == whole[2].plan.keep
    for one, other in zip(second[0].parameters(), whole[0].parameters(), strict=True):
        same_state(second[1].state[one], whole[1].state[other])


def test_a_state_of_another_run_is_refused(data):
    companion = shrinking(net(), data)
    state = companion.state_dict()
    for changed in ({"sparsity": 0.5}, {"steps": 24}, {"criterion": "l1"}, {"seed": 3}):
        with pytest.raises(UsageError, match="another run"):
            shrinking(net(), data, **changed).load_state_dict(state)
    with pytest.raises(UsageError, match="fingerprint"):
        companion.load_state_dict({**state, "fingerprint": "0"})
    with pytest.raises(UsageError, match="step"):
        companion.load_state_dict({**state, "step": -1})
    model = net()
    optimizer = adamw(model)
    cut = shrinking(model, data, optimizer)
    learn(model, optimizer, cut, data, stop=4)
    with pytest.raises(UsageError, match="cut already"):
        cut.load_state_dict(state)
    cut.load_state_dict(cut.state_dict())
    assert cut.state_dict()["step"] == 4


def asked(model, data):
    groups = sound(model, pk.find_groups(pk.trace(model, data[0][0])), own_class=True)
    scores = pk.score(model, groups, "l2")
    return pk.allocate(groups, scores, pk.Goal("sparsity", remove=0.5)), groups


@pytest.mark.parametrize("at", [1, 3, 5])
def test_one_plan_at_one_step(at, data):
    model, seen = net(), []
    plan, groups = asked(model, data)
    optimizer = adamw(model)
    companion = PlannedCut(model, plan, groups, at=at, optimizers=[optimizer])
    assert companion.plan is None
    learn(model, optimizer, companion, data, seen=seen)
    assert seen == [(10, 20)] * (at - 1) + [(5, 10)] * (STEPS - at + 1)
    assert companion.plan is plan
    assert companion.last.followed[0].narrowed
    with pytest.raises(UsageError, match="at least 1"):
        PlannedCut(net(), plan, groups, at=0)
    again = net()
    other = PlannedCut(again, plan, groups, at=3)
    if at == 3:
        other.load_state_dict(companion.state_dict())
    with pytest.raises(UsageError, match="another run"):
        other.load_state_dict({**companion.state_dict(), "at": 7})


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"steps": 0}, UsageError, "steps"),
        ({"cycles": 0}, UsageError, "cycles"),
        ({"cycles": True}, UsageError, "cycles"),
        ({"cycles": 10}, UsageError, "within"),
        ({"begin": 0.8}, UsageError, "begin"),
        ({"end": 1.5}, UsageError, "begin"),
        ({"curve": "square"}, UsageError, "schedule"),
        ({"sparsity": 1.0}, GoalError, "below 1"),
        ({"sparsity": 0.99, "limits": pk.Limits(max_sparsity=0.1), "goal": "macs"}, GoalError, "macs"),
        ({"only": "nothing"}, SelectionError, "nothing"),
        ({"criterion": "best"}, SelectionError, "best"),
        ({"granularity": "head"}, SelectionError, "nothing"),
    ],
)
def test_mistakes_are_found_before_training(given, error, says, data):
    with pytest.raises(error, match=says):
        shrinking(net(), data, **given)


def test_layers_go_in_one_cycle_only(data):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            return x + torch.tanh(self.inner(x))

    def build():
        return nn.Sequential(nn.Linear(4, 8), *(Block() for _ in range(4)))

    x = torch.randn(3, 4)
    with pytest.raises(SelectionError, match="2 cycles"):
        Shrinking(build(), (x,), steps=8, cycles=2, granularity="layer", criterion="random")
    model = build()
    companion = Shrinking(model, (x,), steps=8, cycles=1, granularity="layer", criterion="random")
    for _ in range(8):
        companion.step()
    assert len(model) == 3


def test_an_optimizer_of_another_model_is_found_before_training(data):
    model = net()
    with pytest.raises(TrainingError, match="are not those of"):
        shrinking(model, data, adamw(net()))
    companion = shrinking(model, data)
    with pytest.raises(TrainingError, match="are not those of"):
        companion.use(adamw(model), adamw(net()))


def test_wrappers_are_refused_before_training(data):
    with pytest.raises(UsageError, match=r"wrapper\.module"):
        shrinking(nn.DataParallel(net()), data)
    graph = torch.export.export(net().eval(), (data[0][0],)).module()
    with pytest.raises(UsageError, match="graph"):
        shrinking(graph, data)


def test_the_training_loop_of_its_own_takes_no_cuts(workload):
    model = workload.build()
    x = workload.example_inputs().args[0]
    companion = Shrinking(model, (x,), steps=STEPS, cycles=1)
    with pytest.raises(UsageError, match="between two calls"):
        train(model, workload, TrainingSettings(), companions=[companion])
