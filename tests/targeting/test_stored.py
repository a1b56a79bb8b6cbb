"""A planner that was written down and read back predicts what it predicted before."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.workflow.tiny_workload import Net

from prunekit.errors import GoalError, MeasurementError
from prunekit.measure import Target
from prunekit.plan import Goal
from prunekit.plan.baselines import ALLOCATIONS, RANKING
from prunekit.plan.figures import Limit
from prunekit.targeting import Space, Timing, measure_target, restore_planner, stored_planner
from prunekit.targeting.costs import Seen

IMAGES = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module", params=["torch_eager", "onnxruntime"])
def planner(request, tmp_path_factory):
    """One runtime tells what operations take inside of models, the other does not."""
    torch.manual_seed(0)
    return measure_target(
        Net().eval(),
        IMAGES,
        target=Target(request.param, batch=2),
        space=Space("channel", most_levels=3),
        loss=lambda model: float(sum(each.detach().abs().sum() for each in model.parameters())),
        timing=Timing(variants=2, seconds=0.05, tables=tmp_path_factory.mktemp("tables")),
    )


def restored(planner, content):
    times = planner.costs.latency.times
    return restore_planner(content, planner.model, planner.groups, planner.rig, times)


def test_every_figure_is_the_same_to_the_bit(planner):
    """Oracle: the planner that measured."""
    again = restored(planner, json.loads(json.dumps(stored_planner(planner))))
    rng = np.random.default_rng(0)
    for _ in range(20):
        levels = np.array([rng.integers(size) for size in planner.costs.sizes])
        for figure in ("ms", "macs", "params", "param_bytes", "cache_bytes"):
            assert getattr(again.costs, figure).at(levels) == getattr(planner.costs, figure).at(levels)
        ours, theirs = (each.costs.levers.masks(levels) for each in (planner, again))
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)
    for before, after in zip(planner.curves, again.curves, strict=True):
        assert (before.lever, before.source, before.power) == (after.lever, after.source, after.power)
        assert (before.losses == after.losses).all()
    assert again.costs.dense_ms == planner.costs.dense_ms
    assert again.costs.latency.median_error == planner.costs.latency.median_error


def test_it_learns_from_attempts_as_before(planner):
    again = restored(planner, json.loads(json.dumps(stored_planner(planner))))
    last = planner.costs.levers.last
    seen = Seen(planner.costs.levers.masks(last), 2.0)
    learnt = [each.costs.learnt(planner.rig, [seen]).ms.at(last) for each in (planner, again)]
    assert learnt[0] == learnt[1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", "prunekit.target/0", "another schema"),
        ("fingerprint", "0" * 64, "another model"),
        ("model", "0" * 64, "another state of the model"),
        ("times", "0" * 16, "its machine"),
    ],
)
def test_what_belongs_elsewhere_is_refused(planner, key, value, message):
    with pytest.raises(MeasurementError, match=message):
        restored(planner, {**stored_planner(planner), key: value})


def test_weights_that_were_trained_on_since_are_refused(planner):
    """The groups are the same, and so is their fingerprint."""
    content = stored_planner(planner)
    weight = next(planner.model.parameters())
    before = weight.detach().clone()
    try:
        weight.data[0] *= 1.5
        with pytest.raises(MeasurementError, match="another state of the model"):
            restored(planner, content)
    finally:
        weight.data.copy_(before)
    restored(planner, content)


@pytest.mark.parametrize("by", ALLOCATIONS)
def test_every_allocation_chooses_the_same_again(planner, by):
    """Oracle: the planner that measured."""
    again = restored(planner, json.loads(json.dumps(stored_planner(planner))))
    limits = [Limit(planner.costs.params, 0.6 * planner.costs.params.at([0] * len(planner.costs.levers)))]
    chosen = [
        ALLOCATIONS[by](each.costs.levers, each.scores, each.losses, limits) for each in (planner, again)
    ]
    assert chosen[0] is not None
    assert (chosen[0].levels == chosen[1].levels).all()


@pytest.mark.parametrize("by", sorted(RANKING))
def test_a_planner_without_scores_stays_one_and_says_so(planner, by):
    content = json.loads(json.dumps(stored_planner(replace(planner, scores=None))))
    again = restored(planner, content)
    assert again.scores is None
    with pytest.raises(GoalError, match="no scores were given") as error:
        again.reach(Goal("params", remove=0.3), allocation=by)
    assert "knapsack" in str(error.value)


def test_scores_of_some_groups_only_are_refused(planner):
    name = planner.costs.levers[0].group.name
    rest = {key: values for key, values in planner.scores.items() if key != name}
    with pytest.raises(GoalError, match=f"no scores of '{name}'"):
        replace(planner, scores=rest).reach(Goal("params", remove=0.3), allocation="global")
