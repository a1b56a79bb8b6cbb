"""Nets that contract by name, repeat, fold and move: einsum, repeat, pixel shuffle, windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.case import Case, at, group, image, into, out, rows
from torch import nn


class NamedProducts(nn.Module):
    """Attention whose weights keep heads and head dimensions apart, all products einsums."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 10)
        self.q, self.k = (nn.Parameter(torch.randn(10, 3, 4)) for _ in range(2))
        self.v, self.out = nn.Parameter(torch.randn(10, 3, 5)), nn.Parameter(torch.randn(3, 5, 10))
        self.head = nn.Linear(10, 7)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = (torch.einsum("bld,dhe->blhe", x, weight) for weight in (self.q, self.k, self.v))
        weights = torch.einsum("blhe,bmhe->bhlm", q, k).softmax(-1)
        mixed = torch.einsum("bhlm,bmhf->blhf", weights, v)
        return self.head(x + torch.einsum("blhf,hfd->bld", mixed, self.out))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 7), nn.Linear(4, 5)
        self.meet = nn.Bilinear(7, 5, 9)
        self.last = nn.Linear(9, 3)

    def forward(self, left, right):
        return self.last(torch.relu(self.meet(torch.tanh(self.left(left)), torch.tanh(self.right(right)))))


class RankOne(nn.Module):
    """A weight that is the outer product of two vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(7, 4)
        self.rows, self.columns = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(7))

    def forward(self, x):
        return self.last(torch.relu(torch.relu(self.first(x)) @ torch.outer(self.rows, self.columns)))


class Rolled(nn.Module):
    """Rolls over space, which no channel notices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)).roll((1, 2), (2, 3)))


class Repeating(nn.Module):
    """Repeats its neurons one after the other, again so, and each in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(10, 7)
        self.third, self.last = nn.Linear(21, 9), nn.Linear(18, 4)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x)).repeat(1, 2)))
        return self.last(torch.relu(self.third(x.tile(3))).repeat_interleave(2, -1))


def pixels() -> nn.Module:
    """Space into channels, and channels into space."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.PixelUnshuffle(2),
        nn.Conv2d(24, 20, 1),
        nn.PixelShuffle(2),
        nn.Conv2d(5, 4, 1),
    )


class Folding(nn.Module):
    """A convolution as windows times a matrix, and its windows put back overlapping nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(7, 5, 1)
        self.mix = nn.Parameter(torch.randn(28, 54) / 8)

    def forward(self, x):
        windows = self.mix @ F.unfold(torch.relu(self.stem(x)), 3, padding=1)
        return self.head(torch.relu(F.fold(windows, (16, 16), 2, stride=2)))


class Sliding(nn.Module):
    """Windows of three steps of a sequence, each window's values in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(24, 4)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).unfold(1, 3, 3).flatten(2))


class Moved(nn.Module):
    """Dimensions moved, swapped and moved back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Linear(6, 8), nn.Conv1d(8, 9, 1), nn.Linear(9, 4)

    def forward(self, x):
        x = torch.relu(self.conv(torch.relu(self.first(x)).movedim(-1, 1)))
        return self.last(x.swapaxes(0, 1).mT.swapdims(0, 2).moveaxis(0, 1).transpose(0, 1))


class Squeezed(nn.Module):
    """Drops every dimension of one, whichever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(torch.relu(self.conv(x)), 1).squeeze())


CASES = (
    Case(
        "einsum",
        NamedProducts,
        rows(5, 6),
        (
            group(
                "hidden",
                10,
                out("embed"),
                *(at(name, 0) for name in "qkv"),
                at("out", 2),
                into("head"),
            ),
            group("head", 3, *(at(name, 1) for name in "qkv"), at("out", 0)),
            # Heads and their dimensions lie in dimensions of their own, so all heads lose the same ones.
            group("head_dim", 4, at("q", 2), at("k", 2), mask_equivalent=False),
            group("head_dim", 5, at("v", 2), at("out", 1)),
        ),
        {"input": into("embed"), "output": out("head")},
    ),
    Case(
        "bilinear",
        Bilinear,
        lambda: (torch.randn(2, 6), torch.randn(2, 4)),
        (
            group("neuron", 7, out("left"), at("meet.weight", 1)),
            group("neuron", 5, out("right"), at("meet.weight", 2)),
            group("neuron", 9, out("meet"), into("last")),
        ),
        {"input": into("left", "right"), "output": out("last")},
    ),
    Case(
        "outer product",
        RankOne,
        rows(6),
        (group("neuron", 8, out("first"), at("rows")), group("neuron", 7, at("columns"), into("last"))),
        {"input": into("first"), "output": out("last")},
    ),
    Case(
        "roll over space",
        Rolled,
        image(),
        (group("channel", 8, out("stem"), into("head")),),
        {"input": into("stem"), "output": out("head")},
    ),
    Case(
        "repeat",
        Repeating,
        rows(6),
        (
            group("neuron", 5, out("first"), into("second")),
            group("neuron", 7, out("second"), into("third")),
            group("neuron", 9, out("third"), into("last")),
        ),
        {"input": into("first"), "output": out("last")},
    ),
    Case(
        "pixel shuffle",
        pixels,
        image(),
        (group("channel", 6, out("0"), into("2")), group("channel", 5, out("2"), into("4"))),
        {"input": into("0"), "output": out("4")},
    ),
    Case(
        "unfold and fold",
        Folding,
        image(),
        (group("channel", 6, out("stem"), at("mix", 1)), group("neuron", 7, at("mix", 0), into("head"))),
        {"input": into("stem"), "output": out("head")},
    ),
    Case(
        "sliding windows",
        Sliding,
        rows(12, 6),
        (group("neuron", 8, out("first"), into("last")),),
        {"input": into("first"), "output": out("last")},
    ),
    Case(
        "moved dimensions",
        Moved,
        rows(5, 6),
        (group("neuron", 8, out("first"), into("conv")), group("channel", 9, out("conv"), into("last"))),
        {"input": into("first"), "output": out("last")},
    ),
    Case(
        "squeeze",
        Squeezed,
        image(),
        (group("channel", 8, out("conv"), into("head")),),
        {"input": into("conv"), "output": out("head")},
    ),
)
