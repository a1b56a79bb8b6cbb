"""Parts of detectors and vision transformers: C2f, tokens of an image, a hybrid, a spatial transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.attention import Attention
from tests.zoo.case import Case, at, group, image, into, norm, out
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.silu(self.bn(self.conv1(x))))


class CrossStagePartial(nn.Module):
    """YOLOv8's C2f: half of the channels go through residual blocks, all that is met on the way is joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.cut = nn.Conv2d(8, 10, 1)
        self.blocks = nn.ModuleList([Bottleneck(5, 6), Bottleneck(5, 7)])
        self.join = nn.Conv2d(20, 9, 1)
        self.head = nn.Conv2d(9, 4, 1)

    def forward(self, x):
        parts = list(self.cut(torch.relu(self.stem(x))).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.head(torch.relu(self.join(torch.cat(parts, 1))))


class Tokens(nn.Module):
    """A vision transformer without its layers: patches, a class token, learnt positions, a distilled head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 5, 8))
        self.widen, self.narrow = nn.Linear(8, 11), nn.Linear(11, 8)
        self.scale = nn.Parameter(torch.rand(8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        x = x + self.scale * self.narrow(F.gelu(self.widen(x)))
        return self.head(self.norm(x)[:, 0])


class Hybrid(nn.Module):
    """MobileViT's block: convolutions around attention over space, and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.inward = nn.Conv2d(10, 12, 1)
        self.attention = Attention(spelt_out=True)
        self.outward = nn.Conv2d(12, 9, 1)
        self.fuse = nn.Conv2d(19, 7, 1)
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.inward(x)
        tokens = y.flatten(2).transpose(1, 2)
        y = y + self.attention(tokens).transpose(1, 2).unflatten(2, y.shape[2:])
        y = torch.relu(self.fuse(torch.cat([x, self.outward(y)], 1)))
        return self.head(y.mean((2, 3)))


class SpatialTransformer(nn.Module):
    """Samples its channels where an affine map it computes says (Jaderberg et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1)
        self.map = nn.Linear(7, 6)
        self.head = nn.Conv2d(7, 5, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        grid = F.affine_grid(
            self.map(x.mean((2, 3))).unflatten(1, (2, 3)), list(x.shape), align_corners=False
        )
        return self.head(F.grid_sample(x, grid, align_corners=False))


class Interpolating(nn.Module):
    """A pyramid of two levels: the coarse one, resized by two means, is added to the fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 6, 3, 2, 1)
        self.level, self.lateral = nn.Conv2d(6, 7, 1), nn.Conv2d(8, 7, 1)
        self.head = nn.Conv2d(7, 4, 1)

    def forward(self, x):
        fine = torch.relu(self.fine(x))
        level = self.level(torch.relu(self.coarse(fine)))
        near = F.interpolate(level, scale_factor=2.0, mode="nearest")
        smooth = F.interpolate(level, size=fine.shape[2:], mode="bilinear", align_corners=False)
        return self.head(self.lateral(fine) + near + smooth), self.head(level)


CASES = (
    Case(
        "c2f",
        CrossStagePartial,
        image(),
        (
            group("channel", 8, out("stem"), into("cut")),
            group("channel", 5, out("cut"), into("join")),
            group(
                "channel",
                5,
                out("cut", "blocks.0.conv2", "blocks.1.conv2"),
                into("blocks.0.conv1", "blocks.1.conv1", "join"),
            ),
            *(
                group(
                    "channel",
                    width,
                    at(f"blocks.{number}.conv1.weight"),
                    norm(f"blocks.{number}.bn"),
                    into(f"blocks.{number}.conv2"),
                )
                for number, width in enumerate((6, 7))
            ),
            group("channel", 9, out("join"), into("head")),
        ),
        {"input": into("stem"), "output": out("head")},
    ),
    Case(
        "tokens of an image",
        Tokens,
        image(),
        (
            group(
                "hidden",
                8,
                out("patch", "narrow", "norm"),
                at("token", 2),
                at("place", 2),
                at("scale"),
                into("widen", "head"),
                mask_equivalent=False,
            ),
            group("neuron", 11, out("widen"), into("narrow")),
        ),
        {"input": into("patch"), "aten.conv2d.default": at("place", 1), "output": out("head")},
    ),
    Case(
        "convolutions around attention",
        Hybrid,
        image(size=4),
        (
            group("channel", 10, out("stem"), into("inward", "fuse")),
            group(
                "hidden",
                12,
                out("inward", "attention.out"),
                into("attention.q", "attention.k", "attention.v", "outward"),
            ),
            group("head", 3, out("attention.q", "attention.k", "attention.v"), into("attention.out")),
            group("head_dim", 12, out("attention.q", "attention.k"), blocks=3, mask_equivalent=False),
            group("head_dim", 12, out("attention.v"), into("attention.out"), blocks=3),
            group("channel", 9, out("outward"), into("fuse")),
            group("channel", 7, out("fuse"), into("head")),
        ),
        {"input": into("stem"), "output": out("head")},
    ),
    Case(
        "spatial transformer",
        SpatialTransformer,
        image(),
        (group("channel", 7, out("stem"), into("map", "head")),),
        {
            "input": into("stem"),
            "aten.affine_grid_generator.default": out("map"),
            "output": out("head"),
        },
    ),
    Case(
        "feature pyramid",
        Interpolating,
        image(),
        (
            group("channel", 8, out("fine"), into("coarse", "lateral")),
            group("channel", 6, out("coarse"), into("level")),
            group("channel", 7, out("level", "lateral"), into("head")),
        ),
        {"input": into("fine"), "output": out("head")},
    ),
)
