"""Nets that look up channels and neurons at constant positions: in another order, some, one twice."""

from __future__ import annotations

import torch
from tests.zoo.case import Case, Place, at, group, image, into, out, rows
from torch import nn

ORDER = [3, 1, 0, 2, 7, 6, 5, 4]


class Ordered(nn.Module):
    """An operation between two layers that may read the buffer ``order`` or the plain tensor ``places``."""

    def __init__(self, use, order=ORDER, width: int = 8) -> None:
        super().__init__()
        self.use = use
        self.register_buffer("order", torch.tensor(order))
        self.places, self.third = torch.tensor(order), 3
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(width, 10), nn.Linear(10, 4)

    def forward(self, x):
        return self.last(torch.relu(self.middle(self.use(self, torch.relu(self.first(x))))))


class OrderedTwice(nn.Module):
    """One order for the neurons of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(ORDER))
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))[:, self.order]
        return self.last(torch.relu(self.middle(x)).index_select(-1, self.order))


class OrderedWeight(nn.Module):
    """The rows of a matrix in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([2, 0, 4, 1, 3, 5]))
        self.first, self.last = nn.Linear(6, 8), nn.Linear(6, 4)
        self.matrix = nn.Parameter(torch.randn(6, 8))

    def forward(self, x):
        return self.last(torch.relu(torch.relu(self.first(x)) @ self.matrix[self.order].T))


class ShuffledByIndex(nn.Module):
    """ShuffleNet's unit, its shuffle a buffer of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(8).view(2, 4).t().reshape(-1))
        self.stem = nn.Conv2d(3, 8, 1)
        self.first = nn.Conv2d(8, 8, 1, groups=2)
        self.second = nn.Conv2d(8, 8, 1, groups=2)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = torch.relu(self.first(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.second(x[:, self.order])))


FIRST: set[Place] = out("first") | into("middle")
HIDDEN, SURVIVOR = group("neuron", 8, FIRST), group("neuron", 10, out("middle"), into("last"))
ENDS = {"input": into("first"), "output": out("last")}


def ordered(name: str, use, operator: str, *, held: str = "order", own_class: bool = True, **given) -> Case:
    """All neurons of the first layer stay prunable, whatever order the next one reads them in."""
    return Case(
        name,
        lambda: Ordered(use, **given),
        rows(6),
        (HIDDEN, SURVIVOR),
        {**ENDS, **({operator: at(held)} if held else {})},
        own_class=own_class,
    )


INDEX = "aten.index.Tensor"

CASES = (
    ordered("order in a buffer", lambda model, x: x[:, model.order], INDEX),
    ordered("order in a plain tensor", lambda model, x: x[:, model.places], INDEX, held="places"),
    ordered(
        "order written out",
        lambda model, x: x[:, ORDER],
        INDEX,
        held="",
        own_class=False,
    ),
    ordered(
        "order counted",
        lambda model, x: x[:, torch.arange(8).view(2, 4).t().reshape(-1)],
        INDEX,
        held="",
        own_class=False,
    ),
    ordered(
        "order undone",
        lambda model, x: x[:, model.order.argsort()],
        "aten.argsort.default",
        own_class=False,
    ),
    ordered(
        "order by index_select",
        lambda model, x: x.index_select(1, model.order),
        "aten.index_select.default",
    ),
    ordered(
        "order by gather",
        lambda model, x: x.gather(1, model.order.expand(x.shape[0], -1)),
        "aten.gather.default",
    ),
    ordered(
        "order from the end", lambda model, x: x[:, model.order], INDEX, order=[-1, 2, -3, 1, 0, -2, 3, 4]
    ),
    ordered(
        "all twice",
        lambda model, x: x[:, model.order],
        INDEX,
        order=[*range(8), *range(7, -1, -1)],
        width=16,
    ),
    Case(
        "one twice",
        lambda: Ordered(lambda model, x: x[:, model.order], [0, 0, 1, 2, 3, 4, 5, 6, 7], 9),
        rows(6),
        (group("neuron", 7, FIRST), SURVIVOR),
        {**ENDS, INDEX: at("order"), "reshape": FIRST},
    ),
    Case(
        "some beside all",
        lambda: Ordered(lambda model, x: torch.cat([x, x[:, model.order]], -1), [6, 0, 3], 11),
        rows(6),
        (group("neuron", 3, FIRST), group("neuron", 5, FIRST), SURVIVOR),
        {**ENDS, INDEX: at("order")},
    ),
    Case(
        "one order for two layers",
        OrderedTwice,
        rows(6),
        (group("neuron", 8, out("first", "middle"), into("middle", "last")),),
        {**ENDS, INDEX: at("order")},
    ),
    Case(
        "rows of a matrix in order",
        OrderedWeight,
        rows(6),
        (group("neuron", 6, at("matrix"), into("last")), group("neuron", 8, out("first"), at("matrix", 1))),
        {**ENDS, INDEX: at("order")},
    ),
    Case(
        "channel shuffle by positions",
        ShuffledByIndex,
        image(),
        (
            group("channel", 8, out("stem"), into("first"), blocks=2),
            group("channel_group", 2, out("stem", "first"), into("second")),
            group("channel", 4, out("first"), into("second"), blocks=2),
            group("channel", 8, out("second"), into("head"), blocks=2),
            group("channel_group", 2, out("first", "second"), into("head")),
        ),
        {"input": into("stem"), INDEX: at("order"), "output": out("head")},
    ),
    Case(
        "one by an attribute",
        lambda: Ordered(lambda model, x: x * x[:, model.third, None]),
        rows(6),
        (group("neuron", 7, FIRST), SURVIVOR),
        {**ENDS, "aten.select.int": FIRST},
    ),
    Case(
        "positions that count as well",
        lambda: Ordered(lambda model, x: x[:, model.order] * (1 + model.order)),
        rows(6),
        (SURVIVOR,),
        {**ENDS, INDEX: at("order") | FIRST},
    ),
    Case(
        "positions that are written",
        lambda: Ordered(lambda model, x: x[:, model.order.add_(0)]),
        rows(6),
        (SURVIVOR,),
        {**ENDS, INDEX: at("order") | FIRST},
    ),
)
