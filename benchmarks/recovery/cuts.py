"""How much of a model goes, and how: channels along with all that reads them, or single weights by masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

import prunekit as pk
from prunekit.importance import NEEDS, needs_of
from prunekit.recover import follow
from prunekit.types import WIDTHS, Cost
from prunekit.workload import Batch

TOLERANCE = 0.05
"""How far the MACs left may lie from those asked for, relative to these; channels come in whole numbers."""


class Cut(Protocol):
    """One way to take from a model.

    Law: cutting in several calls of rising sparsity leaves as much as cutting at once.
    """

    def __call__(
        self, model: nn.Module, sparsity: float, optimizer: torch.optim.Optimizer | None = None
    ) -> nn.Module:
        """The model with the fraction ``sparsity`` of the parent gone; ``optimizer`` follows."""
        ...

    def left(self, model: nn.Module) -> float:
        """The share that is left of the parent."""
        ...

    def finished(self, model: nn.Module) -> nn.Module:
        """The model as it is used: without masks."""
        ...


@dataclass(frozen=True)
class Channels:
    """Multiply-accumulates go: the channels with the smallest L2 norm, the same share of every group.

    Attributes:
        example: inputs for tracing.
        dense: the cost of the parent.
    """

    example: Batch
    dense: Cost

    def __call__(
        self, model: nn.Module, sparsity: float, optimizer: torch.optim.Optimizer | None = None
    ) -> nn.Module:
        """See :class:`Cut`."""
        groups = groups_of(model, self.example)
        goal = pk.Goal("macs", reach=round(self.dense.macs * (1 - sparsity)), tolerance=TOLERANCE)
        plan = pk.allocate(groups, pk.score(model, groups, "l2"), goal, criterion="l2")
        removal = pk.remove(model, plan, groups)
        if optimizer is not None:
            follow(optimizer, model, removal, plan, groups)
        return removal.model

    def left(self, model: nn.Module) -> float:
        """See :class:`Cut`."""
        return groups_of(model, self.example).cost().macs / self.dense.macs

    def finished(self, model: nn.Module) -> nn.Module:
        """See :class:`Cut`."""
        return model


@dataclass(frozen=True)
class SingleWeights:
    """Single weights go: the smallest of all matrices and kernels together.

    Attributes:
        scope: which weights compete.
    """

    scope: str = "global"

    def __call__(
        self, model: nn.Module, sparsity: float, optimizer: torch.optim.Optimizer | None = None
    ) -> nn.Module:
        """See :class:`Cut`."""
        return pk.mask_weights(model, sparsity=sparsity, scope=self.scope, in_place=True).model

    def left(self, model: nn.Module) -> float:
        """See :class:`Cut`."""
        weights = [p for p in pk.fold_masks(model).parameters() if p.ndim >= 2]
        return sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights)

    def finished(self, model: nn.Module) -> nn.Module:
        """See :class:`Cut`."""
        return pk.fold_masks(model)


@dataclass(frozen=True)
class Units:
    """Heads, neurons of feed-forward parts, or layers go, the same share of every group.

    Attributes:
        granularity: of what goes.
        criterion: that scores it.
        calibration: batches for its statistics, scored on the model as it is.
        example: inputs for tracing.
        dense: the cost of the parent.
    """

    granularity: str
    criterion: str
    calibration: tuple[Batch, ...]
    example: Batch
    dense: Cost

    def __call__(
        self, model: nn.Module, sparsity: float, optimizer: torch.optim.Optimizer | None = None
    ) -> nn.Module:
        """See :class:`Cut`."""
        whole = traced(model, self.example)
        groups = whole.select(granularity=[self.granularity])
        needs = needs_of(self.criterion) & NEEDS
        stats = pk.collect(model, self.calibration, groups=groups, needs=needs)
        scores = pk.score(model, groups, self.criterion, stats=stats)
        plan = pk.allocate(groups, scores, pk.Goal("sparsity", remove=sparsity), criterion=self.criterion)
        removal = pk.remove(model, plan, groups)
        if optimizer is not None:
            follow(optimizer, model, removal, plan, groups)
        return removal.model

    def left(self, model: nn.Module) -> float:
        """See :class:`Cut`."""
        return traced(model, self.example).cost().macs / self.dense.macs

    def finished(self, model: nn.Module) -> nn.Module:
        """See :class:`Cut`."""
        return model


def groups_of(model: nn.Module, example: Batch) -> pk.Groups:
    """The widths of a model that may be pruned."""
    return traced(model, example).select(granularity=WIDTHS)


def traced(model: nn.Module, example: Batch) -> pk.Groups:
    """All groups of a model; its mode is left as found."""
    training = model.training
    model.eval()
    groups = pk.find_groups(pk.trace(model, example.args, dict(example.kwargs)))
    model.train(training)
    return groups
