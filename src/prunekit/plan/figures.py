"""Figures of a plan as sums over levers: what a model costs or loses at any levels, joint costs included."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from prunekit.graph import Groups
from prunekit.graph.atoms import Dims
from prunekit.graph.operations import Cache, Operations, Placed
from prunekit.measure.operation import Operation
from prunekit.plan.levers import Lever, Levers
from prunekit.plan.select import keep_mask
from prunekit.types import BoolArray, IntArray, KeepMask

T = TypeVar("T")

MOST_COMBINATIONS = 20_000
"""Of the levels that one operator depends on, up to which all are looked at."""

Scope = tuple[int, ...]
"""The levers that something depends on, by their places, ascending."""


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure that is a sum of terms, each of which depends on few levers.

    An operation between two widths costs what both make of it, so a term is a table over all combinations of
    its levers' levels.

    Attributes:
        constant: what does not depend on any lever.
        terms: by scope, a table with one dimension for each lever of the scope.
    """

    constant: float
    terms: dict[Scope, npt.NDArray[np.float64]]

    def at(self, levels: Sequence[int] | IntArray) -> float:
        """The figure at these levels, ``[levers]``."""
        return self.constant + sum(
            float(table[tuple(int(levels[place]) for place in scope)]) for scope, table in self.terms.items()
        )

    def least(self) -> float:
        """A bound that the figure at no levels lies below: each term at its own least."""
        return self.constant + sum(float(table.min()) for table in self.terms.values())

    def scaled(self, factor: float) -> Figure:
        """The same figure times a factor."""
        return Figure(self.constant * factor, {scope: table * factor for scope, table in self.terms.items()})


@dataclass(frozen=True)
class Limit:
    """A figure that may not be above a bound.

    Attributes:
        figure: such as the milliseconds of a call.
        most: the bound, > 0.
    """

    figure: Figure
    most: float

    def is_met(self, levels: IntArray) -> bool:
        """Whether the figure is within the bound, but for rounding."""
        return self.figure.at(levels) <= self.most * (1 + 1e-9)


def figure_of(tables: Iterable[tuple[Scope, npt.NDArray[np.float64]]], constant: float = 0.0) -> Figure:
    """Add up tables; those of equal scopes become one, those of none go into the constant."""
    terms: dict[Scope, npt.NDArray[np.float64]] = {}
    for scope, table in tables:
        if not scope:
            constant += float(table)
        else:
            terms[scope] = terms[scope] + table if scope in terms else table.astype(np.float64)
    return Figure(constant, terms)


def loss_figure(losses: Sequence[npt.NDArray[np.float64]]) -> Figure:
    """The sum of what each lever loses at its level."""
    return figure_of(((place,), np.asarray(loss, dtype=np.float64)) for place, loss in enumerate(losses))


@dataclass(frozen=True, eq=False)
class OperationTerm:
    """One operator of the model at all combinations of the levels that change it.

    Attributes:
        placed: the operator.
        scope: the levers that change it.
        operations: object array, one dimension for each lever of the scope: the operation at these levels, or
            None where the operator is gone.
        weight: how often it counts; not 1 where an operator has several terms.
    """

    placed: Placed
    scope: Scope
    operations: npt.NDArray[np.object_]
    weight: float = 1.0


def operation_terms(
    operations: Operations, levers: Levers, groups: Groups, *, batch: int | None = None
) -> tuple[OperationTerm, ...]:
    """Every operator at all combinations of the levels that change it.

    Args:
        operations: of the model.
        levers: of the plan.
        groups: that the levers are about.
        batch: examples in a call.
    """
    combined = _Combinations(levers, groups)
    gone = combined.without(groups.gone)
    found = []
    for placed in operations.placed:
        depths = [place for place, nodes in gone.items() if placed.node in nodes]
        make = partial(operations.operation, placed, batch=batch)
        for scope, table, weight in combined.tables(placed.groups, depths, make):
            found.append(OperationTerm(placed, scope, table, weight))
    return tuple(found)


def valued(terms: Iterable[OperationTerm], value: Callable[[Operation], float]) -> Figure:
    """A figure from what each operation is worth, such as its milliseconds or its MACs."""
    known: dict[Operation, float] = {}

    def worth(operation: Operation | None) -> float:
        if operation is None:
            return 0.0
        if operation not in known:
            known[operation] = float(value(operation))
        return known[operation]

    def worths(term: OperationTerm) -> npt.NDArray[np.float64]:
        values = [worth(operation) for operation in term.operations.ravel()]
        return term.weight * np.array(values, dtype=np.float64).reshape(term.operations.shape)

    return figure_of((term.scope, worths(term)) for term in terms)


def parameter_figure(levers: Levers, groups: Groups, *, in_bytes: bool = False) -> Figure:
    """The number of parameters, or their bytes, at any levels.

    A tensor goes with a layer that alone reads it; what several layers read stays. Parameters that nothing
    reads stay, but for those of a layer that goes.
    """
    combined = _Combinations(levers, groups)
    lost = combined.without(groups.lost_tensors)
    tables = [*_unread_parameters(combined, groups, in_bytes)]
    for name in sorted(groups.graph.trainable):
        if name not in groups.tensor_names:
            continue
        dims = groups.tensor_labels(name)
        worth = groups.graph.tensor(name).element_size() if in_bytes else 1
        depths = [place for place, names in lost.items() if name in names]
        named = {
            occurrence.group
            for dim in dims
            if isinstance(dim, np.ndarray)
            for occurrence in groups.occurrences(dim)
        }

        def size(keep: KeepMask, dims: Dims = dims, worth: int = worth) -> int:
            return worth * prod(groups.count(dim, keep) for dim in dims)

        tables += combined.numbers(named, depths, size)
    return figure_of(tables)


