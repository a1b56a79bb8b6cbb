"""A planted machine: what models and operations take there is a formula, and nothing is timed."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from tests.zoo.oracles import counted_cost
from torch import nn

from prunekit.graph import find_groups, trace
from prunekit.measure import LatencyComparison, Target
from prunekit.measure.latency import _noise, paired_speedup, percentiles
from prunekit.measure.operation import Operation, frame_of
from prunekit.measure.rounds import Pace
from prunekit.targeting import Timing, costs, operator_times, planner

REST_MS = 0.2
MS_PER_MAC = 4e-5
MS_PER_PARAMETER = 1e-5
CALL_MS = 0.01


class Block(nn.Module):
    """``x + down(relu(up(x)))``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = [Block(24, hidden) for hidden in (48, 64, 96, 64)]
    return nn.Sequential(nn.Linear(12, 24), *blocks, nn.Linear(24, 5)).eval()


class Runner:
    """Takes the time it was given."""

    def __init__(self, ms: float) -> None:
        self.ms, self.inputs = ms, {}


class PlantedRig:
    """In the place of :class:`prunekit.targeting.Rig`; a module takes what its MACs and parameters make.

    Attributes:
        opened: the operations that were opened, in order.
    """

    seconds = 0.0

    def __init__(self, inputs: Any, *, drift: float = 1.0) -> None:
        self.target = Target("torch_eager", threads=1, batch=len(inputs[0]))
        self.inputs, self.drift, self.batch, self.seconds = inputs, drift, len(inputs[0]), 0.0
        self.opened: list[Operation] = []

    def quietly(self):
        return nullcontext(True)

    def fitted(self, *_: Any) -> PlantedRig:
        return self

    def artifact(self, module: nn.Module, name: str) -> nn.Module:
        return module

    def open_artifact(self, artifact: nn.Module) -> Runner:
        params, macs = counted_cost(artifact, (self.inputs, {}))
        return Runner(REST_MS + MS_PER_MAC * macs * self.drift + MS_PER_PARAMETER * params)

    def node_times(self, artifact: nn.Module) -> tuple[()]:
        return ()

    def open_operation(self, operation: Operation) -> Runner:
        self.opened.append(operation)
        return Runner(operation_ms(operation))


def operation_ms(operation: Operation) -> float:
    """What an operation takes alone: more than in a model, as runtimes have it."""
    along = 0.0 if frame_of(operation) == operation else CALL_MS
    return along + 2e-5 * operation.macs + 1e-6 * operation.elements


def compared(dense: Runner, pruned: Runner, **_: Any) -> LatencyComparison:
    """A comparison of two runners that never waver."""
    return comparison_of(*(np.full(20, runner.ms) for runner in (dense, pruned)))


def comparison_of(dense_ms: np.ndarray, pruned_ms: np.ndarray) -> LatencyComparison:
    """A comparison that took a second."""
    return LatencyComparison(
        dense=percentiles(dense_ms),
        pruned=percentiles(pruned_ms),
        speedup=paired_speedup(dense_ms, pruned_ms),
        noise=_noise(dense_ms, pruned_ms),
        warmup=1,
        seconds=1.0,
        stopped_early=False,
        dense_ms=dense_ms,
        pruned_ms=pruned_ms,
        dense_first=np.zeros(len(dense_ms), dtype=np.bool_),
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Real measurements take no longer than their pairs do."""
    monkeypatch.setitem(Timing.__init__.__kwdefaults__, "seconds", 0.05)


def in_rounds(runners, pace: Pace, *, rounds: int = 3, **_: Any):
    pace.samples.append(pace.runner.ms)
    return np.array([[runner.ms / pace.runner.ms] * rounds for runner in runners])


@pytest.fixture
def planted(monkeypatch):
    """Nothing is timed: all that would be timed answers what was planted."""
    plant(monkeypatch)


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "compare_latency", compared)
    monkeypatch.setattr(importlib.import_module("prunekit.targeting.reach"), "measure_beside", compared)
    monkeypatch.setattr(operator_times, "time_rounds", in_rounds)


@pytest.fixture(scope="session")
def measured(tmp_path_factory) -> planner.Planner:
    """The planner of a small residual network on the planted machine."""
    model, inputs = network(), torch.randn(4, 12)
    groups = find_groups(trace(model, inputs))
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        patch.setattr(planner, "rig_for", lambda *_, **__: PlantedRig((inputs,)))
        return planner.measure_target(
            model,
            target=Target("torch_eager", threads=1, batch=4),
            timing=Timing(tables=tmp_path_factory.mktemp("tables")),
            groups=groups,
        )
