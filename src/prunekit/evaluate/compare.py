"""The pruned model against its dense parent, example by example: overall, per class and per slice."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from prunekit.errors import StorageError, UsageError
from prunekit.evaluate.evidence import LABEL, PREDICTION, check_paired, slice_columns
from prunekit.evaluate.statistics import Floats, mcnemar_exact, paired_interval
from prunekit.types import BoolArray

FEW_EXAMPLES = 30
"""Fewer examples say little: where none of n is lost, up to 3/n of all may be (95 %), here 10 points.

Source: Hanley, Lippman-Hand, 1983, If Nothing Goes Wrong, Is Everything All Right?, JAMA 249(13).
"""


@dataclass(frozen=True)
class Change:
    """How quality changed on one set of examples.

    Attributes:
        name: ``overall``, ``class:<label>`` or ``slice:<name>``.
        kind: which of the three.
        n: number of examples, >= 1.
        dense: mean of the metric, dense parent.
        pruned: mean of the metric, pruned model.
        change: ``pruned - dense``; negative = quality lost.
        low: lower end of the interval of ``change``, the pessimistic one.
        high: upper end.
        interval: how the interval was found, ``bca_bootstrap`` or ``adjusted_wald``.
        lost: examples whose metric fell.
        gained: examples whose metric rose.
        too_few: fewer than 30 examples, which say little whatever the numbers are.
    """

    name: str
    kind: Literal["overall", "class", "slice"]
    n: int
    dense: float
    pruned: float
    change: float
    low: float
    high: float
    interval: Literal["bca_bootstrap", "adjusted_wald"]
    lost: int
    gained: int
    too_few: bool


@dataclass(frozen=True)
class Flips:
    """Examples that the pruned model treats differently from its parent.

    Attributes:
        n: number of examples.
        lost: the metric fell (right before, wrong now).
        gained: the metric rose.
        prediction_changed: the answer differs, right or wrong; None without predictions in the evidence.
        p_value: exact two-sided probability of such one-sided flips if both directions were equally likely.
        test: ``exact McNemar``, or ``exact sign test`` for a metric that is not binary.
    """

    n: int
    lost: int
    gained: int
    prediction_changed: int | None
    p_value: float
    test: Literal["exact McNemar", "exact sign test"]


@dataclass(frozen=True)
class Comparison:
    """The pruned model against its dense parent on the same examples.

    Attributes:
        metric: the column that is the quality; higher is better.
        binary: the metric is right or wrong, so its mean is a share and its changes are points.
        confidence: of every interval, each on its own.
        resamples: bootstrap resamples.
        seed: of the resampling.
        overall: all examples.
        slices: one per class, then one per slice column, all that have examples.
        empty_slices: names of the slice columns that hold no example.
        slices_looked_at: ``len(slices)``, the number that ``worst`` is chosen among.
        worst: name of the slice with the lowest ``change`` (ties: the lowest ``low``, then the first); None
            without slices.
        flips: which examples changed.
        note: how to read the worst slice, in sentences.
    """

    metric: str
    binary: bool
    confidence: float
    resamples: int
    seed: int
    overall: Change
    slices: tuple[Change, ...]
    empty_slices: tuple[str, ...]
    slices_looked_at: int
    worst: str | None
    flips: Flips
    note: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """Rebuild from what ``dataclasses.asdict`` gave, after a round trip through JSON.

        Raises:
            StorageError: keys are missing or unknown.
        """
        try:
            parts = {
                "overall": Change(**data["overall"]),
                "slices": tuple(Change(**part) for part in data["slices"]),
                "empty_slices": tuple(data["empty_slices"]),
                "flips": Flips(**data["flips"]),
            }
            return cls(**{**data, **parts})
        except (KeyError, TypeError) as error:
            raise StorageError(
                f"The stored comparison is damaged or of another version: {error}",
                remedy="Delete the stage's directory and run the command again",
            ) from error


def compare(
    dense: pd.DataFrame,
    pruned: pd.DataFrame,
    *,
    metric: str = "correct",
    seed: int = 0,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two models on the same examples.

    The examples are resampled as pairs. Each slice has its own random stream, made from ``seed`` and its
    name, so adding a slice moves no other interval.

    Args:
        dense: evidence of the dense parent, see :mod:`prunekit.evaluate.evidence`.
        pruned: evidence of the pruned model: same examples, same order.
        metric: the column that is the quality; higher is better.
        seed: of the resampling, >= 0.
        resamples: bootstrap resamples, >= 100.
        confidence: of each interval, in (0, 1).

    Returns:
        All changes, flips and intervals; plain JSON types through ``dataclasses.asdict``.

    Raises:
        WorkloadError: a table is not evidence, or the two do not show the same examples.
        UsageError: ``resamples``, ``confidence`` or ``seed`` out of range.
    """
    _check_settings(seed, resamples, confidence)
    check_paired(dense, pruned, metric=metric)
    pairs = _Pairs(
        before=dense[metric].to_numpy(dtype=np.float64),
        after=pruned[metric].to_numpy(dtype=np.float64),
        seed=seed,
        resamples=resamples,
        confidence=confidence,
    )
    overall = pairs.change("overall", "overall", np.ones(len(dense), dtype=bool))
    members = list(_slices(dense))
    slices = tuple(pairs.change(name, kind, inside) for name, kind, inside in members if inside.any())
    empty = tuple(name for name, _, inside in members if not inside.any())
    worst = min(slices, key=lambda part: (part.change, part.low)) if slices else None
    return Comparison(
        metric=metric,
        binary=pairs.binary,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        overall=overall,
        slices=slices,
        empty_slices=empty,
        slices_looked_at=len(slices),
        worst=worst.name if worst else None,
        flips=_flips(dense, pruned, overall, pairs.binary),
        note=_note(slices, worst, empty, confidence),
    )


