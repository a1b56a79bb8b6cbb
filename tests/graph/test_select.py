"""``Groups.select``: what is asked for stays prunable, the rest is frozen with that reason."""

from __future__ import annotations

import numpy as np
import pytest
from tests.zoo.toys import groups_of

from prunekit.errors import SelectionError
from prunekit.plan import Goal, allocate
from prunekit.types import WIDTHS, Granularity


def names(groups) -> set[str]:
    return {group.name for group in groups}


def touching(groups, tensor: str) -> set[str]:
    return {group.name for group in groups if tensor in group.tensors}


def test_granularity():
    groups = groups_of("attention")
    heads = groups.select(granularity=[Granularity.HEAD])
    assert [group.size for group in heads] == [3]
    assert names(groups.select(granularity=["head"])) == names(heads)
    assert names(groups.select(granularity=WIDTHS)) == names(groups)
    assert names(groups.select(granularity=["neuron", "hidden"])) == {
        group.name for group in groups if group.granularity in ("neuron", "hidden")
    }
    assert {group.granularity for group in groups_of("grouped convolution").select(granularity=WIDTHS)} == {
        Granularity.CHANNEL
    }


@pytest.mark.parametrize(
    ("pattern", "tensor"),
    [
        ("blocks.0.conv1.weight", "blocks.0.conv1.weight"),
        ("blocks.0.conv1", "blocks.0.conv1.weight"),
        ("blocks.0.bn1", "blocks.0.bn1.weight"),
        ("blocks.0.bn1.running_mean", "blocks.0.bn1.weight"),
        ("stem", "stem.weight"),
    ],
)
def test_only_by_module_or_tensor(pattern, tensor):
    groups = groups_of("basic blocks")
    assert names(groups.select(only=[pattern])) == touching(groups, tensor)


def test_only_by_group_and_by_shape_of_name():
    groups = groups_of("basic blocks")
    first = next(iter(groups)).name
    assert names(groups.select(only=[first])) == {first}
    assert names(groups.select(only=["blocks.1.*"])) == {
        group.name for group in groups if any(tensor.startswith("blocks.1.") for tensor in group.tensors)
    }
    assert names(groups.select(only=["*.down"])) == touching(groups, "blocks.1.down.0.weight")
    assert names(groups.select(only=["*"])) == names(groups)


def test_ignore_wins_over_only():
    groups = groups_of("basic blocks")
    left = groups.select(only=["blocks.*"], ignore=["stem"])
    assert names(left) == names(groups) - touching(groups, "stem.weight")
    assert names(groups.select(ignore=["*"])) == set()


def test_what_is_left_out_is_frozen_with_that_reason():
    groups = groups_of("basic blocks")
    left = groups.select(granularity=WIDTHS, ignore=["stem"])
    new = left.frozen[len(groups.frozen) :]
    assert left.frozen[: len(groups.frozen)] == groups.frozen
    assert {item.name for item in new} == touching(groups, "stem.weight")
    assert {(item.operator, item.reason) for item in new} == {
        ("selection", "it matches the `ignore` pattern 'stem'")
    }
    reasons = {item.reason for item in groups.select(granularity=["head"]).frozen}
    assert "granularity channel was not asked for" in reasons
    reasons = {item.reason for item in groups.select(only=["stem"]).frozen}
    assert "it matches no pattern of `only`" in reasons


def test_selecting_changes_neither_the_groups_nor_their_fingerprint_nor_their_cost():
    groups = groups_of("basic blocks")
    before = names(groups)
    left = groups.select(ignore=["stem"])
    assert names(groups) == before
    assert left.fingerprint == groups.fingerprint
    assert left.cost() == groups.cost()
    name = next(iter(left)).name
    keep = {name: np.arange(left[name].size) > 2}
    assert left.cost(keep) == groups.cost(keep)


def test_selecting_twice_leaves_what_both_leave():
    groups = groups_of("basic blocks")
    twice = groups.select(only=["blocks.*"]).select(ignore=["blocks.0.conv1"])
    assert names(twice) == names(groups) - touching(groups, "blocks.0.conv1.weight")


@pytest.mark.parametrize("argument", ["only", "ignore"])
@pytest.mark.parametrize("pattern", ["layer9.*", "conv1", "blocks.0.conv1.weigh", ""])
def test_a_pattern_that_matches_nothing_is_an_error(argument, pattern):
    with pytest.raises(SelectionError, match="matches no prunable group") as caught:
        groups_of("basic blocks").select(**{argument: ["blocks.*", pattern]})
    assert repr(pattern) in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.remedy


def test_an_unknown_granularity_is_an_error():
    with pytest.raises(SelectionError, match="'chanel' is not a granularity") as caught:
        groups_of("basic blocks").select(granularity=["chanel"])
    assert all(kind.value in caught.value.expected for kind in Granularity)


def test_an_unknown_group_is_an_error_that_lists_the_known_ones():
    groups = groups_of("perceptron")
    with pytest.raises(SelectionError, match="no prunable group 'nothing'") as caught:
        groups["nothing"]
    assert all(group.name in caught.value.expected for group in groups)


def test_a_group_left_out_is_no_longer_found():
    groups = groups_of("perceptron")
    first, second = (group.name for group in groups)
    left = groups.select(only=[second])
    assert first not in left
    assert second in left
    assert len(left) == 1
    assert left[second] is groups[second]
    with pytest.raises(SelectionError):
        left[first]


@pytest.mark.parametrize(
    "limits", [{"min_units": 0}, {"round_to": 0}, {"max_sparsity": 1.5}, {"min_units": 2.5}]
)
def test_limits_outside_their_range_are_errors(limits):
    groups = groups_of("perceptron")
    scores = {group.name: np.arange(group.size, dtype=np.float32) for group in groups}
    with pytest.raises(SelectionError) as caught:
        allocate(groups, scores, Goal("sparsity", remove=0.5), **limits)
    assert caught.value.where == next(iter(limits))


def test_limits_hold_for_every_group():
    groups = groups_of("basic blocks")
    scores = {group.name: np.arange(group.size, dtype=np.float32) for group in groups}
    plan = allocate(groups, scores, Goal("sparsity", remove=0.5), min_units=5, round_to=2)
    assert {after for _, after in plan.widths.values()} == {6}
