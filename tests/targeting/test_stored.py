"""A planner that was written down and read back predicts what it predicted before."""

import json

import numpy as np
import pytest
import torch
from tests.workflow.tiny_workload import Net

from prunekit.errors import MeasurementError
from prunekit.measure import Target
from prunekit.targeting import measure_target, restore_planner, stored_planner

IMAGES = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    torch.manual_seed(0)
    return measure_target(
        Net().eval(),
        IMAGES,
        target=Target("torch_eager"),
        folder=tmp_path_factory.mktemp("exports"),
        tables=tmp_path_factory.mktemp("tables"),
        loss=lambda model: float(sum(each.detach().abs().sum() for each in model.parameters())),
        granularity="channel",
        most_levels=3,
        variants=2,
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
    keep = planner.costs.levers.masks(last)
    learnt = [each.costs.learnt([(keep, 2.0)]).ms.at(last) for each in (planner, again)]
    assert learnt[0] == learnt[1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", "prunekit.target/0", "another schema"),
        ("fingerprint", "0" * 64, "another model"),
        ("times", "0" * 16, "its machine"),
    ],
)
def test_what_belongs_elsewhere_is_refused(planner, key, value, message):
    with pytest.raises(MeasurementError, match=message):
        restored(planner, {**stored_planner(planner), key: value})
