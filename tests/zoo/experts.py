"""Mixtures of experts: a router chooses some of them, and what it chooses points into their dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.case import Case, at, group, into, out, rows
from torch import nn


class Mixture(nn.Module):
    """Five experts of width 7; ``choose`` says how the outputs of the chosen ones are put together."""

    def __init__(self, choose) -> None:
        super().__init__()
        self.choose = choose
        self.experts = 5
        self.embed = nn.Linear(6, 8)
        self.router = nn.Linear(8, 5, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(5, 8, 7)), nn.Parameter(torch.randn(5, 7, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed(x)
        inner = torch.relu(torch.einsum("bd,edf->bef", x, self.up))
        given = torch.einsum("bef,efd->bed", inner, self.down)
        return self.head(x + self.choose(self, self.router(x), given))


class Looped(nn.Module):
    """Three experts as modules of their own, one router column each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 8)) for _ in range(3)
        )

    def forward(self, x):
        x = self.embed(x)
        weight = self.router(x).softmax(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out = out + weight[:, number : number + 1] * expert(x)
        return self.head(x + out)


def gathered(model: Mixture, logits, given):
    """The best two, by their numbers."""
    weight, chosen = logits.softmax(-1).topk(2, -1)
    picked = given.gather(1, chosen[..., None].expand(-1, -1, given.shape[-1]))
    return (picked * weight[..., None]).sum(1)


def marked(model: Mixture, logits, given):
    """The best one, by a row of zeros with a one."""
    mark = F.one_hot(logits.argmax(-1), model.experts).to(given.dtype)
    return torch.einsum("be,bed->bd", mark * logits.softmax(-1), given)


def scattered(model: Mixture, logits, given):
    """The best three keep their weight, the others get none."""
    weight, chosen = logits.topk(3, -1)
    weight = torch.zeros_like(logits).scatter(1, chosen, weight.softmax(-1))
    return (weight[..., None] * given).sum(1)


def weighted(model: Mixture, logits, given):
    """All of them."""
    return (logits.softmax(-1)[..., None] * given).sum(1)


def numbered(model: Mixture, logits, given):
    """Computes with the number of the best one."""
    return given.mean(1) * (logits.argmax(-1, keepdim=True) + 1)


STREAM = group("hidden", 8, out("embed"), into("router", "head"), at("up", 1), at("down", 2))
INNER = group("neuron", 7, at("up", 2), at("down", 1))
ROUTED = at("router.weight"), at("up"), at("down")
ENDS = {"input": into("embed"), "output": out("head")}


def mixture(name: str, choose, granularity: str, least: int) -> Case:
    experts = group(granularity, 5, *ROUTED, mask_equivalent=False, least=least)
    return Case(name, lambda: Mixture(choose), rows(6), (STREAM, INNER, experts), ENDS)


CASES = (
    mixture("experts, gathered", gathered, "expert", 2),
    mixture("experts, one hot", marked, "expert", 1),
    mixture("experts, scattered", scattered, "expert", 3),
    mixture("experts, all", weighted, "neuron", 1),
    Case(
        "experts, computed with",
        lambda: Mixture(numbered),
        rows(6),
        (STREAM, INNER, group("neuron", 5, at("up"), at("down"), mask_equivalent=False)),
        {**ENDS, "aten.add.Tensor": at("router.weight")},
    ),
    Case(
        "experts in a loop",
        Looped,
        rows(6),
        (
            group(
                "hidden",
                8,
                out("embed", *(f"experts.{number}.2" for number in range(3))),
                into("router", "head", *(f"experts.{number}.0" for number in range(3))),
            ),
            *(
                group("neuron", 7, out(f"experts.{number}.0"), into(f"experts.{number}.2"))
                for number in range(3)
            ),
        ),
        {**ENDS, "aten.slice.Tensor": out("router")},
    ),
)
