"""What each level of each lever is taken to lose: from scores alone, or calibrated by measured losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy

from prunekit.errors import SelectionError, ShapeError
from prunekit.plan.levers import Lever, Levers
from prunekit.types import Group, Scores

FloatArray64 = npt.NDArray[np.float64]

Sensitivities = Mapping[str, Mapping[float, float]]
"""By lever, by the share of its units that go, the increase of the loss that was measured."""

Normalization = Literal["share", "isomorphic", "none"]

_BY_COUNT = 1e-3
"""How much of the amount that is lost counts units in place of scores, so that units of score 0 count too."""

_LEAST = 0.01
"""The share of what its kind loses that a lever costs at least: no measurement tells that a cut is free."""

_APART = 1e-9
"""By how much the logarithms of two amounts differ at least, to tell a power from them."""

_STEEPEST = 8.0
"""The highest power with which a curve goes on beyond what was measured."""


@dataclass(frozen=True, eq=False)
class LossCurve:
    """What the levels of one lever are taken to lose, and where that comes from.

    Attributes:
        lever: its name.
        losses: ``[levels]`` float64, 0 at level 0, never falling.
        amounts: ``[levels]``, what the scores say of it: 1 = the whole of its group, or an average layer.
        source: ``scores``; ``measured``; or ``borrowed``, and from how many levers of which kind.
        power: of the amount, with which the curve goes on beyond its last measured point; 1 where fewer than
            two points were measured, and the median of the lenders where it is borrowed.
    """

    lever: str
    losses: FloatArray64
    amounts: FloatArray64
    source: str
    power: float = 1.0


def level_losses(
    levers: Levers,
    scores: Scores,
    sensitivities: Sensitivities | None = None,
    *,
    normalization: Normalization = "share",
) -> tuple[FloatArray64, ...]:
    """The losses of :func:`loss_curves` alone: of each lever ``[levels]`` float64."""
    curves = loss_curves(levers, scores, sensitivities, normalization=normalization)
    return tuple(curve.losses for curve in curves)


def loss_curves(
    levers: Levers,
    scores: Scores,
    sensitivities: Sensitivities | None = None,
    *,
    normalization: Normalization = "share",
) -> tuple[LossCurve, ...]:
    """Say what every level of every lever is taken to lose.

    From scores alone: ``amount[l] = sum of the scores that go at level l / whole``. The whole is, with

    - ``share``: the sum of the group's scores, or the mean score of the layers of a group of layers. So to
      lose all of one group costs what it costs to lose all of another, and as much as an average layer.
    - ``isomorphic``: the mean of these figures over all groups of the same structure (units of the same kind,
      tensors in the same roles, of whatever sizes). For scores that were not normalised per group
      (``normalization="none"`` in :func:`prunekit.importance.score`): groups of one structure compete by
      their raw scores, and structures as equals.
    - ``none``: 1. The sum of the scores as they are: a global ranking.

    Scores below 0 count as 0: of a criterion that foretells a change of the loss, they say that removing the
    unit does no harm, and so it costs nothing. Scores that only rank (logarithms, standardised ones) have to
    be made positive before, as ``normalization="gaussian"`` of :func:`prunekit.importance.score` does.

    With sensitivities: the measured points calibrate the curve of the scores, each lever by itself. With
    ``x = (1 - 1e-3) * amount + 1e-3 * share of the units``, which rises with every unit, and the increases
    ``y`` at the measured ``x[1] < ... < x[n]`` (of all that are 0 or more and never fall the nearest to what
    was measured in the least-squares sense: its isotonic regression, with what is below 0 set to 0 after it;
    before it, noise below 0 would be lifted and noise above 0 kept, so that a pool of both came out high),

    - at a measured point the loss is ``y[i]``, or the least that counts (below), where that is more,
    - between two it is ``y[i] * (x / x[i]) ** q``, a power of what the scores say, with the q that meets
      both; linear in x from a point where y is 0,
    - beyond the last it is ``y[n] * (x / x[n]) ** p``, where p is the slope of log y over log x, fitted to
      the points where y > 0, in [0, 8]; 1 where there are fewer than two of these,
    - before the first it is ``y[1] * (x / x[1]) ** max(p, 1)``: at first no loss rises faster than x.

    A lever without measurement borrows: at each level the median of what the measured levers of its kind
    (granularity) lose at the same x; of all measured levers, where there are none of its kind. The curve's
    ``source`` says so.

    No lever costs less than a hundredth of the median of the levers of its kind that measured a loss (of all
    levers, where none of its kind did): of levers that seem to cost nothing no more are taken than a goal
    needs, and those of the least scores.

    Args:
        levers: whose levels are asked about.
        scores: by group name ``[units]``; those that ``levers`` were ordered by.
        sensitivities: from :func:`prunekit.surgery.measure_unit_sensitivity`, in units of the loss.
        normalization: how groups compare, where nothing was measured.

    Returns:
        One curve for each lever, in their order.

    Raises:
        SelectionError: sensitivities of no lever, or that are no numbers, or of shares that are none; an
            unknown normalization, or one besides ``share`` together with sensitivities.
        ShapeError: scores that do not fit.

    Source: like compared with like: Fang et al., 2024, Isomorphic Pruning for Vision Models,
    https://arxiv.org/abs/2407.04616. Deviation: there the same share goes of every structure, ranked inside
    it; here structures compete, and what is compared is read from the slices of a group instead of its graph.
    Each part cut by itself and the loss measured: Li et al., 2017, section 3.2,
    https://arxiv.org/abs/1608.08710. Deviations: the points are joined by what the scores say, and the
    increases are added up, which is an assumption. Isotonic regression within bounds is the one without them,
    clipped: Robertson, Wright, Dykstra, 1988, Order Restricted Statistical Inference.
    """
    if normalization not in _WHOLES:
        raise SelectionError(
            f"The normalization is {normalization!r}", expected=f"one of {list(_WHOLES)}", where="losses"
        )
    weights = {lever.group.name: _weights_of(lever.group, scores) for lever in levers}
    if sensitivities is None:
        wholes = _WHOLES[normalization]({lever.group.name: lever.group for lever in levers}, weights)
        return tuple(
            LossCurve(lever.name, amounts, amounts, "scores")
            for lever in levers
            for amounts in [_removed_sums(lever, weights) / wholes[lever.group.name]]
        )
    if normalization != "share":
        raise SelectionError(
            f"The normalization is {normalization!r}",
            expected="'share', because measured losses compare groups by themselves",
            where="losses",
        )
    return _calibrated(levers, weights, _checked(levers, sensitivities))


def removed_shares(lever: Lever) -> FloatArray64:
    """The share of a lever's units that goes at each level, ``[levels]``; 1 for a layer that goes."""
    return 1.0 - lever.kept / float(lever.kept[0])


