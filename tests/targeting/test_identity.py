"""A model's digest is its own: it follows weights, settings and inputs; a time's follows how it was taken."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from tests.targeting.conftest import PlantedRig
from torch import nn

from prunekit.graph import find_groups, trace
from prunekit.measure import Target
from prunekit.targeting import Timing, measure_target, planner
from prunekit.targeting.identity import model_digest, timing_digest


class Net(nn.Module):
    """Two convolutions with a batch norm, and a buffer that no state dict has."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, stride=stride)
        self.register_buffer("shift", torch.ones(4, 1, 1), persistent=False)

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x)) + self.shift)).mean((2, 3))


def network(stride: int = 1) -> Net:
    torch.manual_seed(0)
    return Net(stride).eval()


def digest(model: nn.Module, size: int = 8) -> str:
    return model_digest(model, find_groups(trace(model, torch.zeros(2, 1, size, size))))


def test_the_same_model_has_the_same_digest():
    model = network()
    assert digest(model) == digest(copy.deepcopy(model)) == digest(network())


def changed(name: str) -> Net:
    model = network(stride=2 if name == "stride" else 1)
    if name == "weight":
        model.second.weight.data[0, 0, 0, 0] += 1e-6
    elif name == "statistics":
        model.norm.running_mean[1] = 0.5
    elif name == "buffer":
        model.shift[2] = 2.0
    elif name == "dtype":
        model.norm.num_batches_tracked = model.norm.num_batches_tracked.int()
    elif name == "eps":
        model.norm.eps = 1e-3
    return model


@pytest.mark.parametrize("name", ["weight", "statistics", "buffer", "dtype", "stride", "eps"])
def test_another_model_of_the_same_groups_has_another_digest(name):
    assert digest(changed(name)) != digest(network())


def test_other_shapes_of_inputs_make_another_digest():
    assert digest(network(), size=10) != digest(network())


def test_weights_that_are_replaced_after_tracing_count():
    """A state dict that is loaded into a traced model changes its digest as it changes the model."""
    model = network()
    groups = find_groups(trace(model, torch.zeros(2, 1, 8, 8)))
    before = model_digest(model, groups)
    other = nn.Parameter(model.second.weight.detach() * 2)
    model.second.weight = other
    assert model_digest(model, groups) != before


def test_a_selection_does_not_change_it():
    model = network()
    groups = find_groups(trace(model, torch.zeros(2, 1, 8, 8)))
    assert model_digest(model, groups.select(only="first*")) == model_digest(model, groups)


@pytest.fixture
def may_be_real_time(monkeypatch):
    """Real-time scheduling is given, and nothing really changes."""
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: None)


TARGETS = (Target("torch_eager"), Target("torch_eager", batch=2), Target("onnxruntime"))


@pytest.mark.usefixtures("may_be_real_time")
def test_times_are_told_apart_by_target_and_by_how_they_are_taken():
    found = [timing_digest(target, real_time=way) for target in TARGETS for way in (False, True)]
    assert len(set(found)) == 2 * len(TARGETS)
    assert found == [timing_digest(target, real_time=way) for target in TARGETS for way in (False, True)]


def test_what_was_asked_for_and_refused_is_ordinary(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    for target in TARGETS:
        assert timing_digest(target, real_time=True) == timing_digest(target)


@pytest.mark.usefixtures("planted", "may_be_real_time")
def test_the_tables_of_two_ways_of_timing_are_two(tmp_path, monkeypatch):
    inputs, target = torch.zeros(4, 12), Target("torch_eager", batch=4)
    monkeypatch.setattr(planner, "rig_for", lambda *_, **__: PlantedRig((inputs,)))
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    for way in (False, True, False):
        measure_target(
            model, inputs, target=target, timing=Timing(tables=tmp_path, variants=2, real_time=way)
        )
    kept = {path.stem for path in tmp_path.glob("*.json")}
    assert kept == {timing_digest(target, real_time=way) for way in (False, True)}
