"""Nets whose norms are computed over what is pruned, or not: group, layer, RMS, instance norm, softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.case import Case, at, group, image, into, norm, out, rows
from torch import nn


def group_norm(groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(groups, 8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )


def instance_norm(track: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=track),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )


class ConvNeXt(nn.Module):
    """One block, channels last inside it, with a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.widen = nn.Linear(8, 16)
        self.narrow = nn.Linear(16, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.5))
        self.last = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(F.gelu(self.widen(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(self.last(x.mean((-2, -1))))


class ByHand(nn.Module):
    """An RMS norm spelt out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class RootMeanSquare(nn.Module):
    def __init__(self, layer) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = layer(8)
        self.widen = nn.Linear(8, 12, bias=False)
        self.narrow = nn.Linear(12, 8, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        return self.head(x + self.narrow(F.silu(self.widen(self.norm(x)))))


class Normalised(nn.Module):
    """Softmax over hidden neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.first(x).softmax(-1))


class OverEverything(nn.Module):
    """A layer norm over channels and space."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2)
        self.norm = nn.LayerNorm([6, 3, 3])
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))))


ENDS = {"input": into("0"), "output": out("3")}
RMS_GROUPS = (
    group(
        "hidden",
        8,
        out("first"),
        at("norm.weight"),
        into("widen", "head"),
        out("narrow", bias=False),
        mask_equivalent=False,
    ),
    group("neuron", 12, out("widen", bias=False), into("narrow")),
)
RMS_ENDS = {"input": into("first"), "output": out("head")}

CASES = (
    Case(
        "group norm",
        lambda: group_norm(2),
        image(),
        (
            group("channel", 8, out("0", "1"), into("3"), blocks=2, mask_equivalent=False),
            group("channel_group", 2, out("0", "1"), into("3")),
        ),
        ENDS,
    ),
    Case(
        "group norm of one group",
        lambda: group_norm(1),
        image(),
        (group("channel", 8, out("0", "1"), into("3"), mask_equivalent=False),),
        ENDS,
    ),
    Case(
        "group norm of single channels",
        lambda: group_norm(8),
        image(),
        (group("channel", 8, out("0", "1"), into("3")),),
        ENDS,
    ),
    Case(
        "instance norm",
        lambda: instance_norm(False),
        image(),
        (group("channel", 8, out("0", "1"), into("3")),),
        ENDS,
    ),
    Case(
        "instance norm with statistics",
        lambda: instance_norm(True),
        image(),
        (group("channel", 8, out("0"), norm("1"), into("3")),),
        ENDS,
    ),
    Case(
        "convnext",
        ConvNeXt,
        image(size=16),
        (
            group(
                "hidden",
                8,
                out("stem", "depthwise", "norm", "narrow", "last"),
                at("gamma"),
                into("widen", "head"),
                mask_equivalent=False,
            ),
            group("neuron", 16, out("widen"), into("narrow")),
        ),
        {"input": into("stem"), "output": out("head")},
    ),
    Case("rms norm", lambda: RootMeanSquare(nn.RMSNorm), rows(5, 6), RMS_GROUPS, RMS_ENDS),
    Case("rms norm by hand", lambda: RootMeanSquare(ByHand), rows(5, 6), RMS_GROUPS, RMS_ENDS),
    Case(
        "softmax over neurons",
        Normalised,
        rows(6),
        (group("neuron", 8, out("first"), into("last"), mask_equivalent=False),),
        {"input": into("first"), "output": out("last")},
    ),
    Case(
        "layer norm over channels and space",
        OverEverything,
        image(),
        (group("channel", 6, out("conv", "norm"), into("head"), mask_equivalent=False),),
        {
            "input": into("conv"),
            "output": out("head"),
            "aten.conv2d.default": at("norm.weight", 1)
            | at("norm.weight", 2)
            | at("norm.bias", 1)
            | at("norm.bias", 2),
        },
    ),
)