def _weights_of(group: Group, scores: Scores) -> FloatArray64:
    """``[units]``, the scores from 0 up."""
    found = scores.get(group.name)
    if found is None or np.shape(found) != (group.size,) or not np.isfinite(found).all():
        raise ShapeError(
            f"The scores are {'missing' if found is None else f'of the shape {list(np.shape(found))}'}",
            expected=f"a finite one for each of the {group.size} units",
            where=f"group '{group.name}'",
        )
    return np.maximum(np.asarray(found, dtype=np.float64), 0.0)


def _removed_sums(lever: Lever, weights: Mapping[str, FloatArray64]) -> FloatArray64:
    """``[levels]``, the sum of the scores that go."""
    own = weights[lever.group.name]
    if lever.unit is not None:
        return np.array([0.0, own[lever.unit]])
    return _sums_by_count(lever, own)[lever.kept[0] - lever.kept]


def _sums_by_count(lever: Lever, own: FloatArray64) -> FloatArray64:
    """``[units_per_block + 1]``, the sum of the scores that go with the last so many units of each block."""
    going = own[lever.order[:, ::-1]].sum(axis=0)
    return np.concatenate([[0.0], np.cumsum(going)])


def _wholes(groups: Mapping[str, Group], weights: Mapping[str, FloatArray64]) -> dict[str, float]:
    """The sum of a group's scores, or the mean of its layers'."""
    return {
        name: float(weights[name].mean() if group.is_depth else weights[name].sum())
        for name, group in groups.items()
    }


