"""The operations of a model multiply as much as the groups say, at any widths and any batch.

Oracles: ``Groups.cost``, and a trace at another batch size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.zoo.toys import BY_NAME, everything_in, groups_of
from torch import nn

from prunekit.graph import find_groups, trace
from prunekit.graph.operations import Operations
from prunekit.measure.operation import TIMED, onnx_of, torch_of

NAMES = (
    "basic blocks",
    "grouped convolution",
    "depthwise with multiplier",
    "squeeze-and-excite",
    "one dimension",
    "three dimensions",
    "dense block",
    "gated unit, chunk",
    "channel shuffle",
    "convnext",
    "tied weights",
    "attention",
    "attention spelt out",
    "grouped-query attention",
    "grouped-query attention, spelt by the operator",
    "window attention",
    "linear attention",
    "einsum",
    "bilinear",
    "unfold and fold",
    "lstm",
    "state space",
    "experts, all",
    "embeddings added up",
)


def random_masks(groups, seed: int):
    """At least one unit of each block stays, as many in every block."""
    draw = np.random.default_rng(seed)
    for group in groups:
        left = draw.integers(max(1, group.least // group.blocks), group.units_per_block + 1)
        order = draw.permuted(np.arange(group.units_per_block)[None].repeat(group.blocks, 0), axis=1)
        yield group.name, (order < left).ravel()


@pytest.mark.parametrize("name", NAMES)
def test_macs_are_those_of_the_groups(name):
    groups = groups_of(name)
    operations, batch = Operations(groups), groups.graph.batch_size
    for keep in ({}, *(dict(random_masks(groups, seed)) for seed in range(3))):
        counted = sum(operation.macs for operation in operations.at(keep))
        assert counted // batch == groups.cost(keep).macs


@pytest.mark.parametrize("name", NAMES)
def test_macs_follow_the_batch(name):
    groups = groups_of(name)
    operations = Operations(groups)
    if not groups.graph.batch_is_open:
        pytest.skip("the toy takes one batch size")
    at_once = sum(operation.macs for operation in operations.at({}, batch=1))
    for batch in (2, 3, 8):
        assert sum(operation.macs for operation in operations.at({}, batch=batch)) == batch * at_once


@pytest.mark.parametrize("name", ["basic blocks", "attention", "grouped-query attention", "lstm", "convnext"])
def test_operations_at_a_batch_are_those_of_a_trace_at_it(name):
    """At another batch size the same shapes come out as when the model is traced with it."""
    case = BY_NAME[name]
    (first, *rest), kwargs = case.inputs()
    assert not rest
    assert not kwargs
    traced = find_groups(trace(case.model(), torch.cat([first, first, first])))
    assert Operations(groups_of(name)).at({}, batch=3 * len(first)) == Operations(traced).at({})


@pytest.mark.parametrize(
    "name", ["grouped convolution", "three dimensions", "grouped-query attention", "attention"]
)
def test_timed_operations_of_models_can_be_built(name):
    groups = everything_in(name)
    draw = dict(random_masks(groups_of(name), 2))
    timed = [operation for operation in Operations(groups).at(draw) if operation.kind in TIMED]
    assert timed
    for operation in timed:
        content, inputs = onnx_of(operation)
        module, args = torch_of(operation)
        assert content
        assert len(inputs) == len(args)
        assert module(*args).shape[:2] == operation.output[:2]


def test_work_on_weights_alone_is_left_out():
    """A norm of the weights is computed once by every runtime; ``Groups.cost`` counts it, these do not."""
    groups = groups_of("spectral norm")
    operations = Operations(groups).at({})
    assert sum(operation.macs for operation in operations) // groups.graph.batch_size < groups.cost().macs


def test_operations_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 5, 1))
    groups = find_groups(trace(model, torch.randn(2, 3, 6, 6)))
    first, relu, second = Operations(groups).at({}, batch=1)
    assert (first.kind, first.inputs, first.output) == (
        "convolution",
        ((1, 3, 6, 6), (8, 3, 3, 3)),
        (1, 8, 6, 6),
    )
    assert first.setting("padding") == (1, 1)
    assert first.setting("groups") == 1
    assert first.macs == 8 * 36 * 27
    assert relu.kind == "elementwise"
    assert not relu.is_timed
    assert second.inputs == ((1, 8, 6, 6), (5, 8, 1, 1), (5,))
