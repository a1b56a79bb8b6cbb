"""Nets that read and write by position: gathered, scattered, selected and masked rows, one-hot tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.case import Case, Place, at, group, into, out
from torch import nn


class ByPosition(nn.Module):
    """``[batch, 7, 8]`` between two layers, read or written at three positions that are an input."""

    def __init__(self, use) -> None:
        super().__init__()
        self.use = use
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 4)

    def forward(self, x, position):
        return self.last(torch.relu(self.middle(self.use(torch.relu(self.first(x)), position))))


class Slots(nn.Module):
    """Writes steps into the slots of a memory, as a static cache does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slots", torch.tensor([4, 0, 2]))
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        memory = x.new_zeros(x.shape[0], 5, x.shape[2])
        memory[:, self.slots] = x
        return self.last(memory)


class OneHot(nn.Module):
    """An embedding as a product with rows of zeros and a one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Parameter(torch.randn(11, 8)), nn.Linear(8, 4)

    def forward(self, tokens):
        return self.last(torch.relu(F.one_hot(tokens, 11).to(self.table.dtype) @ self.table))


class Positions(nn.Module):
    """Token, position and kind embeddings added up; positions from a buffer, cut to length."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(20, 8), nn.Embedding(9, 8)
        self.kind = nn.Parameter(torch.randn(2, 8))
        self.register_buffer("count", torch.arange(9)[None], persistent=False)
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, tokens, kinds):
        x = self.word(tokens) + self.place(self.count[:, : tokens.shape[1]]) + self.kind[kinds]
        return self.last(self.norm(x))


def wide(position, x):
    """``[batch, 3]`` positions for every neuron of ``x``."""
    return position[..., None].expand(-1, -1, x.shape[-1])


def gathered(x, position):
    return x.gather(1, wide(position, x))


def scattered(x, position):
    return x.new_zeros(x.shape[0], 9, x.shape[2]).scatter_add(1, wide(position, x), x[:, :3])


def selected(x, position):
    return x.index_select(1, position[0])


def indexed(x, position):
    return x[torch.arange(x.shape[0])[:, None], position]


def hidden_away(x, position):
    return x.masked_fill((position.sum(-1) > 6)[:, None, None], 0.5)


def written_over(x, position):
    mask = (torch.arange(7) < 3).expand(x.shape[:2])
    x = x + 0
    x[mask] = 0.5
    return x


FIRST: set[Place] = out("first") | into("middle")
HIDDEN, SURVIVOR = group("neuron", 8, FIRST), group("neuron", 10, out("middle"), into("last"))
ENDS = {"input": into("first"), "output": out("last")}


def by_position(name: str, use, frozen: dict[str, set[Place]] | None = None) -> Case:
    return Case(
        name,
        lambda: ByPosition(use),
        lambda: (torch.randn(2, 7, 6), torch.tensor([[3, 0, 2], [5, 1, 2]])),
        (SURVIVOR,) if frozen else (HIDDEN, SURVIVOR),
        {**ENDS, **(frozen or {})},
    )


CASES = (
    by_position("rows gathered", gathered),
    by_position("rows scattered", scattered),
    by_position("rows selected", selected),
    by_position("rows indexed", indexed),
    by_position("rows masked", hidden_away),
    by_position("rows written where a mask says", written_over, {"aten.index_put_.default": FIRST}),
    Case(
        "slots of a memory",
        Slots,
        lambda: (torch.randn(2, 3, 6),),
        (group("neuron", 8, out("first"), into("last")),),
        {**ENDS, "aten.index_put_.default": at("slots")},
    ),
    Case(
        "one-hot table",
        OneHot,
        lambda: (torch.randint(0, 11, (2, 5)),),
        (group("neuron", 8, at("table", 1), into("last")),),
        {"aten.one_hot.default": at("table"), "output": out("last")},
    ),
    Case(
        "embeddings added up",
        Positions,
        lambda: (torch.randint(0, 20, (2, 5)), torch.randint(0, 2, (2, 5))),
        (
            group(
                "hidden",
                8,
                at("word.weight", 1),
                at("place.weight", 1),
                at("kind", 1),
                out("norm"),
                into("last"),
                mask_equivalent=False,
            ),
        ),
        {
            "aten.embedding.default": at("word.weight") | at("place.weight"),
            "aten.index.Tensor": at("kind"),
            "input": at("count", 1),  # Its places of the example's length,
            "aten.slice.Tensor": at("count", 1),  # and those behind.
            "output": out("last"),
        },
    ),
)
