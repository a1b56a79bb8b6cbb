"""``form="own class"``: the user's class, whatever has to be left out for it, and every word about that."""

from __future__ import annotations

import pytest
import torch
from tests.zoo.toys import BY_NAME
from torch import nn

import prunekit as pk
from prunekit.errors import PrunekitError, SelectionError

UNABLE = ("padded shortcut", "flatten by a number", "gated unit, slices")
"""Toys whose class cannot follow half of all their widths."""


@pytest.mark.parametrize("name", UNABLE)
def test_the_class_stays_or_the_error_says_what_it_cannot_follow(name):
    case = BY_NAME[name]
    model = case.model()
    able = pk.prune(case.model(), *case.inputs())
    try:
        pruned = pk.prune(model, *case.inputs(), form="own class")
    except SelectionError as error:
        assert "cannot" in str(error) or "can be pruned" in str(error)  # noqa: PT017
        assert "Frozen:" in error.remedy  # noqa: PT017
        return
    assert type(pruned.model) is type(model)
    assert (able.form, pruned.form) == ("graph module", "own class")
    left_out = {item.name for item in pruned.frozen if item.operator == "own class"}
    assert left_out
    assert left_out == {group.name for group in able.groups} - {group.name for group in pruned.groups}
    assert all(item.reason for item in pruned.frozen if item.operator == "own class")
    assert pruned.proof.passed


def test_only_what_the_class_cannot_follow_is_left_out():
    """The width of a head is a number in this class, how many there are is not."""
    case = BY_NAME["grouped-query attention, spelt by the operator"]
    pruned = pk.prune(case.model(), *case.inputs(), form="own class")
    left_out = [item for item in pruned.frozen if item.operator == "own class"]
    assert {item.name for item in left_out} == {"attention.q:head_dim", "attention.v:head_dim"}
    assert all(item.reason.startswith("Encoder ") for item in left_out)
    assert {group.granularity for group in pruned.groups} == {"head", "hidden", "neuron"}


def test_nothing_is_left_out_where_nothing_has_to_be():
    for name in ("rms norm", "lstm"):
        case = BY_NAME[name]
        free = pk.prune(case.model(), *case.inputs())
        held = pk.prune(case.model(), *case.inputs(), form="own class")
        assert held.plan == free.plan
        assert {item.operator for item in held.frozen} == {item.operator for item in free.frozen}


class Numbers(nn.Module):
    """Its only width is a number in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(4, 5)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).view(-1, 2, 4).sum(1))


def test_a_class_that_can_follow_nothing_is_refused():
    model, x = Numbers(), torch.randn(2, 6)
    with pytest.raises(PrunekitError) as caught:
        pk.prune(model, x, form="own class", granularity="neuron")
    assert caught.value.given
    assert caught.value.remedy
