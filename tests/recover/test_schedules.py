import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import UsageError
from prunekit.recover import SCHEDULES, budget, cubic, linear, oneshot, schedules, shares

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


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


def test_shares_of_cycles():
    assert shares("oneshot", 1) == (oneshot(1.0),) == (1.0,)
    assert shares("linear", 4) == tuple(linear(quarter) for quarter in (0.25, 0.5, 0.75, 1.0))
    np.testing.assert_allclose(shares("cubic", 3), [19 / 27, 26 / 27, 1.0], rtol=1e-12)


def test_unknown_schedules_and_no_cycles_are_refused():
    with pytest.raises(UsageError, match="oneshot, linear, cubic"):
        shares("quadratic", 3)
    with pytest.raises(UsageError, match="at least 1"):
        shares("cubic", 0)
