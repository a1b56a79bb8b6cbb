"""Derivatives of the user's own that a graph does not have."""

from __future__ import annotations

import torch
from torch import nn

import prunekit as pk


class Rounded(torch.autograd.Function):
    """Rounds forward, and lets gradients through."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore
        return gradient


class RoundedNet(nn.Module):
    """Only the graph can follow it, and the graph has no gradient of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(Rounded.apply(self.first(x)).view(-1, 8))


def test_a_graph_says_which_derivatives_it_has_lost():
    model, x = RoundedNet().eval(), torch.randn(2, 6)
    pruned = pk.prune(model, (x,))
    assert pruned.form == "graph module"
    assert pruned.form_reason.endswith("the derivative is the ordinary one, not that of Rounded")
    pruned.model(x).sum().backward()
    assert not pruned.model.get_parameter("first.weight").grad.any()  # pyright: ignore
