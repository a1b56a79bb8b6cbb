"""Plain nets of convolutions: depthwise, squeeze-and-excite, flattened, pooled, 1d and 3d."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.case import Case, at, group, image, into, norm, out, rows
from torch import nn


def depthwise_multiplier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 4, 1)
    )


class SqueezeExcite(nn.Module):
    def __init__(self, layer: type[nn.Module] = nn.Conv2d) -> None:
        super().__init__()
        self.flat = layer is nn.Linear
        extra = () if self.flat else (1,)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce = layer(8, 4, *extra)
        self.widen = layer(4, 8, *extra)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        if self.flat:
            gate = torch.sigmoid(self.widen(torch.relu(self.reduce(x.mean((2, 3))))))[:, :, None, None]
        else:
            gate = torch.sigmoid(self.widen(torch.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        return self.last(x * gate)


class Flattening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.bn = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4 * 9, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = torch.flatten(torch.relu(self.bn(self.conv(x))), 1)
        return self.head(torch.relu(self.hidden(x)))


class Viewing(nn.Module):
    """Flattens with a view whose length is a number in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.head = nn.Linear(4 * 9, 5)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).view(-1, 36))


def pooling() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 1),
        nn.AdaptiveMaxPool2d(2),
        nn.Conv2d(8, 5, 1),
        nn.Upsample(scale_factor=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 3),
    )


def one_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 3),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.ConvTranspose1d(6, 4, 2),
        nn.Conv1d(4, 2, 1),
    )


def three_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.AvgPool3d(2),
        nn.Conv3d(6, 4, 1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        y = self.branch(x)
        y += x
        y.mul_(0.5)
        y.relu_()
        return self.head(y)


HEAD = {"input": into("stem"), "output": out("head")}
CHAIN = {"input": into("0")}

CASES = (
    Case(
        "depthwise with multiplier",
        depthwise_multiplier,
        image(),
        (
            group("channel", 6, out("0", "2"), into("4")),
            group("channel", 12, out("2"), into("4"), blocks=6),
        ),
        {**CHAIN, "output": out("4")},
    ),
    Case(
        "squeeze-and-excite",
        SqueezeExcite,
        image(),
        (
            group("channel", 8, out("conv", "widen"), into("reduce", "last")),
            group("channel", 4, out("reduce"), into("widen")),
        ),
        {"input": into("conv"), "output": out("last")},
    ),
    Case(
        "squeeze-and-excite, linear",
        lambda: SqueezeExcite(nn.Linear),
        image(),
        (
            group("channel", 8, out("conv", "widen"), into("reduce", "last")),
            group("neuron", 4, out("reduce"), into("widen")),
        ),
        {"input": into("conv"), "output": out("last")},
    ),
    Case(
        "flatten",
        Flattening,
        image(),
        (
            group("channel", 4, out("conv"), norm("bn"), into("hidden")),
            group("neuron", 7, out("hidden"), into("head")),
        ),
        {"input": into("conv"), "output": out("head")},
    ),
    Case(
        "flatten by a number",
        Viewing,
        image(),
        (group("channel", 4, out("conv"), into("head")),),
        {"input": into("conv"), "output": out("head")},
        own_class=False,
    ),
    Case(
        "pooling",
        pooling,
        image(size=16),
        (
            group("channel", 4, out("0"), into("2")),
            group("channel", 6, out("2"), into("4")),
            group("channel", 8, out("4"), into("6")),
            group("channel", 5, out("6"), into("10")),
        ),
        {**CHAIN, "output": out("10")},
    ),
    Case(
        "one dimension",
        one_dimensional,
        rows(3, 12),
        (
            group("channel", 6, out("0"), norm("1"), at("4.weight", 0)),
            group("channel", 4, at("4.weight", 1), at("4.bias"), into("5")),
        ),
        {**CHAIN, "output": out("5")},
    ),
    Case(
        "three dimensions",
        three_dimensional,
        rows(2, 4, 4, 4),
        (
            group("channel", 6, out("0"), norm("1"), into("4")),
            group("channel", 4, out("4"), into("6")),
        ),
        {**CHAIN, "output": out("6")},
    ),
    Case(
        "in place",
        InPlace,
        image(),
        (group("channel", 8, out("stem", "branch"), norm("bn"), into("branch", "head")),),
        HEAD,
    ),
)
