"""Nets that join and cut: concatenation, padding, chunk, split, gated units, channel shuffle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.case import Case, at, group, image, into, norm, out, rows
from torch import nn


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3, padding=1))
            for width in (8, 12)
        )
        self.bn = nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(torch.relu(self.bn(torch.cat(features, 1))))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1)
        self.three = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1))
        self.pooled = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(13)
        self.head = nn.Conv2d(13, 5, 1)

    def forward(self, x):
        pooled = self.pooled(F.max_pool2d(x, 3, 1, 1))
        return self.head(torch.relu(self.bn(torch.cat([self.one(x), self.three(x), pooled], 1))))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 4, 3, padding=1)
        self.down2 = nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.merge = nn.Conv2d(10, 5, 3, padding=1)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        skip = torch.relu(self.down1(x))
        deep = torch.relu(self.down2(F.max_pool2d(skip, 2)))
        return self.head(torch.relu(self.merge(torch.cat([skip, self.up(deep)], 1))))


class PaddedShortcut(nn.Module):
    """ResNet's option A: the shortcut is narrower than the block, so zeros are put on both sides of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 6, 3, 2, 1)
        self.conv2 = nn.Conv2d(6, 12, 3, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(torch.relu(shortcut + self.bn(self.conv2(torch.relu(self.conv1(x))))).mean((2, 3)))


class GatedUnit(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.widen = nn.Linear(6, 16)
        self.narrow = nn.Linear(8, 4)

    def forward(self, x):
        x = self.widen(x)
        if self.how == "glu":
            return self.narrow(F.glu(x, -1))
        gate, value = x.chunk(2, -1) if self.how == "chunk" else (x[..., :8], x[..., 8:])
        return self.narrow(F.silu(gate) * value)


class GatedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 8, bias=False)
        self.value = nn.Linear(6, 8, bias=False)
        self.narrow = nn.Linear(8, 4)

    def forward(self, x):
        return self.narrow(F.silu(self.gate(x)) * self.value(x))


class Split(nn.Module):
    """Cuts its channels in unequal parts, as its attribute says."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = [4, 6]
        self.stem = nn.Conv2d(3, 10, 3)
        self.left = nn.Conv2d(4, 5, 1)
        self.right = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        left, right = torch.split(torch.relu(self.stem(x)), self.widths, dim=1)
        return self.left(left) + self.right(right)


class CrossStage(nn.Module):
    """One half of the channels goes through a convolution, the other past it (CSP, C2f)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        parts = list(torch.relu(self.stem(x)).chunk(2, 1))
        parts.append(torch.relu(self.conv(parts[-1])))
        return self.head(torch.cat(parts, 1))


class Shuffle(nn.Module):
    """ShuffleNet's unit: every group of the second convolution reads from every group of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.first = nn.Conv2d(8, 8, 1, groups=2)
        self.second = nn.Conv2d(8, 8, 1, groups=2)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = torch.relu(self.first(torch.relu(self.stem(x))))
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        x = x.reshape(batch, channels, height, width)
        return self.head(torch.relu(self.second(x)))


class ShuffledUnits(nn.Module):
    """ShuffleNet V2: half of the channels pass, half go through a branch, then both are interleaved."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1)
        self.units = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(count))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for unit in self.units:
            passing, given = x.chunk(2, 1)
            x = torch.cat([passing, torch.relu(unit(given))], 1)
            x = x.view(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(x)


STEM = {"input": into("stem"), "output": out("head")}
GATED = {"input": into("widen"), "output": out("narrow")}
GATED_GROUPS = (group("neuron", 8, out("widen"), into("narrow")),)

CASES = (
    Case(
        "dense block",
        Dense,
        image(),
        (
            group(
                "channel",
                8,
                out("stem"),
                norm("layers.0.0", "layers.1.0", "bn"),
                into("layers.0.2", "layers.1.2", "head"),
            ),
            group("channel", 4, out("layers.0.2"), norm("layers.1.0", "bn"), into("layers.1.2", "head")),
            group("channel", 4, out("layers.1.2"), norm("bn"), into("head")),
        ),
        STEM,
    ),
    Case(
        "inception",
        Inception,
        image(),
        (
            group("channel", 4, out("one"), norm("bn"), into("head")),
            group("channel", 5, out("three.0"), into("three.2")),
            group("channel", 6, out("three.2"), norm("bn"), into("head")),
            group("channel", 3, out("pooled"), norm("bn"), into("head")),
        ),
        {"input": into("one", "three.0", "pooled"), "output": out("head")},
    ),
    Case(
        "u-net",
        UNet,
        image(),
        (
            group("channel", 4, out("down1"), into("down2", "merge")),
            group("channel", 8, out("down2"), at("up.weight", 0)),
            group("channel", 6, at("up.weight", 1), at("up.bias"), into("merge")),
            group("channel", 5, out("merge"), into("head")),
        ),
        {"input": into("down1"), "output": out("head")},
    ),
    Case(
        "padded shortcut",
        PaddedShortcut,
        image(),
        (
            group("channel", 8, out("stem", "conv2"), into("conv1", "head"), norm("bn")),
            group("channel", 6, out("conv1"), into("conv2")),
            group("channel", 4, out("conv2"), into("head"), norm("bn")),
        ),
        STEM,
        own_class=False,
    ),
    Case("gated unit, chunk", lambda: GatedUnit("chunk"), rows(5, 6), GATED_GROUPS, GATED),
    Case("gated unit, slices", lambda: GatedUnit("slices"), rows(6), GATED_GROUPS, GATED, own_class=False),
    Case("gated unit, glu", lambda: GatedUnit("glu"), rows(6), GATED_GROUPS, GATED),
    Case(
        "gated unit, two layers",
        GatedPair,
        rows(6),
        (group("neuron", 8, out("gate", "value", bias=False), into("narrow")),),
        {"input": into("gate", "value"), "output": out("narrow")},
    ),
    Case(
        "split",
        Split,
        image(),
        (
            group("channel", 4, out("stem"), into("left")),
            group("channel", 6, out("stem"), into("right")),
        ),
        {"input": into("stem"), "output": out("left", "right")},
    ),
    Case(
        "cross-stage",
        CrossStage,
        image(),
        (
            group("channel", 4, out("stem"), into("head")),
            group("channel", 4, out("stem"), into("conv", "head")),
            group("channel", 4, out("conv"), into("head")),
        ),
        STEM,
    ),
    Case(
        "channel shuffle",
        Shuffle,
        image(),
        (
            group("channel", 8, out("stem"), into("first"), blocks=2),
            group("channel_group", 2, out("stem", "first"), into("second")),
            group("channel", 4, out("first"), into("second"), blocks=2),
            group("channel", 8, out("second"), into("head"), blocks=2),
            group("channel_group", 2, out("first", "second"), into("head")),
        ),
        STEM,
    ),
    Case(
        "shuffled unit",
        lambda: ShuffledUnits(1),
        image(),
        (
            group("channel", 8, out("stem"), into("units.0")),
            # Those that pass and those of the branch are chosen separately, equally many of each.
            group("channel", 16, out("stem", "units.0"), into("head"), blocks=2),
        ),
        {**STEM, "reshape": out("stem", "units.0") | into("head")},
    ),
    # From the second unit on, a channel stands with the one it is interleaved with: the next unit cuts where
    # their pairs lie. One that passes n units stands with 1 + 1 + 2 + ... + 2 ** (n - 1) others.
    Case(
        "two shuffled units",
        lambda: ShuffledUnits(2),
        image(),
        (
            group("channel", 8, out("stem"), into("units.0")),
            group("channel", 4, out("stem", "units.0"), into("units.1")),
            group("channel", 4, out("stem", "units.0", "units.1"), into("head")),
        ),
        STEM,
    ),
    Case(
        "three shuffled units",
        lambda: ShuffledUnits(3),
        image(),
        (
            group("channel", 8, out("stem"), into("units.0")),
            group("channel", 4, out("stem", "units.0"), into("units.1")),
            group("channel", 2, out("stem", "units.0", "units.1"), into("units.2")),
            group("channel", 2, out("stem", "units.0", "units.1", "units.2"), into("head")),
        ),
        STEM,
    ),
)
