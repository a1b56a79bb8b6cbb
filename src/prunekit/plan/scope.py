"""Scopes: which pieces compete with which, and how many stay. Whatever the criterion and the pattern."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunekit.errors import SelectionError
from prunekit.importance import Weights, WeightTensor, lamp
from prunekit.plan.exact import keep_highest


@dataclass(frozen=True)
class Pool:
    """Pieces that compete with each other.

    Attributes:
        names: of the parameters.
        keep: how many pieces stay, of all of them or, ``in_rows``, of each row.
        in_rows: only pieces of one row compete.
    """

    names: tuple[str, ...]
    keep: int
    in_rows: bool = False


@dataclass(frozen=True)
class Pieces:
    """What a scope may look at.

    Attributes:
        weights: the parameters.
        scores: by parameter, ``[rows, columns]`` of pieces; higher = keep.
    """

    weights: Weights
    scores: Mapping[str, Tensor]

    def pooled(self, names: tuple[str, ...], sparsity: float) -> Pool:
        """These parameters as one pool that loses a share, rounded to the nearest piece."""
        count = sum(self.scores[name].numel() for name in names)
        return Pool(names, count - round(sparsity * count))

    def by_share(self, shares: Mapping[str, float], sparsity: float) -> tuple[Pool, ...]:
        """Each parameter by itself losing its share, rounded so that the sum over all is rounded once."""
        counts = {name: self.scores[name].numel() for name in shares}
        wanted = {name: shares[name] * count for name, count in counts.items()}
        total, asked = math.fsum(wanted.values()), sparsity * sum(counts.values())
        nearly = math.isclose(total, asked, rel_tol=1e-9, abs_tol=1e-6)  # not where pieces differ in size
        removed = apportion(wanted, counts, round(asked if nearly else total))
        return tuple(Pool((name,), counts[name] - removed[name]) for name in shares)


class Scope(Protocol):
    """One way to say which pieces compete, and how many stay.

    Laws, tested for every row of :data:`WEIGHT_SCOPES`: every parameter lies in exactly one pool; where
    pieces are single weights the sum of what goes is the sparsity asked for, to the rounding that the scope
    states; at 0 everything stays, at 1 everything goes; the same scores give the same pools.
    """

    def pools(self, pieces: Pieces, sparsity: float) -> tuple[Pool, ...]:
        """Divide all parameters into pools."""
        ...


@dataclass(frozen=True)
class Together:
    """Parameters that compete with each other, each pool losing the same share.

    Attributes:
        key: parameters with the same key compete.
        in_rows: not even they, but only the pieces of one row.
    """

    key: Callable[[WeightTensor], str]
    in_rows: bool = False

    def pools(self, pieces: Pieces, sparsity: float) -> tuple[Pool, ...]:
        """As many pools as there are keys."""
        if self.in_rows:
            columns = {weight.name: pieces.scores[weight.name].shape[1] for weight in pieces.weights}
            return tuple(Pool((name,), n - round(sparsity * n), True) for name, n in columns.items())
        members: dict[str, list[str]] = {}
        for weight in pieces.weights:
            members.setdefault(self.key(weight), []).append(weight.name)
        return tuple(pieces.pooled(tuple(names), sparsity) for names in members.values())


@dataclass(frozen=True)
class Lamp:
    """As many pieces from each parameter as the highest LAMP scores of the whole model leave it.

    The squares in the formula are those of the pieces' scores; with magnitudes that is the paper's method.

    Source: :func:`prunekit.importance.lamp`.
    """

    def pools(self, pieces: Pieces, sparsity: float) -> tuple[Pool, ...]:
        """One pool for each parameter."""
        names = [weight.name for weight in pieces.weights]
        shares = [lamp(pieces.scores[name]).flatten() for name in names]
        count = sum(share.numel() for share in shares)
        masks = keep_highest(shares, count - round(sparsity * count))
        return tuple(Pool((name,), int(mask.sum())) for name, mask in zip(names, masks, strict=True))


@dataclass(frozen=True)
class ErdosRenyiKernel:
    """Densities in proportion to the sum of a shape's sizes over their product; where that is above 1, dense.

    ``density[l] = min(1, eps * sum(shape[l]) / prod(shape[l]))``, ``eps`` such that the total is right.

    Source: Evci et al., 2020, Rigging the Lottery, section 3 (1), https://arxiv.org/abs/1911.11134, after
    Mocanu et al., 2018, https://arxiv.org/abs/1707.04780. Deviation: none.
    """

    def pools(self, pieces: Pieces, sparsity: float) -> tuple[Pool, ...]:
        """One pool for each parameter."""
        counts = {weight.name: weight.count for weight in pieces.weights}
        raw = {weight.name: sum(weight.shape) / weight.count for weight in pieces.weights}
        kept = (1 - sparsity) * sum(counts.values())
        dense: set[str] = set()
        while True:
            rest = [name for name in counts if name not in dense]
            left = kept - sum(counts[name] for name in dense)
            scale = left / sum(raw[name] * counts[name] for name in rest) if rest else 0.0
            above = {name for name in rest if scale * raw[name] > 1}
            if not above:
                break
            dense |= above
        shares = {name: 0.0 if name in dense else 1 - scale * raw[name] for name in counts}
        return pieces.by_share(shares, sparsity)


@dataclass(frozen=True)
class OutlierWeighted:
    """Layers with more outliers among their scores keep more.

    ``outliers[l] = share of scores above factor * mean(scores[l])``;
    ``density[l] = (outliers[l] - min) / (max - min) * 2 * spread + shift``, ``shift`` such that the total is
    right and every density within [0, 1]. A layer is what lies below one number in the names, such as
    ``model.layers.3``, and else a module.

    Attributes:
        factor: ``M`` of the paper, > 0.
        spread: ``lambda``; densities differ by at most twice as much. >= 0.

    Raises:
        SelectionError: other numbers.

    Source: Yin et al., 2024, Outlier Weighed Layerwise Sparsity (OWL), section 3.2 and its published code,
    https://arxiv.org/abs/2310.05175, with Wanda's scores. Deviations: the mean density is weighted by the
    layers' sizes, so that the total is right where they differ; any scores; within a parameter all weights
    compete, where the published code, as Wanda, compares within each row.
    """

    factor: float = 5.0
    spread: float = 0.08

    def __post_init__(self) -> None:
        if not (0 < self.factor < math.inf and 0 <= self.spread < math.inf):
            raise SelectionError(
                f"The factor is {self.factor}, the spread {self.spread}",
                expected="a factor above 0 and a spread of at least 0",
                where="scope",
            )

    def pools(self, pieces: Pieces, sparsity: float) -> tuple[Pool, ...]:
        """One pool for each parameter; those of a layer lose the same share."""
        layers: dict[str, list[WeightTensor]] = {}
        for weight in pieces.weights:
            layers.setdefault(layer_of(weight), []).append(weight)
        outliers = {
            layer: self._outliers([pieces.scores[weight.name] for weight in members])
            for layer, members in layers.items()
        }
        low, high = min(outliers.values()), max(outliers.values())
        offsets = {
            layer: 2 * self.spread * (share - low) / (high - low) if high > low else 0.0
            for layer, share in outliers.items()
        }
        sizes = {layer: sum(weight.count for weight in members) for layer, members in layers.items()}
        density = levelled(offsets, sizes, 1 - sparsity)
        shares = {weight.name: 1 - density[layer_of(weight)] for weight in pieces.weights}
        return pieces.by_share(shares, sparsity)

    def _outliers(self, scores: list[Tensor]) -> float:
        count = sum(part.numel() for part in scores)
        mean = sum(float(part.sum(dtype=torch.float64)) for part in scores) / count
        return sum(int((part > self.factor * mean).sum()) for part in scores) / count


WEIGHT_SCOPES: dict[str, Scope] = {
    "tensor": Together(key=lambda weight: weight.name),
    "row": Together(key=lambda weight: weight.name, in_rows=True),
    "module": Together(key=lambda weight: weight.module),
    "global": Together(key=lambda weight: ""),
    "lamp": Lamp(),
    "erk": ErdosRenyiKernel(),
    "owl": OutlierWeighted(),
}
"""Every scope that needs no further data; :class:`prunekit.plan.BySensitivity` takes measured curves."""


def parse_scope(given: Scope | str) -> tuple[str, Scope]:
    """The scope, and how it is written down.

    Raises:
        SelectionError: there is none of that name.
    """
    if isinstance(given, str):
        if given not in WEIGHT_SCOPES:
            raise SelectionError(
                f"There is no scope '{given}'", expected=f"one of {', '.join(WEIGHT_SCOPES)}", where="scope"
            )
        return given, WEIGHT_SCOPES[given]
    if not callable(getattr(given, "pools", None)):
        raise SelectionError(
            f"The scope is {given!r}", expected=f"one of {', '.join(WEIGHT_SCOPES)}", where="scope"
        )
    return str(given), given


def ranks_rows(scope: Scope) -> bool:
    """Each row of a parameter competes by itself, so that it has to be known what a row is."""
    return isinstance(scope, Together) and scope.in_rows


def layer_of(weight: WeightTensor) -> str:
    """What lies below the first number in its name (``model.layers.3``), else its module."""
    found = re.match(r"(.*?(?:^|\.)\d+)\.", weight.name)
    return found[1] if found else weight.module


def apportion(wanted: Mapping[str, float], most: Mapping[str, int], total: int) -> dict[str, int]:
    """Round to whole numbers whose sum is ``total``, by largest remainder; ties by order.

    Args:
        wanted: each in ``[0, most]``, but for rounding errors.
        most: the largest allowed of each.
        total: the sum of ``wanted``, rounded.
    """
    counts = {name: min(most[name], max(0, math.floor(value + 1e-9))) for name, value in wanted.items()}
    missing = total - sum(counts.values())
    for name in sorted(wanted, key=lambda name: counts[name] - wanted[name]):
        if missing > 0 and counts[name] < most[name]:
            counts[name] += 1
            missing -= 1
    assert missing == 0
    return counts


def levelled(offsets: Mapping[str, float], sizes: Mapping[str, int], mean: float) -> dict[str, float]:
    """Shift all offsets alike, clipped to [0, 1], until their mean, weighted by size, is ``mean``."""
    total = sum(sizes.values())
    low, high = -max(offsets.values()), 1 - min(offsets.values())
    for _ in range(200):
        shift = (low + high) / 2
        values = {name: min(1.0, max(0.0, offset + shift)) for name, offset in offsets.items()}
        if math.fsum(values[name] * sizes[name] for name in values) < mean * total:
            low = shift
        else:
            high = shift
    return {name: min(1.0, max(0.0, offset + high)) for name, offset in offsets.items()}
