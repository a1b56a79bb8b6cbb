"""Which layers and branches can be left out, as written down by hand; and choosing among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.zoo.toys import CASES, depth_of, everything_in
from torch import nn

from prunekit.errors import SelectionError
from prunekit.graph import Groups, find_groups, trace
from prunekit.plan import Goal, allocate

MLP = {"narrow:branch": ["narrow"]}
TRANSFORMER = {"attention:branch": ["attention"]} | MLP
EXPERTS = {"down:branch": ["down"]}

EXPECTED: dict[str, dict[str, list[str]]] = {
    "basic blocks": {"blocks:layer": ["blocks.0"]},  # Block 1 changes the width.
    "bottlenecks": {"blocks:layer": ["blocks.1"]},
    "pre-activation": {"blocks:layer": ["blocks.0", "blocks.1"]},
    "inverted residual": {"blocks:layer": ["blocks.0"]},
    "grouped convolution": {"blocks:layer": ["blocks.0"]},
    "c2f": {"blocks:layer": ["blocks.0", "blocks.1"]},
    "in place": {"branch:branch": ["branch"]},
    "convnext": MLP,
    "rms norm": MLP,
    "rms norm by hand": MLP,
    "tied weights": MLP,
    "tokens of an image": MLP,
    "state space": MLP,
    "attention": TRANSFORMER,
    "attention spelt out": TRANSFORMER,
    "grouped-query attention": TRANSFORMER,
    "grouped-query attention, spelt by the operator": TRANSFORMER,
    "multi-query attention": TRANSFORMER,
    "fused attention": TRANSFORMER,
    "fused attention, heads first": TRANSFORMER,
    "fused attention, unbound": TRANSFORMER,
    "rotary code by halves": TRANSFORMER,
    "rotary code by complex numbers": TRANSFORMER,
    "linear attention": TRANSFORMER,
    "window attention": TRANSFORMER,
    "convolutions around attention": {"attention:branch": ["attention"]},
    "einsum": {"out:branch": ["out"]},
    "experts in a loop": {"experts.*:branch": ["experts.2"]},  # All of them, called after the last weight.
    "added in place": {"middle:branch": ["middle"]},
    "experts, gathered": EXPERTS,
    "experts, one hot": EXPERTS,
    "experts, scattered": EXPERTS,
    "experts, all": EXPERTS,
    "experts, computed with": EXPERTS,
}
"""By the name of a toy: its groups, and the path of each unit; toys that are not named have none."""


def paths(groups: Groups) -> dict[str, list[str]]:
    return {group.name: [part.path for part in groups.bypasses[group.name]] for group in groups}


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_layers_and_branches_are_those_found_by_hand(name):
    assert paths(depth_of(name)) == EXPECTED.get(name, {})


@pytest.mark.parametrize("name", EXPECTED)
def test_a_unit_frees_exactly_the_tensors_it_names(name):
    """Oracle: the names of the tensors under its path; a branch frees the norm before it as well."""
    groups = depth_of(name)
    for group in groups:
        for unit, part in enumerate(groups.bypasses[group.name]):
            own = {piece.tensor for piece in group.slices if piece.units[0] == unit}
            under = {
                tensor for tensor in everything_in(name).graph.tensors.values() if is_under(tensor, part.path)
            }
            assert under
            assert under <= own | {tensor for tensor in under if not groups.graph.tensor(tensor).ndim}
            if group.name.endswith(":layer"):
                assert own <= under


def is_under(tensor: str, path: str) -> bool:
    return tensor == path or tensor.startswith(f"{path}.")


class Block(nn.Module):
    """A transformer layer in miniature: two branches."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.second = nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, width))

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


class Gate(nn.Module):
    """Times its own gate: no residual connection, though input and output have the same labels."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 8)

    def forward(self, x):
        return x * torch.sigmoid(self.gate(x))


class Net(nn.Module):
    def __init__(self, *parts: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(8, 3)
        self.twice = twice

    def forward(self, x):
        x = self.stem(x)
        for part in self.parts:
            x = part(part(x)) if self.twice else part(x)
        return self.head(x)


def found_in(model: nn.Module, **choice) -> Groups:
    groups = find_groups(trace(model.eval(), torch.randn(2, 4)))
    return groups.select(granularity=("layer", "branch"), **choice) if choice else groups


def paths_of_depth(groups: Groups) -> dict[str, list[str]]:
    return {
        group.name: [part.path for part in groups.bypasses[group.name]] for group in groups if group.is_depth
    }


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            lambda: Net(Block(), Block()),
            {
                "parts:layer": ["parts.0", "parts.1"],
                "parts.*.first:branch": ["parts.0.first", "parts.1.first"],
                "parts.*.second:branch": ["parts.0.second", "parts.1.second"],
            },
        ),
        (
            lambda: Net(nn.Sequential(Block(), Block()), Block()),
            {  # A stage of two blocks is no layer of its own, its blocks are.
                "parts.0:layer": ["parts.0.0", "parts.0.1"],
                "parts:layer": ["parts.1"],
                "parts.*.*.first:branch": ["parts.0.0.first", "parts.0.1.first"],
                "parts.*.*.second:branch": ["parts.0.0.second", "parts.0.1.second"],
                "parts.*.first:branch": ["parts.1.first"],
                "parts.*.second:branch": ["parts.1.second"],
            },
        ),
        (lambda: Net(Gate(), nn.LayerNorm(8), nn.Linear(8, 8)), {}),
        (lambda: Net(Block(), twice=True), {}),  # What frees no weight by itself is no unit.
    ],
    ids=["stack", "stages", "no residual connection", "called twice"],
)
def test_what_a_layer_is(model, expected):
    assert paths_of_depth(found_in(model())) == expected


class Pair(nn.Module):
    """Gives what it changed and what it changed it by."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        change = self.linear(x[0])
        return x[0] + change, x[1] * change


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.parts = nn.ModuleList([Pair(), Pair()])

    def forward(self, x):
        x = self.stem(x)
        x = (x, x)
        for part in self.parts:
            x = part(x)
        return self.head(x[0] + x[1])


