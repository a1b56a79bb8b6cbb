import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from prunekit.errors import UsageError
from prunekit.recover import (
    SCHEDULES,
    cubic,
    exponential,
    linear,
    one_cycle,
    oneshot,
    schedules,
    shares,
    steps,
)
from prunekit.recover.training import budget

TABLE = {
    **SCHEDULES,
    "one step": steps([(1.0, 1.0)]),
    "two steps": steps([[0.5, 0.3], [1, 1]]),
    "all in the middle": steps([(0.25, 0.0), (0.5, 1.0)]),
}
every_schedule = pytest.mark.parametrize("schedule", TABLE.values(), ids=TABLE)


@pytest.mark.parametrize("module", [schedules, budget])
def test_the_examples_in_the_docstrings_hold(module):
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 2) == (0, True)


@every_schedule
@given(one=st.floats(0, 1), other=st.floats(0, 1))
def test_a_schedule_is_monotone_and_stays_within_zero_and_one(schedule, one, other):
    low, high = sorted((one, other))
    assert 0.0 <= schedule(low) <= schedule(high) <= 1.0


@every_schedule
def test_a_schedule_starts_at_nothing_and_ends_at_everything(schedule):
    assert schedule(0.0) == 0.0
    assert schedule(1.0) == 1.0


@every_schedule
@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
def test_progress_outside_zero_and_one_is_refused(schedule, progress):
    with pytest.raises(UsageError, match="from 0 to 1"):
        schedule(progress)


@given(t=st.integers(0, 100))
def test_cubic_is_equation_one_of_zhu_and_gupta(t):
    # Oracle: s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3 with s_i = 0, s_f = 0.8, t0 = 0, n dt = 100.
    final = 0.8
    assert final * cubic(t / 100) == pytest.approx(final + (0.0 - final) * (1 - t / 100) ** 3, abs=1e-12)


@given(t=st.floats(0, 1))
def test_exponential_goes_through_the_three_points_of_he_et_al(t):
    # Oracle: P = a exp(-k i) + b, with a, b and k solved for by root finding on the three points.
    k = brentq(lambda k: (1 - math.exp(-k / 8)) / (1 - math.exp(-k)) - 0.75, 1, 50, xtol=1e-14)
    b = 1 / (1 - math.exp(-k))
    assert exponential(t) == pytest.approx(-b * math.exp(-k * t) + b, abs=1e-9)
    assert exponential(1 / 8) == pytest.approx(3 / 4, abs=1e-12)


@given(t=st.floats(0, 1))
def test_one_cycle_is_the_formula_of_hubens_et_al_up_to_its_start(t):
    # Oracle: s_t = s_i + (s_f - s_i) (1 + e^(-a + b)) / (1 + e^(-a t + b)), a = 14, b = 5, s_i = 0, s_f = 1.
    published = (1 + math.exp(-14 + 5)) / (1 + math.exp(-14 * t + 5))
    start = (1 + math.exp(-9)) / (1 + math.exp(5))
    assert one_cycle(t) == pytest.approx((published - start) / (1 - start), abs=1e-12)
    assert abs(one_cycle(t) - published) < 0.007


def test_steps_go_up_exactly_where_they_are_told_to():
    schedule = steps([(0.25, 0.5), (0.75, 0.9), (1.0, 1.0)])
    found = [schedule(t) for t in (0.0, np.nextafter(0.25, 0), 0.25, 0.5, 0.75, np.nextafter(1.0, 0), 1.0)]
    assert found == [0.0, 0.0, 0.5, 0.5, 0.9, 0.9, 1.0]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], "a list of pairs"),
        ([0.5, 1.0], "a list of pairs"),
        ([(0.5, 0.5, 0.5), (1, 1)], "a list of pairs"),
        (["ab", (1, 1)], "a list of pairs"),
        ([("0.5", 0.5), (1, 1)], "a list of pairs"),
        ([(True, True)], "a list of pairs"),
        ({0.5: 1.0}, "a list of pairs"),
        ([(0.0, 0.5), (1, 1)], "progress that rises"),
        ([(0.5, 0.5), (0.5, 1)], "progress that rises"),
        ([(0.5, 0.5), (1.1, 1)], "progress that rises"),
        ([(math.nan, 0.5), (1, 1)], "progress that rises"),
        ([(0.5, 0.7), (0.6, 0.6), (1, 1)], "never fall"),
        ([(0.5, -0.1), (1, 1)], "never fall"),
        ([(0.5, math.nan), (1, 1)], "never fall"),
        ([(0.5, 0.5), (1, 0.9)], "the last of them 1"),
    ],
)
def test_pairs_that_are_no_schedule_are_refused(pairs, expected):
    with pytest.raises(UsageError, match=expected):
        steps(pairs)


def test_shares_of_cycles():
    assert shares([[0.5, 0.3], [1.0, 1.0]], 4) == (0.0, 0.3, 0.3, 1.0)
    assert shares("oneshot", 1) == (oneshot(1.0),) == (1.0,)
    assert shares("linear", 4) == tuple(linear(quarter) for quarter in (0.25, 0.5, 0.75, 1.0))
    np.testing.assert_allclose(shares("cubic", 3), [19 / 27, 26 / 27, 1.0], rtol=1e-12)


def test_unknown_schedules_and_no_cycles_are_refused():
    with pytest.raises(UsageError, match="oneshot, linear, cubic, exponential, one_cycle, or pairs"):
        shares("quadratic", 3)
    with pytest.raises(UsageError, match="at least 1"):
        shares("cubic", 0)