@dataclass(frozen=True)
class _Pairs:
    """The metric of both models, ``[n]`` float64 each, and how its changes are judged."""

    before: Floats
    after: Floats
    seed: int
    resamples: int
    confidence: float

    @cached_property
    def binary(self) -> bool:
        """Whether the metric is right or wrong."""
        return bool(np.isin(self.before, (0, 1)).all() and np.isin(self.after, (0, 1)).all())

    @cached_property
    def reach(self) -> float:
        """The largest difference that one example can show, or that any two values here do."""
        return 1.0 if self.binary else float(np.ptp(np.concatenate([self.before, self.after])))

    def change(self, name: str, kind: Literal["overall", "class", "slice"], members: BoolArray) -> Change:
        """Compare the examples where ``members``, ``[n]`` bool, is true; at least one."""
        before, after = self.before[members], self.after[members]
        differences = after - before
        interval = paired_interval(
            differences,
            confidence=self.confidence,
            resamples=self.resamples,
            rng=np.random.default_rng([self.seed, zlib.crc32(name.encode())]),
            reach=self.reach,
        )
        return Change(
            name=name,
            kind=kind,
            n=len(differences),
            dense=float(before.mean()),
            pruned=float(after.mean()),
            change=float(differences.sum() / len(differences)),
            low=interval.low,
            high=interval.high,
            interval=interval.method,
            lost=int(np.count_nonzero(differences < 0)),
            gained=int(np.count_nonzero(differences > 0)),
            too_few=len(differences) < FEW_EXAMPLES,
        )


def _check_settings(seed: int, resamples: int, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}", expected="a number between 0 and 1, such as 0.95")
    if resamples < 100:
        raise UsageError(f"resamples is {resamples}", expected="at least 100; 10000 is usual")
    if seed < 0:
        raise UsageError(f"seed is {seed}", expected="an integer that is not negative")


def _slices(table: pd.DataFrame) -> Iterator[tuple[str, Literal["class", "slice"], BoolArray]]:
    """Name, kind and members of every class, then of every slice column."""
    if LABEL in table.columns and not pd.api.types.is_float_dtype(table[LABEL]):
        codes, classes = pd.factorize(table[LABEL], sort=True)
        for code, label in enumerate(classes):
            yield f"class:{label}", "class", codes == code
    for column in slice_columns(table):
        yield column, "slice", table[column].to_numpy(dtype=bool)


def _flips(dense: pd.DataFrame, pruned: pd.DataFrame, overall: Change, binary: bool) -> Flips:
    changed: int | None = None
    if PREDICTION in dense.columns:
        before, after = dense[PREDICTION].tolist(), pruned[PREDICTION].tolist()
        changed = sum(a != b for a, b in zip(before, after, strict=True))
    return Flips(
        n=overall.n,
        lost=overall.lost,
        gained=overall.gained,
        prediction_changed=changed,
        p_value=mcnemar_exact(overall.lost, overall.gained),
        test="exact McNemar" if binary else "exact sign test",
    )


def _note(slices: tuple[Change, ...], worst: Change | None, empty: tuple[str, ...], confidence: float) -> str:
    if worst is None:
        return "No classes or slices were looked at."
    count = len(slices)
    missed = count * (1 - confidence)
    sentences = [
        f"{worst.name} is the worst of {count} slices looked at, and the worst of many looks bad by chance "
        f"too: of {count} intervals at {confidence:.0%}, about {missed:.1f} miss the true change."
    ]
    few = sum(part.too_few for part in slices)
    if few:
        sentences.append(f"{few} of them have fewer than {FEW_EXAMPLES} examples and say little.")
    if empty:
        sentences.append(f"Without any example: {', '.join(empty)}.")
    return " ".join(sentences)