def sharing() -> Net:
    """The second block has the first one's weights."""
    net = Net(Block(), Block())
    for mine, other in zip(net.parts[1].modules(), net.parts[0].modules(), strict=True):
        mine._parameters.update(other._parameters)
    return net


class Widening(nn.Module):
    def __init__(self, arriving: int, leaving: int) -> None:
        super().__init__()
        self.linear = nn.Linear(arriving, leaving)

    def forward(self, x):
        return torch.relu(self.linear(x))


@pytest.mark.parametrize(
    ("model", "reason", "count"),
    [
        (lambda: Net(Widening(8, 12), Widening(12, 8)), "differs from all its inputs", 2),
        (lambda: Net(Gate(), Gate()), "no addition leads what it is given", 2),
        (lambda: Net(Block(), twice=True), "called several times", 1),
        (Pairs, "several of the tensors it computes", 2),
        (sharing, "its parameters are read elsewhere", 2),
        (lambda: Net(Block(), Block()), "", 0),
        (
            lambda: Net(nn.LayerNorm(8), nn.LayerNorm(8)),
            "",
            0,
        ),  # What calls nothing is no layer to begin with.
    ],
    ids=["widths", "gates", "called twice", "several outputs", "shared weights", "layers", "norms"],
)
def test_what_looks_like_a_layer_and_is_none_is_frozen_with_the_reason(model, reason, count):
    groups = find_groups(trace(model().eval(), torch.randn(2, 4)))
    stuck = {
        item.name: item for item in groups.select(granularity="layer").frozen if item.operator == "layer"
    }
    assert list(stuck) == [f"parts.{place}" for place in range(count)]
    assert all(reason in item.reason for item in stuck.values())
    assert all(is_under(part.tensor, name) for name, item in stuck.items() for part in item.slices)
    assert not any(item.operator == "layer" for item in groups.select(granularity="neuron").frozen)


def test_layers_are_chosen_one_by_one():
    model = Net(Block(), Block(), Block())
    groups = find_groups(trace(model.eval(), torch.randn(2, 4)))
    fewer = groups.select(granularity="layer", ignore="parts.0")
    assert fewer["parts:layer"].pinned == {0}
    assert fewer.fingerprint == groups.fingerprint
    left_out = {axis.name: axis.reason for axis in fewer.frozen}
    assert left_out["parts.0"] == "it matches the `ignore` pattern 'parts.0'"
    assert groups.select(granularity="layer", only="parts.2")["parts:layer"].pinned == {0, 1}
    assert not len(groups.select(granularity="layer", ignore="parts.?"))
    for wanted, goes in ((0.3, 1), (0.6, 2), (0.99, 2)):  # The first stays whatever is asked.
        scores = {"parts:layer": np.array([0.0, 1.0, 2.0], dtype=np.float32)}
        plan = allocate(fewer, scores, Goal("sparsity", remove=wanted))
        assert plan.removed("parts:layer") == tuple(range(1, 1 + goes))
    with pytest.raises(SelectionError, match="matches no prunable group"):
        groups.select(granularity="layer", ignore="parts.7")


def test_a_branch_of_a_layer_that_may_go_whole_is_not_chosen_with_it():
    groups = find_groups(trace(Net(Block(), Block()).eval(), torch.randn(2, 4)))
    assert paths(groups.select(granularity=("layer", "branch"))) == {"parts:layer": ["parts.0", "parts.1"]}
    assert set(paths(groups.select(granularity="branch"))) == {
        "parts.*.first:branch",
        "parts.*.second:branch",
    }
    chosen = groups.select(granularity=("layer", "branch"), ignore="parts:layer")
    assert set(paths(chosen)) == {"parts.*.first:branch", "parts.*.second:branch"}


class Stage(nn.Module):
    """A residual connection around a body of residual blocks."""

    def __init__(self, *, listed: bool) -> None:
        super().__init__()
        blocks = (Block(), Block())
        self.body = nn.ModuleList(blocks) if listed else nn.Sequential(*blocks)
        self.tail = nn.Linear(8, 8)

    def forward(self, x):
        y = x
        for block in self.body:
            y = block(y)
        return x + self.tail(y)


@pytest.mark.parametrize("listed", [False, True])
def test_a_stage_of_blocks_is_no_layer_and_of_nested_branches_the_smaller_ones_are_chosen(listed):
    groups = find_groups(trace(Net(Stage(listed=listed)).eval(), torch.randn(2, 4)))
    layers = groups.select(granularity="layer")
    assert paths(layers) == {"parts.0.body:layer": ["parts.0.body.0", "parts.0.body.1"]}
    branches = groups.select(granularity="branch")
    assert set(paths(branches)) == {"parts.*.body.*.first:branch", "parts.*.body.*.second:branch"}
    reasons = {axis.name: axis.reason for axis in branches.frozen}
    assert reasons["parts.0.tail"] == "a smaller branch that may go lies in it"
