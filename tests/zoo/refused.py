"""Nets of which a part has to be frozen, with the operator that says so."""

from __future__ import annotations

import torch
from tests.zoo.case import Case, Place, at, group, into, out, rows
from torch import nn


class Between(nn.Module):
    """An operation between two hidden layers: the first one's neurons meet it, the second one's do not."""

    def __init__(self, operation, width: int = 8) -> None:
        super().__init__()
        self.operation = operation
        self.first = nn.Linear(6, 8)
        self.middle = nn.Linear(width, 10)
        self.last = nn.Linear(10, 4)

    def forward(self, x):
        x = self.operation(torch.relu(self.first(x)))
        return self.last(torch.relu(self.middle(x)))


class Picking(nn.Module):
    """Reads single neurons by their number."""

    def __init__(self, pick) -> None:
        super().__init__()
        self.pick = pick
        self.first = nn.Linear(6, 8)
        self.middle = nn.Linear(8, 10)
        self.last = nn.Linear(10, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.middle(x))) * torch.sigmoid(self.pick(x))


class OneBranch(nn.Module):
    """Sorts one of two branches, so the other one can still be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(6, 8)
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        return self.last(torch.cat([self.left(x).sort(-1).values, torch.relu(self.right(x))], -1))


class Routed(nn.Module):
    """Rows of a table are looked up where the data says."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.table = nn.Parameter(torch.randn(9, 7))
        self.last = nn.Linear(7, 4)

    def forward(self, x):
        rows = torch.relu(self.first(x)).argmax(-1)
        return self.last(torch.relu(self.table[rows]))


HIDDEN: set[Place] = out("first") | into("middle")
SURVIVOR = (group("neuron", 10, out("middle"), into("last")),)


def between(name: str, operation, operator: str, *, width: int = 8, shape: tuple[int, ...] = (6,)) -> Case:
    return Case(
        name,
        lambda: Between(operation, width),
        rows(*shape),
        SURVIVOR,
        {"input": into("first"), operator: HIDDEN, "output": out("last")},
    )


def picking(name: str, pick, operator: str) -> Case:
    return Case(
        name,
        lambda: Picking(pick),
        rows(6),
        SURVIVOR,
        {"input": into("first"), operator: HIDDEN, "output": out("last")},
    )


CASES = (
    between("sort", lambda x: x.sort(-1).values, "aten.sort.default"),
    between("cumulative sum", lambda x: x.cumsum(-1), "aten.cumsum.default"),
    between("roll by one", lambda x: x.roll(1, -1), "aten.roll.default"),
    between("Fourier transform", lambda x: torch.fft.fft(x).real, "aten.fft_fft.default"),
    between("differences", lambda x: x.diff(), "aten.diff.default", width=7),
    between("triangle", lambda x: x.tril(), "aten.tril.default", shape=(5, 6)),
    between("ramp over neurons", lambda x: x * torch.arange(1.0, 9.0), "aten.arange.start"),
    between("reflected", lambda x: nn.functional.pad(x, (2, 1), "reflect"), "aten.pad.default", width=11),
    between("every other", lambda x: x[:, ::2], "aten.slice.Tensor", width=4),
    between(
        "computed with the largest one's place",
        lambda x: x / (1 + x.argmax(-1, keepdim=True)),
        "aten.add.Tensor",
    ),
    Case(
        "gather where the data says",
        lambda: Between(lambda x: x.gather(-1, x.argsort(-1))),
        rows(6),
        SURVIVOR,
        {
            "input": into("first"),
            "aten.argsort.default": out("first"),
            "aten.gather.default": into("middle"),
            "output": out("last"),
        },
    ),
    between("top values", lambda x: x.topk(8, -1).values, "aten.topk.default"),
    Case(
        "scaled by the first one",
        lambda: Between(lambda x: x * x[:, :1].cos()),
        rows(6),
        (
            group("neuron", 7, HIDDEN),
            *SURVIVOR,
        ),  # The first one has to stay where it is, the others need not.
        {"input": into("first"), "aten.slice.Tensor": HIDDEN, "output": out("last")},
    ),
    Case(
        "one branch sorted",
        OneBranch,
        rows(6),
        (group("neuron", 8, out("right"), into("last")),),
        {
            "input": into("left", "right"),
            "aten.sort.default": out("left") | into("last"),
            "output": out("last"),
        },
    ),
    Case(
        "rows routed by data",
        Routed,
        rows(6),
        (group("neuron", 7, at("table", 1), into("last")),),
        {
            "input": into("first"),
            "aten.index.Tensor": out("first") | at("table", 0),
            "output": out("last"),
        },
    ),
)
