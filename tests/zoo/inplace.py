"""Nets that write in place, and nets of which a part runs without gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.zoo.case import Case, Place, at, group, image, into, norm, out, rows
from torch import nn


class Writing(nn.Module):
    """An operation that writes in place, between two layers that may both be called by it."""

    def __init__(self, use) -> None:
        super().__init__()
        self.use = use
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.linspace(0.2, 1.6, 8))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        return self.last(self.use(self, self.first(x)))


def residual() -> nn.Module:
    """Activations in place behind convolutions and norms."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 10, 3),
        nn.SiLU(inplace=True),
        nn.Conv2d(10, 4, 1),
    )


def added(model: Writing, x):
    y = model.middle(torch.relu(x))
    y += x
    return y


def scaled(model: Writing, x):
    return F.relu_(model.middle(F.relu(x)).mul_(model.scale))


def half_written(model: Writing, x):
    """Half of the neurons are those of another layer."""
    given, x = model.middle(x), x.clone()
    x[:, :4] = given[:, :4]
    return x


def copied(model: Writing, x):
    memory = x.new_zeros(x.shape)
    memory[:].copy_(model.middle(torch.relu(x)))
    return memory


def weighed_without_gradient(model: Writing, x):
    """The weights of the second layer get no gradient from what is computed of them."""
    with torch.no_grad():
        share = model.middle(x).sigmoid()
    return x * share


def limited_without_gradient(model: Writing, x):
    """A parameter is kept within bounds as it is used."""
    with torch.no_grad():
        model.scale.clamp_(0.0, 1.0)
    return F.relu_(model.middle(torch.relu(x))) * model.scale


def averaged_without_gradient(model: Writing, x):
    """A buffer takes the last mean."""
    with torch.no_grad():
        model.mean.mul_(0.0).add_(x.mean(0))
    return model.middle(torch.relu(x)) + model.scale


ENDS = {"input": into("first"), "output": out("last")}
ALONE: set[Place] = out("first") | into("middle")
BEHIND: set[Place] = out("middle") | into("last")


def writing(name: str, use, *groups, **frozen: set[Place]) -> Case:
    return Case(name, lambda: Writing(use), rows(6), groups, {**ENDS, **frozen})


CASES = (
    Case(
        "activations in place",
        residual,
        image(),
        (
            group("channel", 8, out("0", bias=False), norm("1"), into("3")),
            group("channel", 10, out("3"), into("5")),
        ),
        {"input": into("0"), "output": out("5")},
    ),
    writing("added in place", added, group("hidden", 8, ALONE, BEHIND)),
    writing(
        "multiplied in place",
        scaled,
        group("neuron", 8, ALONE),
        group("neuron", 8, BEHIND, at("scale")),
    ),
    Case(
        "half written in place",
        lambda: Writing(half_written),
        rows(6),
        (
            group("neuron", 4, ALONE, BEHIND),
            group("neuron", 4, ALONE, into("last")),
            group("neuron", 4, out("middle")),  # Nothing reads the half that is not written.
        ),
        ENDS,
        own_class=False,
    ),
    writing("copied in place", copied, group("neuron", 8, ALONE), group("neuron", 8, BEHIND)),
    writing("a share without gradient", weighed_without_gradient, group("neuron", 8, ALONE, BEHIND)),
)

WRITING_STATE = (
    writing(
        "limits without gradient",
        limited_without_gradient,
        group("neuron", 8, ALONE),
        group("neuron", 8, BEHIND, at("scale")),
    ),
    writing(
        "a mean without gradient",
        averaged_without_gradient,
        group("neuron", 8, ALONE, at("mean")),
        group("neuron", 8, BEHIND, at("scale")),
    ),
)
"""Nets that change their own tensors whenever they run, so that no two runs are the same."""
