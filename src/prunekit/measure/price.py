"""What a million inferences cost, from a price per hour and a measured throughput."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunekit.errors import UsageError

SECONDS_PER_HOUR = 3600
INFERENCES = 1_000_000


@dataclass(frozen=True)
class Cost:
    """The cost of a million inferences, in the currency of the price.

    Attributes:
        per_million: at the measured throughput.
        low: at the highest throughput of its interval; None where there was none.
        high: at the lowest throughput of its interval; None where there was none.
        price_per_hour: the user's.
        per_second: the throughput.
    """

    per_million: float
    low: float | None
    high: float | None
    price_per_hour: float
    per_second: float


def cost_per_million(
    price_per_hour: float, per_second: float, interval: tuple[float, float] | None = None
) -> Cost:
    """What a million inferences cost on a machine that does nothing else and is always busy.

    ``price_per_hour / 3600 / per_second * 1e6``

    Args:
        price_per_hour: of the machine, >= 0, in any currency.
        per_second: inferences per second, > 0, measured.
        interval: (low, high) of ``per_second``, in which it lies; carried over.

    Raises:
        UsageError: a price below 0, a throughput that is not above 0, or an interval it does not lie in.
    """
    if not 0 <= price_per_hour < math.inf:
        raise UsageError(f"The price per hour is {price_per_hour}", expected="a number of 0 or more")
    if not 0 < per_second < math.inf:
        raise UsageError(f"The throughput is {per_second} per second", expected="a number above 0")
    if interval is not None and not 0 < interval[0] <= per_second <= interval[1] < math.inf:
        raise UsageError(
            f"The throughput of {per_second} per second has the interval {interval}",
            expected="(low, high) with 0 < low <= throughput <= high",
        )

    def cost(rate: float) -> float:
        return price_per_hour / SECONDS_PER_HOUR / rate * INFERENCES

    low, high = (cost(interval[1]), cost(interval[0])) if interval else (None, None)
    return Cost(cost(per_second), low, high, price_per_hour, per_second)
