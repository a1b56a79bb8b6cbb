"""Cost per million inferences against arithmetic by hand."""

import math

import pytest

from prunekit.errors import UsageError
from prunekit.measure import cost_per_million


@pytest.mark.parametrize(
    ("price", "rate", "cost"), [(3.6, 1000, 1.0), (0.34, 100, 0.9444444444444444), (0, 5, 0), (36, 0.01, 1e6)]
)
def test_the_cost_is_that_of_the_hours_it_takes(price, rate, cost):
    found = cost_per_million(price, rate)
    assert found.per_million == pytest.approx(cost)
    assert (found.low, found.high) == (None, None)


def test_the_interval_is_carried_over_turned_round():
    found = cost_per_million(3.6, 1000, (500, 2000))
    assert (found.low, found.per_million, found.high) == pytest.approx((0.5, 1.0, 2.0))


@pytest.mark.parametrize(
    ("price", "rate", "interval"),
    [
        (-1, 5, None),
        (math.nan, 5, None),
        (1, 0, None),
        (1, -2, None),
        (1, math.inf, None),
        (1, 5, (6, 7)),
        (1, 5, (0, 7)),
        (1, 5, (5, 4)),
    ],
)
def test_what_is_no_price_or_no_throughput_is_refused(price, rate, interval):
    with pytest.raises(UsageError):
        cost_per_million(price, rate, interval)
