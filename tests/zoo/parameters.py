"""Nets whose parameters and buffers are not one per layer: tied, shared, unwrapped, frozen, plain tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.case import Case, at, group, image, into, norm, out, rows
from torch import nn


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 4))


class Turned(nn.Module):
    """Multiplies its neurons, taken as complex numbers, by complex parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.turn = nn.Parameter(torch.randn(8, dtype=torch.complex64))

    def forward(self, x):
        x = self.first(x)
        return self.last((torch.complex(torch.relu(x), torch.tanh(x)) * self.turn).real)


class Tied(nn.Module):
    """A language model in small: the embedding is the output layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.widen = nn.Linear(8, 16)
        self.narrow = nn.Linear(16, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(x + self.narrow(F.gelu(self.widen(x))))


class Recurrent(nn.Module):
    """One layer twice, so that what it gives is what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.step = nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.step(torch.relu(self.step(x)))))


class SharedHead(nn.Module):
    """One head over two feature maps, as detectors have."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 3, 2, 1)
        self.coarse = nn.Conv2d(8, 8, 3, 2, 1)
        self.tower = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        fine = torch.relu(self.fine(x))
        coarse = torch.relu(self.coarse(fine))
        return [self.head(torch.relu(self.tower(level))) for level in (fine, coarse)]


class Unwrapped(nn.Module):
    """A scale, a shift and a matrix that no layer wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.matrix = nn.Parameter(torch.randn(8, 7))
        self.vector = nn.Parameter(torch.randn(7))

    def forward(self, x):
        x = torch.relu(self.conv(x) * self.scale + self.shift)
        return torch.relu(x.mean((2, 3)) @ self.matrix) @ self.vector


def with_frozen_parameters() -> nn.Module:
    model = perceptron()
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    return model


class Buffers(nn.Module):
    """Buffers, saved and not, and a plain tensor attribute, along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("scale", torch.rand(1, 8, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(8, 1, 1), persistent=False)
        self.offset = torch.randn(8, 1, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x) * self.scale + self.shift) - self.offset)


class Slopes(nn.Module):
    """PReLU with a slope per channel, and one slope for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.slope = nn.PReLU(8)
        self.inner = nn.Conv2d(8, 6, 1)
        self.single = nn.PReLU()
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        return self.head(self.single(self.inner(self.slope(self.conv(x)))))


class Unused(nn.Module):
    """Has a layer and a buffer that its forward never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.spare = nn.Linear(8, 8)
        self.register_buffer("steps", torch.zeros(8))
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def dropout() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout2d(0.3), nn.Dropout(0.2), nn.Conv2d(8, 5, 1)
    )


def in_training_mode() -> nn.Module:
    return dropout().train()


ENDS = {"input": into("first"), "output": out("last")}
PERCEPTRON_GROUPS = (
    group("neuron", 8, out("0"), into("2")),
    group("neuron", 10, out("2"), into("4")),
)
PERCEPTRON_ENDS = {"input": into("0"), "output": out("4")}
DROPOUT_GROUPS = (group("channel", 8, out("0"), norm("1"), into("4")),)

CASES = (
    Case(
        "complex parameters",
        Turned,
        rows(6),
        (group("neuron", 8, out("first"), at("turn"), into("last")),),
        {"input": into("first"), "output": out("last")},
    ),
    Case("perceptron", perceptron, rows(6), PERCEPTRON_GROUPS, PERCEPTRON_ENDS),
    Case("batch of one", perceptron, rows(6, batch=1), PERCEPTRON_GROUPS, PERCEPTRON_ENDS),
    Case("frozen parameters", with_frozen_parameters, rows(6), PERCEPTRON_GROUPS, PERCEPTRON_ENDS),
    Case(
        "tied weights",
        Tied,
        lambda: (torch.randint(0, 20, (2, 5)),),
        (
            group("hidden", 8, at("embed.weight", 1), into("widen"), out("narrow")),
            group("neuron", 16, out("widen"), into("narrow")),
        ),
        {"aten.embedding.default": at("embed.weight", 0)},
    ),
    Case(
        "parameter used twice",
        Recurrent,
        rows(6),
        (group("neuron", 8, out("first", "step"), into("step", "last")),),
        ENDS,
    ),
    Case(
        "shared head",
        SharedHead,
        image(),
        (
            group("channel", 8, out("fine", "coarse"), into("coarse", "tower")),
            group("channel", 6, out("tower"), into("head")),
        ),
        {"input": into("fine"), "output": out("head")},
    ),
    Case(
        "unwrapped parameters",
        Unwrapped,
        image(),
        (
            group("channel", 8, at("conv.weight"), at("scale"), at("shift", 1), at("matrix", 0)),
            group("neuron", 7, at("matrix", 1), at("vector")),
        ),
        {"input": into("conv")},
    ),
    Case(
        "buffers",
        Buffers,
        image(),
        (group("channel", 8, out("conv"), at("scale", 1), at("shift"), at("offset"), into("head")),),
        {"input": into("conv"), "output": out("head")},
    ),
    Case(
        "slopes",
        Slopes,
        image(),
        (
            group("channel", 8, out("conv"), at("slope.weight"), into("inner")),
            group("channel", 6, out("inner"), into("head")),
        ),
        {"input": into("conv"), "output": out("head")},
    ),
    Case("unused tensors", Unused, rows(6), (group("neuron", 8, out("first"), into("last")),), ENDS),
    Case("dropout", dropout, image(), DROPOUT_GROUPS, {"input": into("0"), "output": out("4")}),
    Case(
        "training mode", in_training_mode, image(), DROPOUT_GROUPS, {"input": into("0"), "output": out("4")}
    ),
)
