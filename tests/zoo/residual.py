"""Residual nets of convolutions: basic, bottleneck, pre-activation, inverted and grouped blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.case import Case, group, image, into, norm, out
from torch import nn


class BasicBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.down = None
        if stride > 1 or width_in != width:
            self.down = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.down is None else self.down(x)))


class Bottleneck(nn.Module):
    def __init__(self, width_in: int, inner: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width_in, width, 1, bias=False) if width_in != width else None

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (x if self.down is None else self.down(x)))


class Residual(nn.Module):
    """A stem, blocks, a mean over space and a linear head."""

    def __init__(self, width: int, *blocks: nn.Module, last: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(last, 5)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def basic() -> nn.Module:
    return Residual(8, BasicBlock(8, 8), BasicBlock(8, 12, 2), last=12)


def bottleneck() -> nn.Module:
    return Residual(8, Bottleneck(8, 4, 16), Bottleneck(16, 6, 16), last=16)


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))


def pre_activation() -> nn.Module:
    return Residual(8, PreActivation(), PreActivation(), last=8)


class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(8, 16, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.project = nn.Conv2d(16, 8, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)

    def forward(self, x):
        y = F.relu6(self.bn1(self.expand(x)))
        return x + self.bn3(self.project(F.relu6(self.bn2(self.depthwise(y)))))


def inverted_residual() -> nn.Module:
    return Residual(8, InvertedResidual(), last=8)


class ResNeXtBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 12, 1)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.bn2 = nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 8, 1)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.conv3(torch.relu(self.bn2(self.conv2(y)))))


def resnext() -> nn.Module:
    return Residual(8, ResNeXtBlock(), last=8)


HEAD = {"input": into("stem"), "output": out("head")}

CASES = (
    Case(
        "basic blocks",
        basic,
        image(),
        (
            group(
                "channel",
                8,
                out("stem"),
                into("blocks.0.conv1", "blocks.1.conv1", "blocks.1.down.0"),
                out("blocks.0.conv2", bias=False),
                norm("blocks.0.bn2"),
            ),
            group(
                "channel",
                8,
                out("blocks.0.conv1", bias=False),
                norm("blocks.0.bn1"),
                into("blocks.0.conv2"),
            ),
            group(
                "channel",
                12,
                out("blocks.1.conv1", bias=False),
                norm("blocks.1.bn1"),
                into("blocks.1.conv2"),
            ),
            group(
                "channel",
                12,
                out("blocks.1.conv2", "blocks.1.down.0", bias=False),
                norm("blocks.1.bn2", "blocks.1.down.1"),
                into("head"),
            ),
        ),
        HEAD,
    ),
    Case(
        "bottlenecks",
        bottleneck,
        image(),
        (
            group("channel", 8, out("stem"), into("blocks.0.conv1", "blocks.0.down")),
            group(
                "channel",
                16,
                out("blocks.0.conv3", "blocks.0.down", "blocks.1.conv3", bias=False),
                norm("blocks.0.bn3", "blocks.1.bn3"),
                into("blocks.1.conv1", "head"),
            ),
            *(
                group(
                    "channel",
                    width,
                    out(f"blocks.{block}.conv{layer}", bias=False),
                    norm(f"blocks.{block}.bn{layer}"),
                    into(f"blocks.{block}.conv{layer + 1}"),
                )
                for block, width in ((0, 4), (1, 6))
                for layer in (1, 2)
            ),
        ),
        HEAD,
    ),
    Case(
        "pre-activation",
        pre_activation,
        image(),
        (
            group(
                "channel",
                8,
                out("stem", "blocks.0.conv2", "blocks.1.conv2"),
                norm("blocks.0.bn1", "blocks.1.bn1"),
                into("blocks.0.conv1", "blocks.1.conv1", "head"),
            ),
            *(
                group(
                    "channel",
                    6,
                    out(f"blocks.{block}.conv1"),
                    norm(f"blocks.{block}.bn2"),
                    into(f"blocks.{block}.conv2"),
                )
                for block in (0, 1)
            ),
        ),
        HEAD,
    ),
    Case(
        "inverted residual",
        inverted_residual,
        image(),
        (
            group(
                "channel",
                8,
                out("stem"),
                into("blocks.0.expand", "head"),
                out("blocks.0.project", bias=False),
                norm("blocks.0.bn3"),
            ),
            group(
                "channel",
                16,
                out("blocks.0.expand", "blocks.0.depthwise", bias=False),
                norm("blocks.0.bn1", "blocks.0.bn2"),
                into("blocks.0.project"),
            ),
        ),
        HEAD,
    ),
    Case(
        "grouped convolution",
        resnext,
        image(),
        (
            group("channel", 8, out("stem", "blocks.0.conv3"), into("blocks.0.conv1", "head")),
            group(
                "channel",
                12,
                out("blocks.0.conv1"),
                norm("blocks.0.bn1"),
                into("blocks.0.conv2"),
                blocks=3,
            ),
            group(
                "channel",
                12,
                out("blocks.0.conv2"),
                norm("blocks.0.bn2"),
                into("blocks.0.conv3"),
                blocks=3,
            ),
            group(
                "channel_group",
                3,
                out("blocks.0.conv1", "blocks.0.conv2"),
                norm("blocks.0.bn1", "blocks.0.bn2"),
                into("blocks.0.conv3"),
            ),
        ),
        HEAD,
    ),
)
