"""Attention written by hand: separate projections, shared keys and values, a fused one."""

from __future__ import annotations

import math

import torch.nn.functional as F
from tests.zoo.case import Case, group, into, out, rows
from torch import nn


class Attention(nn.Module):
    """Multi-head attention over ``[batch, length, 12]`` in 3 heads of 4."""

    def __init__(self, spelt_out: bool = False) -> None:
        super().__init__()
        self.spelt_out = spelt_out
        self.heads, self.head_width = 3, 4
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.out = nn.Linear(12, 12)

    def cut(self, x):
        return x.view(x.shape[0], -1, self.heads, self.head_width).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.cut(self.q(x)), self.cut(self.k(x)), self.cut(self.v(x))
        if self.spelt_out:
            weight = (q @ k.transpose(-2, -1) / math.sqrt(4)).softmax(-1)
            mixed = weight @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


class Encoder(nn.Module):
    """A layer with norms before attention and before two linear layers."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.attention = attention
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.widen, self.narrow = nn.Linear(12, 16), nn.Linear(16, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.narrow(F.gelu(self.widen(self.norm2(x))))
        return self.head(x)


class SharedKeys(nn.Module):
    """Grouped-query attention: 4 query heads of 4 read 2 heads of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 8), nn.Linear(12, 8)
        self.out = nn.Linear(16, 12)

    def forward(self, x):
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 4, 4).transpose(1, 2)
        k, v = (layer(x).view(batch, length, 2, 4).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (
            part[:, :, None].expand(batch, 2, 2, length, 4).reshape(batch, 4, length, 4) for part in (k, v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class Fused(nn.Module):
    """Queries, keys and values from one layer, in three parts."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.out = nn.Linear(12, 12)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, 3, 4).transpose(1, 2) for part in self.qkv(x).split(12, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


def stream(*readers: str, written: str = "attention.out"):
    """The residual width of :class:`Encoder`."""
    return group(
        "hidden",
        12,
        out("embed", "narrow", "norm1", "norm2", written),
        into("widen", "head", *readers),
        mask_equivalent=False,
    )


FEED_FORWARD = group("neuron", 16, out("widen"), into("narrow"))
ENDS = {"input": into("embed"), "output": out("head")}
SEPARATE = (
    stream("attention.q", "attention.k", "attention.v"),
    group("head", 3, out("attention.q", "attention.k", "attention.v"), into("attention.out")),
    group("head_dim", 12, out("attention.q", "attention.k"), blocks=3, mask_equivalent=False),
    group("head_dim", 12, out("attention.v"), into("attention.out"), blocks=3),
    FEED_FORWARD,
)

CASES = (
    Case(
        "attention",
        lambda: Encoder(Attention()),
        rows(5, 6),
        SEPARATE,
        ENDS,
    ),
    Case("attention spelt out", lambda: Encoder(Attention(spelt_out=True)), rows(5, 6), SEPARATE, ENDS),
    Case(
        "grouped-query attention",
        lambda: Encoder(SharedKeys()),
        rows(5, 6),
        (
            stream("attention.q", "attention.k", "attention.v"),
            group("head", 4, out("attention.q"), into("attention.out"), blocks=2),
            group("head_group", 2, out("attention.q", "attention.k", "attention.v"), into("attention.out")),
            group("head_dim", 8, out("attention.q", "attention.k"), blocks=2, mask_equivalent=False),
            group("head_dim", 8, out("attention.v"), into("attention.out"), blocks=2),
            FEED_FORWARD,
        ),
        ENDS,
        own_class=False,
    ),
    Case(
        "fused attention",
        lambda: Encoder(Fused()),
        rows(5, 6),
        (
            stream("attention.qkv"),
            group("head", 3, out("attention.qkv"), into("attention.out")),
            group("head_dim", 12, out("attention.qkv"), blocks=3, mask_equivalent=False),
            group("head_dim", 12, out("attention.qkv"), into("attention.out"), blocks=3),
            FEED_FORWARD,
        ),
        ENDS,
        own_class=False,
    ),
)
