"""A model whose groups are written down by hand, so that these tests do not depend on the graph engine."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.types import Granularity, Group, Slice


class Flattening(nn.Module):
    """conv -> batch norm -> relu -> flatten -> linear: one group of 4 channels, 9 positions each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(36, 3)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.bn(self.conv(x)))).flatten(1))


def channels_group() -> Group:
    whole = np.arange(4)
    return Group(
        name="conv.weight:0",
        granularity=Granularity.CHANNEL,
        size=4,
        blocks=1,
        slices=(
            Slice("conv.weight", 0, whole, "producer"),
            Slice("conv.bias", 0, whole, "follower"),
            Slice("bn.weight", 0, whole, "follower"),
            Slice("bn.bias", 0, whole, "follower"),
            Slice("bn.running_mean", 0, whole, "follower"),
            Slice("bn.running_var", 0, whole, "follower"),
            Slice("head.weight", 1, np.repeat(whole, 9), "consumer"),
        ),
    )


def batch(count: int, seed: int = 0) -> SimpleNamespace:
    draw = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        args=(torch.randn(count, 2, 5, 5, generator=draw),),
        kwargs={},
        target=torch.randint(0, 3, (count,), generator=draw),
    )


def cross_entropy(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch.target)


@pytest.fixture
def model() -> Flattening:
    torch.manual_seed(0)
    model = Flattening()
    with torch.no_grad():
        model.bn.weight.uniform_(0.5, 1.5)
        model.bn.bias.uniform_(-0.5, 0.5)
        model.bn.running_mean.uniform_(-1, 1)
    return model


@pytest.fixture
def group() -> Group:
    return channels_group()


@pytest.fixture
def batches() -> list[SimpleNamespace]:
    return [batch(8, seed) for seed in range(3)]


@pytest.fixture
def loss():
    return cross_entropy
