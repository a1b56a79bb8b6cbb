"""Verdicts follow from both intervals: over the seeds by Student, over the test examples by the bootstrap."""

import math

import numpy as np
import pytest
from benchmarks.recovery.intervals import (
    CONFIRMED,
    NOT_SEPARATED,
    REFUTED,
    Difference,
    better,
    difference,
    no_worse,
    student,
    together,
)
from scipy import stats

VERDICTS = [
    # over seeds, over examples, better than, no worse by 0.5
    ((0.1, 0.3), (0.05, 0.4), CONFIRMED, CONFIRMED),
    ((-0.1, 0.3), (0.05, 0.4), NOT_SEPARATED, CONFIRMED),
    ((0.1, 0.3), (-0.6, 0.4), NOT_SEPARATED, NOT_SEPARATED),
    ((-0.3, -0.1), (-0.4, -0.2), REFUTED, CONFIRMED),
    ((-0.9, -0.6), (-0.8, -0.7), REFUTED, REFUTED),
    ((-0.9, -0.6), (-0.8, 0.1), NOT_SEPARATED, NOT_SEPARATED),
    ((-math.inf, math.inf), (0.2, 0.3), NOT_SEPARATED, NOT_SEPARATED),
]


@pytest.mark.parametrize(("seeds", "examples", "above", "within"), VERDICTS)
def test_both_intervals_have_to_agree(seeds, examples, above, within):
    found = Difference(mean=0.0, by_seed=(0.0,), over_seeds=seeds, over_examples=examples)
    assert better(found) == above
    assert no_worse(found, 0.5) == within


def test_a_claim_is_refuted_by_one_and_confirmed_by_all():
    assert together([CONFIRMED, CONFIRMED]) == CONFIRMED
    assert together([CONFIRMED, NOT_SEPARATED]) == NOT_SEPARATED
    assert together([CONFIRMED, REFUTED, NOT_SEPARATED]) == REFUTED
    assert together([]) == NOT_SEPARATED


@pytest.mark.parametrize("values", [[0.1, 0.3, 0.2], [1.0, 1.0], [-3.0, 5.0, 0.0, 2.0]])
def test_students_interval_is_scipys(values):
    low, high = student(np.array(values))
    error = stats.sem(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), error) if error else (1.0, 1.0)
    assert np.allclose((low, high), expected)


def test_one_seed_says_nothing_about_seeds():
    assert student(np.array([0.5])) == (-math.inf, math.inf)


def test_seeds_and_examples_are_paired():
    rng = np.random.default_rng(0)
    second = rng.random((3, 4000)) < 0.7
    gained = np.zeros_like(second)
    for row, right in zip(gained, second, strict=True):
        row[np.flatnonzero(~right)[:40]] = True  # the same forty more in every seed: 1 % exactly
    found = difference(second | gained, second)
    assert found.mean == pytest.approx(0.01)
    assert found.by_seed == pytest.approx((0.01,) * 3)
    assert found.over_seeds == pytest.approx((0.01, 0.01))
    assert 0.005 < found.over_examples[0] < 0.01 < found.over_examples[1] < 0.015
    assert better(found) == CONFIRMED
    turned = difference(second, second | gained)
    assert turned.mean == pytest.approx(-0.01)
    assert better(turned) == REFUTED