def _unread_parameters(
    combined: _Combinations, groups: Groups, in_bytes: bool
) -> Iterator[tuple[Scope, npt.NDArray[np.float64]]]:
    """Those that nothing reads; they go with the layers that they belong to."""
    left = combined.without(groups.left_unread)
    for name in groups.left_unread({}):
        tensor = groups.graph.tensor(name)
        size = tensor.numel() * (tensor.element_size() if in_bytes else 1)
        depths = [place for place, names in left.items() if name not in names]
        yield from combined.numbers((), depths, lambda _, size=size: size)


def cache_figure(
    operations: Operations, levers: Levers, groups: Groups, *, batch: int | None = None
) -> Figure:
    """The bytes of the caches that one call hands to the next, at any levels; 0 where a model has none."""
    combined = _Combinations(levers, groups)
    gone = combined.without(groups.gone)
    tables = []
    for cache in operations.caches:
        depths = [place for place, nodes in gone.items() if cache.node in nodes]

        def size(keep: KeepMask, cache: Cache = cache) -> int:
            return cache.element_bytes * prod(operations.sizes(cache.dims, keep, batch))

        tables += combined.numbers(cache.groups, depths, size)
    return figure_of(tables)


class _Combinations:
    """Goes through the combinations of the levels of a few levers."""

    def __init__(self, levers: Levers, groups: Groups) -> None:
        self._levers = levers
        self._masks = _masks(levers, groups)
        self._width = {lever.group.name: place for place, lever in enumerate(levers) if lever.unit is None}

    def without(self, lost: Callable[[KeepMask], Collection[T]]) -> dict[int, Collection[T]]:
        """For each lever of a layer or branch, what is lost with it alone."""
        return {
            place: lost(_without(lever)) for place, lever in enumerate(self._levers) if lever.unit is not None
        }

    def tables(
        self, named: Iterable[str], depths: Sequence[int], make: Callable[[KeepMask], Any]
    ) -> Iterator[tuple[Scope, npt.NDArray[np.object_], float]]:
        """What ``make`` gives for each combination of the levers of these groups, None where it is gone.

        Where there are more than :data:`MOST_COMBINATIONS`, as behind a concatenation of many, the sum of
        tables over pairs, single levers and none stands for it: ``sum f_ij - (n - 2) sum f_i + (n - 1)(n -
        2) / 2 f``, which is exact for what is linear in each of two levers at a time (an output width times
        the sum of the parts); beyond that many pairs ``sum f_i - (n - 1) f``.

        Args:
            named: groups that matter; those without a lever stay whole.
            depths: levers of layers and branches with which it goes.
            make: is given a mask that is ``Groups.tied``.

        Yields:
            Scope, table and the weight that it counts with.
        """
        scope = tuple(sorted({*(self._width[name] for name in named if name in self._width), *depths}))
        count = len(scope)
        if self._combinations(scope) <= MOST_COMBINATIONS:
            yield scope, self._table(scope, depths, make), 1.0
            return
        pairs = list(combinations(scope, 2))
        if sum(map(self._combinations, pairs)) > MOST_COMBINATIONS:
            pairs = []
        for pair in pairs:
            yield pair, self._table(pair, depths, make), 1.0
        single, none = (2 - count, (count - 1) * (count - 2) / 2) if pairs else (1, 1 - count)
        for place in scope:
            yield (place,), self._table((place,), depths, make), float(single)
        yield (), self._table((), depths, make), float(none)

    def numbers(
        self, named: Iterable[str], depths: Sequence[int], make: Callable[[KeepMask], int]
    ) -> Iterator[tuple[Scope, npt.NDArray[np.float64]]]:
        """:meth:`tables` of numbers, 0 where it is gone, their weights counted in."""
        for scope, table, weight in self.tables(named, depths, make):
            values = [0.0 if value is None else weight * float(value) for value in table.ravel()]
            yield scope, np.array(values).reshape(table.shape)

    def _combinations(self, scope: Scope) -> int:
        return prod(len(self._levers[place]) for place in scope)

    def _table(
        self, scope: Scope, depths: Sequence[int], make: Callable[[KeepMask], Any]
    ) -> npt.NDArray[np.object_]:
        table = np.empty(tuple(len(self._levers[place]) for place in scope), dtype=np.object_)
        for levels in product(*(range(size) for size in table.shape)):
            chosen = dict(zip(scope, levels, strict=True))
            if not any(chosen.get(place, 0) for place in depths):
                keep = {
                    self._levers[place].group.name: self._masks[place][level]
                    for place, level in chosen.items()
                    if level and place in self._masks
                }
                table[levels] = make(keep)
        return table


def _masks(levers: Levers, groups: Groups) -> dict[int, list[BoolArray]]:
    """For each lever of a width, the tied mask of its group at each level."""
    return {
        place: [
            groups.tied({lever.group.name: keep_mask(lever.order, int(kept))})[lever.group.name]
            for kept in lever.kept
        ]
        for place, lever in enumerate(levers)
        if lever.unit is None
    }


def _without(lever: Lever) -> dict[str, BoolArray]:
    mask = np.ones(lever.group.size, dtype=np.bool_)
    mask[lever.unit] = False
    return {lever.group.name: mask}
