"""Nets with other inputs and outputs than one tensor each."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from tests.zoo.case import Case, group, image, into, out, rows
from torch import nn


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(5, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, left, right):
        return self.last(torch.relu(self.left(left) + self.right(right)))


class ByKeyword(TwoInputs):
    def forward(self, left, *, right=None, scale: float = 1.0):
        return super().forward(left, right) * scale


class Levels(NamedTuple):
    fine: torch.Tensor
    coarse: torch.Tensor


class Trunk(nn.Module):
    """Two heads on one trunk; ``shape`` says what they are given back in."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.shape = shape
        self.trunk = nn.Conv2d(3, 8, 3, 2, 1)
        self.deeper = nn.Conv2d(8, 6, 3, 2, 1)
        self.fine = nn.Conv2d(8, 4, 1)
        self.coarse = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = torch.relu(self.trunk(x))
        fine, coarse = self.fine(x), self.coarse(torch.relu(self.deeper(x)))
        if self.shape == "dict":
            return OrderedDict(fine=fine, coarse={"logits": coarse, "labels": coarse.argmax(1)})
        if self.shape == "named":
            return Levels(fine, coarse)
        return fine, [coarse], None


class Features(nn.Module):
    """Gives its hidden features back too, so they keep their width."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 7)
        self.last = nn.Linear(7, 4)

    def forward(self, x):
        features = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(features))), features


PAIR = (group("hidden", 8, out("left", "right"), into("last")),)
PAIR_ENDS = {"input": into("left", "right"), "output": out("last")}
TRUNK = (
    group("channel", 8, out("trunk"), into("deeper", "fine")),
    group("channel", 6, out("deeper"), into("coarse")),
)
TRUNK_ENDS = {"input": into("trunk"), "output": out("fine", "coarse")}

CASES = (
    Case("several inputs", TwoInputs, lambda: (torch.randn(2, 6), torch.randn(2, 5)), PAIR, PAIR_ENDS),
    Case(
        "keyword inputs",
        ByKeyword,
        rows(6),
        PAIR,
        PAIR_ENDS,
        kwargs=lambda: {"right": torch.randn(2, 5), "scale": 0.5},
    ),
    Case("several outputs", lambda: Trunk("tuple"), image(), TRUNK, TRUNK_ENDS),
    Case(
        "dict output",
        lambda: Trunk("dict"),
        image(),
        TRUNK,
        {"input": into("trunk"), "output": out("fine") | out("coarse")},
    ),
    Case("named tuple output", lambda: Trunk("named"), image(), TRUNK, TRUNK_ENDS),
    Case(
        "features as output",
        Features,
        rows(6),
        (group("neuron", 7, out("second"), into("last")),),
        {"input": into("first"), "output": out("first", "last") | into("second")},
    ),
)