def _own_wholes(groups: Mapping[str, Group], weights: Mapping[str, FloatArray64]) -> dict[str, float]:
    return {name: whole or 1.0 for name, whole in _wholes(groups, weights).items()}


def _isomorphic_wholes(groups: Mapping[str, Group], weights: Mapping[str, FloatArray64]) -> dict[str, float]:
    own = _wholes(groups, weights)
    pools: dict[Hashable, list[float]] = {}
    for name, group in groups.items():
        pools.setdefault(structure_of(group), []).append(own[name])
    return {name: float(np.mean(pools[structure_of(group)])) or 1.0 for name, group in groups.items()}


_WHOLES: dict[str, Callable[[Mapping[str, Group], Mapping[str, FloatArray64]], dict[str, float]]] = {
    "share": _own_wholes,
    "isomorphic": _isomorphic_wholes,
    "none": lambda groups, weights: dict.fromkeys(groups, 1.0),
}
"""What the scores that go are divided by, of each group; 1 where all of them are 0."""


def structure_of(group: Group) -> Hashable:
    """What two groups of the same structure have in common, whatever their sizes and places.

    The kind of the units, whether they lie in blocks, and of every slice the role, the dimension and the last
    part of the tensor's name. Of layers and branches the same of one of them: they may be few or many.
    """
    slices = group.slices
    if group.is_depth and slices:
        slices = tuple(part for part in slices if (part.units == slices[0].units[0]).all())
    parts = sorted(
        (part.role, part.dim, part.block_dim is not None, part.tensor.rpartition(".")[2]) for part in slices
    )
    return group.granularity, group.blocks > 1, tuple(parts)


@dataclass(frozen=True, eq=False)
class _Measured:
    """A measured curve over the amount x.

    Attributes:
        x: ``[points]``, above 0, rising.
        y: ``[points]``, from 0 up, never falling.
        power: fitted to all of them, with which it goes on beyond the last.
    """

    x: FloatArray64
    y: FloatArray64
    power: float

    def at(self, amounts: FloatArray64) -> FloatArray64:
        """The loss at rising amounts."""
        left = np.searchsorted(self.x, amounts, side="right") - 1
        base = np.maximum(left, 0)
        along = self.y[base] * (amounts / self.x[base]) ** self._powers[left + 1]
        linear = np.interp(amounts, [0.0, *self.x], [0.0, *self.y])
        return np.maximum.accumulate(np.where(self.y[base] > 0, along, linear))  # Rounding may let it fall.

    @property
    def _powers(self) -> FloatArray64:
        """``[points + 1]``: before the first point, from each to the next, and beyond the last."""
        between = [
            math.log(y1 / y0) / math.log(x1 / x0) if y0 > 0 else 1.0
            for (x0, y0), (x1, y1) in pairwise(zip(self.x.tolist(), self.y.tolist(), strict=True))
        ]
        return np.array([max(self.power, 1.0), *between, self.power])


