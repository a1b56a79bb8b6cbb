"""Attention in the layouts people write: shared keys, fused weights, rotary codes, linear, in windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.attention import ENDS, FEED_FORWARD, Encoder, stream
from tests.zoo.case import Case, Expected, Place, at, group, into, out, rows
from torch import nn

Q, K, V, QKV, OUT = (f"attention.{name}" for name in ("q", "k", "v", "qkv", "out"))


class Heads(nn.Module):
    """3 heads of 4 over ``[batch, length, 12]``; subclasses say how they attend."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = 3, 0.5
        self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 15)
        self.out = nn.Linear(15, 12)

    def cut(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)

    def forward(self, x):
        q, k, v = self.cut(self.q(x)), self.cut(self.k(x)), self.cut(self.v(x))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


class SpeltSharing(Heads):
    """4 query heads of 4 read 2 heads of keys and values; the operator repeats them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 8), nn.Linear(12, 8)
        self.out = nn.Linear(16, 12)

    def cut(self, x):
        return x.view(x.shape[0], x.shape[1], -1, 4).transpose(1, 2)

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class OneKey(Heads):
    """Three query heads read the same keys and values (Shazeer, 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = nn.Linear(12, 4), nn.Linear(12, 5)

    def forward(self, x):
        q, k, v = self.cut(self.q(x)), self.k(x)[:, None], self.v(x)[:, None]
        k, v = (part.expand(-1, self.heads, -1, -1) for part in (k, v))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


class Fused(Heads):
    """Queries, keys and values from one layer: in ``heads x (q, k, v)`` or ``(q, k, v) x heads``."""

    def __init__(self, *, heads_first: bool) -> None:
        super().__init__()
        del self.q, self.k, self.v
        self.heads_first, self.width = heads_first, 4
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x):
        lead = x.shape[:2]
        if self.heads_first:
            q, k, v = self.qkv(x).view(*lead, self.heads, -1).transpose(1, 2).chunk(3, -1)
        else:
            q, k, v = self.qkv(x).view(*lead, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


class Rotary(Heads):
    """Turns pairs of query and key dimensions by angles that grow with the position.

    ``halves`` pairs dimension ``i`` with ``i + 2``, else ``2 i`` with ``2 i + 1`` as complex numbers.
    """

    def __init__(self, *, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.register_buffer("frequency", torch.tensor([1.0, 0.3]), persistent=False)

    def turn(self, x):
        angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.frequency
        if not self.halves:
            turns = torch.polar(torch.ones_like(angle), angle)
            return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)
        angle = torch.cat([angle, angle], -1)
        half = x.shape[-1] // 2
        return x * angle.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angle.sin()

    def attend(self, q, k, v):
        return super().attend(self.turn(q), self.turn(k), v)


class Linear(Heads):
    """Attention without a softmax (Katharopoulos et al., 2020): the steps are summed before queries come."""

    def attend(self, q, k, v):
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return q @ (k.transpose(-2, -1) @ v) / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)


class Windows(Heads):
    """Attends in windows of 2 x 2 of an image rolled by one, with a learnt bias per relative position."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 3))
        place = torch.cartesian_prod(torch.arange(2), torch.arange(2))
        apart = place[:, None] - place[None] + 1
        self.register_buffer("place", (apart[..., 0] * 3 + apart[..., 1]).flatten())

    def attend(self, q, k, v):
        bias = self.table[self.place].view(4, 4, -1).permute(2, 0, 1)
        return (q @ k.transpose(-2, -1) * self.scale + bias).softmax(-1) @ v

    def forward(self, x):
        image = x.unflatten(1, (4, 4)).roll((-1, -1), (1, 2))
        windows = image.unflatten(2, (2, 2)).unflatten(1, (2, 2)).transpose(2, 3)  # b, 2, 2, 2, 2, c
        y = super().forward(windows.flatten(3, 4).flatten(0, 2))
        y = y.unflatten(0, (-1, 2, 2)).unflatten(3, (2, 2)).transpose(2, 3)
        return y.flatten(3, 4).flatten(1, 2).roll((1, 1), (1, 2)).flatten(1, 2)


def keys(units: int = 12, blocks: int = 3, *places: set[Place]) -> Expected:
    """Query and key dimensions."""
    return group("head_dim", units, out(Q, K), *places, blocks=blocks, mask_equivalent=False)


def values(units: int = 15, blocks: int = 3) -> Expected:
    """Value dimensions."""
    return group("head_dim", units, out(V), into(OUT), blocks=blocks)


STREAM = stream(Q, K, V)
HEADS = group("head", 3, out(Q, K, V), into(OUT))
SHARED = (
    STREAM,
    group("head", 4, out(Q), into(OUT), blocks=2),
    group("head_group", 2, out(Q, K, V), into(OUT)),
    keys(8, 2),
    values(8, 2),
    FEED_FORWARD,
)
TOKENS = rows(5, 6)

CASES = (
    Case(
        "grouped-query attention, spelt by the operator",
        lambda: Encoder(SpeltSharing()),
        TOKENS,
        SHARED,
        ENDS,
        own_class=False,
    ),
    Case(
        "multi-query attention",
        lambda: Encoder(OneKey()),
        TOKENS,
        (STREAM, group("head", 3, out(Q), into(OUT)), keys(4, 1), values(5, 1), FEED_FORWARD),
        ENDS,
    ),
    Case(
        "fused attention, heads first",
        lambda: Encoder(Fused(heads_first=True)),
        TOKENS,
        (
            stream(QKV),
            group("head", 3, out(QKV), into(OUT)),
            group("head_dim", 12, out(QKV), blocks=3, mask_equivalent=False),
            group("head_dim", 12, out(QKV), into(OUT), blocks=3),
            FEED_FORWARD,
        ),
        ENDS,
    ),
    Case(
        "fused attention, unbound",
        lambda: Encoder(Fused(heads_first=False)),
        TOKENS,
        (
            stream(QKV),
            group("head", 3, out(QKV), into(OUT)),
            # One index of the layer's output is split in (q, k, v), head and dimension: the parts share both.
            group("head_dim", 12, out(QKV), into(OUT), blocks=3, mask_equivalent=False),
            FEED_FORWARD,
        ),
        ENDS,
    ),
    Case(
        "rotary code by halves",
        lambda: Encoder(Rotary(halves=True)),
        TOKENS,
        (STREAM, HEADS, keys(2, 1, at("attention.frequency")), values(), FEED_FORWARD),
        ENDS,
    ),
    Case(
        "rotary code by complex numbers",
        lambda: Encoder(Rotary(halves=False)),
        TOKENS,
        (STREAM, HEADS, keys(2, 1, at("attention.frequency")), values(), FEED_FORWARD),
        ENDS,
    ),
    Case(
        "linear attention",
        lambda: Encoder(Linear()),
        TOKENS,
        (STREAM, HEADS, keys(), values(), FEED_FORWARD),
        ENDS,
    ),
    Case(
        "window attention",
        lambda: Encoder(Windows()),
        rows(16, 6),
        (
            STREAM,
            group("head", 3, out(Q, K, V), into(OUT), at("attention.table", 1)),
            keys(),
            values(),
            FEED_FORWARD,
        ),
        {
            **ENDS,
            "aten.index.Tensor": at("attention.place"),
            "aten.roll.default": at("attention.table"),  # Its rows are differences of places that are rolled.
        },
    ),
)
