"""Nets whose tensors or operators are wrapped: weight and spectral norm, checkpoint, autocast, dtypes."""

from __future__ import annotations

import torch
from tests.zoo.case import Case, Place, at, group, image, into, out, rows
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint


def parametrized(parametrize) -> nn.Module:
    return nn.Sequential(
        parametrize(nn.Conv2d(3, 8, 3)),
        nn.ReLU(),
        parametrize(nn.Conv2d(8, 6, 3)),
        nn.ReLU(),
        nn.Flatten(),
        parametrize(nn.Linear(6 * 16, 7)),
        nn.Tanh(),
        nn.Linear(7, 5),
    )


class Wrappers(nn.Module):
    """A checkpoint, a disabled autocast and a part without gradients, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(11, 4)
        self.kept, self.wide = nn.Sequential(nn.Linear(8, 9), nn.ReLU()), nn.Linear(9, 10)
        self.fixed = nn.Linear(10, 11)

    def forward(self, x):
        x = checkpoint(self.kept, torch.relu(self.first(x)), use_reentrant=False)
        with torch.autocast("cpu", enabled=False):
            x = torch.relu(self.wide(x))
        with torch.no_grad():
            x = torch.relu(self.fixed(x))
        return self.last(x)


class Halved(torch.autograd.Function):
    """Half its input, with a gradient of its own and a region without gradients that says nothing new."""

    @staticmethod
    def forward(ctx, x):
        with torch.no_grad():
            return 0.5 * x

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore
        return 0.5 * gradient


class OwnGradient(nn.Module):
    """A function with its own gradient between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 4)

    def forward(self, x):
        x = Halved.apply(torch.relu(self.first(x)))
        return self.last(torch.relu(self.second(x)))


class LowPrecision(nn.Module):
    """One layer runs in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.low = nn.Linear(6, 8), nn.Linear(8, 10)
        self.back, self.last = nn.Linear(10, 7), nn.Linear(7, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.low(x)
        return self.last(torch.relu(self.back(x.to(self.back.weight.dtype))))


class Pinned(nn.Module):
    """A norm that goes through single precision, whatever arrives, as Llama's does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x):
        x = self.first(x)
        exact = x.to(torch.float32)
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-6)
        return self.last(self.scale * exact.to(x.dtype))


class Sized(nn.Module):
    """Takes another layer for short inputs than for long ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.long, self.short = nn.Linear(6, 8), nn.Linear(8, 9), nn.Linear(8, 9)
        self.last = nn.Linear(9, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.long(x) if x.shape[1] > 3 else self.short(x)))


class Alike(nn.Module):
    """How alike two inputs are: the cosine between what two layers make of them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(5, 8)

    def forward(self, left, right):
        return torch.cosine_similarity(self.left(left), self.right(right), -1)


def direction(name: str) -> set[Place]:
    """Rows of a layer with weight norm: of its lengths, its directions and its bias."""
    lengths, directions = (f"{name}.parametrizations.weight.original{part}" for part in (0, 1))
    return at(lengths) | at(directions) | at(f"{name}.bias")


def spectral(name: str) -> set[Place]:
    """Rows of a layer with spectral norm: of its weight, its left vector and its bias."""
    path = f"{name}.parametrizations.weight"
    return at(f"{path}.original") | at(f"{path}.0._u") | at(f"{name}.bias")


def reads_spectral(name: str) -> set[Place]:
    """Columns of a layer with spectral norm: of its weight and its right vector."""
    path = f"{name}.parametrizations.weight"
    return at(f"{path}.original", 1) | at(f"{path}.0._v")


CASES = (
    Case(
        "weight norm",
        lambda: parametrized(weight_norm),
        image(),
        (
            group(
                "channel",
                8,
                direction("0"),
                at("2.parametrizations.weight.original1", 1),
                mask_equivalent=False,
            ),
            group(
                "channel",
                6,
                direction("2"),
                at("5.parametrizations.weight.original1", 1),
                mask_equivalent=False,
            ),
            group("neuron", 7, direction("5"), into("7"), mask_equivalent=False),
        ),
        {"input": at("0.parametrizations.weight.original1", 1), "output": out("7")},
    ),
    Case(
        "spectral norm",
        lambda: parametrized(spectral_norm),
        image(),
        (
            group("channel", 8, spectral("0"), reads_spectral("2")),
            group("channel", 6, spectral("2"), reads_spectral("5")),
            group("neuron", 7, spectral("5"), into("7")),
        ),
        {"input": at("0.parametrizations.weight.original", 1), "output": out("7")},
    ),
    Case(
        "wrappers",
        Wrappers,
        rows(6),
        (
            group("neuron", 8, out("first"), into("kept.0")),
            group("neuron", 9, out("kept.0"), into("wide")),
            group("neuron", 10, out("wide"), into("fixed")),
            group("neuron", 11, out("fixed"), into("last")),
        ),
        {"input": into("first"), "output": out("last")},
    ),
    Case(
        "own gradient",
        OwnGradient,
        rows(6),
        (group("neuron", 8, out("first"), into("second")), group("neuron", 7, out("second"), into("last"))),
        {"input": into("first"), "output": out("last")},
    ),
    Case(
        "lower precision",
        LowPrecision,
        rows(6),
        (group("neuron", 7, out("back"), into("last")),),
        {
            "input": into("first"),
            "wrap_with_autocast": out("first", "low") | into("low", "back"),
            "output": out("last"),
        },
    ),
    Case(
        "pinned dtype",
        Pinned,
        rows(6),
        (group("neuron", 8, out("first"), at("scale"), into("last"), mask_equivalent=False),),
        {"input": into("first"), "output": out("last")},
    ),
    Case(
        "branch on shape",
        Sized,
        rows(5, 6),
        (group("neuron", 8, out("first"), into("long")), group("neuron", 9, out("long"), into("last"))),
        {"input": into("first"), "output": out("last")},
    ),
    Case(
        "cosine similarity",
        Alike,
        lambda: (torch.randn(2, 6), torch.randn(2, 5)),
        (group("neuron", 8, out("left", "right"), mask_equivalent=False),),
        {"input": into("left", "right")},
    ),
)