def _calibrated(
    levers: Levers, weights: Mapping[str, FloatArray64], sensitivities: Sensitivities
) -> tuple[LossCurve, ...]:
    wholes = _own_wholes({lever.group.name: lever.group for lever in levers}, weights)
    amounts = [_rising_amounts(lever, weights, wholes, removed_shares(lever)) for lever in levers]
    measured: dict[str, _Measured] = {}
    kinds: dict[str, list[_Measured]] = {}
    for lever in levers:
        if points := sensitivities.get(lever.name):
            shares = np.array(sorted(points))
            found = _fitted(
                _rising_amounts(lever, weights, wholes, shares),
                np.array([points[s] for s in shares.tolist()]),
            )
            measured[lever.name] = found
            kinds.setdefault(str(lever.group.granularity), []).append(found)
    curves: list[LossCurve] = []
    for lever, own in zip(levers, amounts, strict=True):
        found, kind = measured.get(lever.name), str(lever.group.granularity)
        lenders = kinds.get(kind) or list(measured.values())
        least = _least_at(own, lenders, list(measured.values()))
        if found is not None:
            losses = np.maximum(found.at(own), least)
            curves.append(LossCurve(lever.name, losses, own, "measured", found.power))
            continue
        whose = f"of the kind {kind}" if kind in kinds else "of other kinds"
        losses = np.maximum(np.median([lender.at(own) for lender in lenders], axis=0), least)
        power = float(np.median([lender.power for lender in lenders]))
        curves.append(
            LossCurve(lever.name, losses, own, f"borrowed from {len(lenders)} measured {whose}", power)
        )
    return tuple(curves)


def _least_at(
    amounts: FloatArray64, own_kind: Sequence[_Measured], every: Sequence[_Measured]
) -> FloatArray64:
    """The least loss that counts: :data:`_LEAST` of the median of the levers that measured one.

    Beyond what a lever measured it goes on in a straight line: a power could make much of a hundredth.
    """
    costly = [each for each in own_kind if each.y.any()] or [each for each in every if each.y.any()]
    if not costly:
        return np.zeros_like(amounts)
    found = [
        each.at(np.minimum(amounts, each.x[-1])) * np.maximum(amounts / each.x[-1], 1.0) for each in costly
    ]
    return _LEAST * np.median(found, axis=0)


def _rising_amounts(
    lever: Lever,
    weights: Mapping[str, FloatArray64],
    wholes: Mapping[str, float],
    shares: FloatArray64,
) -> FloatArray64:
    """``x`` of :func:`loss_curves` at shares of a lever's units, which need not be those of its levels."""
    own, whole = weights[lever.group.name], wholes[lever.group.name]
    if lever.unit is not None:
        amounts = shares * own[lever.unit] / whole
    else:
        sums = _sums_by_count(lever, own)
        amounts = np.interp(shares * (len(sums) - 1), np.arange(len(sums)), sums) / whole
    return (1.0 - _BY_COUNT) * amounts + _BY_COUNT * shares


def _fitted(x: FloatArray64, increases: FloatArray64) -> _Measured:
    y = np.maximum(np.asarray(scipy.optimize.isotonic_regression(increases).x, dtype=np.float64), 0.0)
    positive = y > 0
    power = 1.0
    if positive.sum() > 1 and np.ptp(np.log(x[positive])) > _APART:
        slope = np.polyfit(np.log(x[positive]), np.log(y[positive]), 1)[0]
        power = float(np.clip(slope, 0.0, _STEEPEST))
    return _Measured(x, y, power)


def _checked(levers: Levers, sensitivities: Sensitivities) -> Sensitivities:
    """The sensitivities, of which there is one at least, all of these levers and all numbers.

    Raises:
        SelectionError: otherwise.
    """
    known = {lever.name for lever in levers}
    if unknown := [name for name in sensitivities if name not in known]:
        raise SelectionError(
            f"Sensitivities are given of {', '.join(unknown[:5])}",
            expected="names of levers",
            where="losses",
            remedy="Give only those of the levers that the plan is made of",
        )
    for name, points in sensitivities.items():
        if not all(0 < share <= 1 and math.isfinite(found) for share, found in points.items()):
            raise SelectionError(
                f"The sensitivities are {dict(points)}",
                expected="finite increases of the loss at shares above 0, up to 1",
                where=f"lever '{name}'",
            )
    if len(known) and not any(sensitivities.values()):
        raise SelectionError(
            "There are no measured points", expected="those of one lever at least", where="losses"
        )
    return sensitivities
