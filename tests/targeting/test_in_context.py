"""Operations are found again among what a runtime carried out, or nothing is said about them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.targeting.test_latency_model import convolution, linear
from torch import nn

from prunekit.graph import find_groups, trace
from prunekit.graph.operations import Operations
from prunekit.measure import RUNTIMES, Target
from prunekit.measure.operation import Operation
from prunekit.measure.runtimes import NodeTime
from prunekit.targeting.in_context import parts_of
from prunekit.targeting.rig import rig_for

TELLING = [name for name, runtime in RUNTIMES.items() if runtime.profile is not None]


def node_of(operation: Operation, ms: float, pad: int = 1) -> NodeTime:
    """As a runtime tells of it: the channels of images padded to blocks."""

    def padded(shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if len(shape) < 4 else (shape[0], -(-shape[1] // pad) * pad, *shape[2:])

    data, weights, *_ = operation.inputs
    return NodeTime(operation.kind, padded(data), weights, padded(operation.output), ms)  # pyright: ignore


ONE, TWO, THREE = convolution(8, 12), convolution(12, 20), linear(4, 20, 6)
READS, GIVES = (NodeTime(kind, (), (), (), 0.5) for kind in ("reads_layout", "gives_layout"))
OTHER = NodeTime("other", (), (), (), 2.0)


@pytest.mark.parametrize("pad", [1, 8, 16])
def test_times_are_those_of_the_operators_scaled_to_the_whole(pad):
    nodes = [node_of(ONE, 1.0, pad), node_of(TWO, 2.0, pad), OTHER, node_of(THREE, 3.0, pad)]
    assert parts_of([ONE, TWO, THREE], nodes, 16.0) == {ONE: (1, 2.0), TWO: (1, 4.0), THREE: (1, 6.0)}


def test_equal_operations_are_counted_and_added_up():
    nodes = [node_of(ONE, 1.0), node_of(TWO, 2.0), node_of(ONE, 3.0)]
    assert parts_of([ONE, TWO, ONE], nodes, 6.0) == {ONE: (2, 4.0), TWO: (1, 2.0)}


def test_those_that_look_alike_are_told_apart_by_their_order():
    """Twelve and sixteen channels fill one block."""
    first, second = convolution(8, 12), convolution(8, 16)
    nodes = [node_of(first, 1.0, 16), node_of(second, 3.0, 16)]
    assert parts_of([first, second], nodes, 4.0) == {first: (1, 1.0), second: (1, 3.0)}


def test_a_change_of_layout_counts_with_what_it_is_done_for():
    nodes = [GIVES, READS, node_of(ONE, 1.0), GIVES, READS, OTHER, READS, node_of(TWO, 2.0), READS]
    assert parts_of([ONE, TWO], nodes, 8.0) == {ONE: (1, 2.0), TWO: (1, 3.0)}


@pytest.mark.parametrize("missing", [0, 2])
def test_where_there_are_not_as_many_of_both_nothing_is_said(missing):
    nodes = [*[node_of(ONE, 1.0)] * missing, node_of(TWO, 2.0)]
    assert set(parts_of([ONE, TWO], nodes, 3.0)) == {TWO}


def test_no_nodes_no_parts():
    assert parts_of([ONE], [], 1.0) == {}
    assert parts_of([ONE], [replace(node_of(ONE, 1.0), ms=0.0)], 1.0) == {}


class Mixed(nn.Module):
    """Widths that fill no block, an image padded by hand, strides, a depthwise convolution, products."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 20, 3, stride=2), nn.Conv2d(20, 20, 3, groups=20)
        self.narrow, self.wide = nn.Conv2d(20, 12, 1), nn.Conv2d(12, 40, 1)
        self.mix, self.out = nn.Linear(40, 40), nn.Linear(40, 7)

    def forward(self, x):
        x = torch.relu(self.stem(nn.functional.pad(x, (0, 1, 0, 1))))
        x = torch.relu(self.deep(nn.functional.pad(x, (1, 1, 1, 1))))
        x = torch.relu(self.wide(self.narrow(x)))
        return self.out(torch.relu(self.mix(x.flatten(2).transpose(1, 2))).mean(1))


@pytest.mark.parametrize("runtime", TELLING)
def test_real_runtimes_are_understood(tmp_path, runtime):
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(2, 3, 32, 32)
    graph = trace(model, x)
    rig = rig_for(graph, Target(runtime, batch=2), tmp_path, seconds=0.0)
    operations = Operations(find_groups(graph)).at({}, batch=2)
    parts = parts_of(operations, rig.node_times(rig.artifact(model, "model")), 1.0)
    timed = {operation for operation in operations if operation.is_timed}
    assert set(parts) == timed
    assert len(timed) == 6
    assert 0 < sum(ms for _, ms in parts.values()) <= 1.0
