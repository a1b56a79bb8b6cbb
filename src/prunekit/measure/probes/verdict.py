"""What an interval of a speed-up lets one say."""

from __future__ import annotations

from typing import Literal

from prunekit.types import Speedup

Verdict = Literal["faster", "no gain", "slower", "unclear"]

FASTER = 1.1
"""Faster where the whole interval lies above this."""
SLOWER = 0.95
"""Slower where the whole interval lies below this."""
WIDEST = 0.25
"""Unclear where the interval reaches further than this share of the median to either side: a machine on
which calls are interrupted shows anything."""


def judge(speedup: Speedup) -> Verdict:
    """What can be said.

    1. ``unclear``: the interval is wider than :data:`WIDEST`.
    2. ``faster``: the whole interval lies above :data:`FASTER`; ``slower``: below :data:`SLOWER`.
    3. ``no gain``: the interval ends below :data:`FASTER`.
    4. ``unclear``: it reaches across.
    """
    if (speedup.high - speedup.low) / 2 > WIDEST * speedup.median:
        return "unclear"
    if speedup.low > FASTER:
        return "faster"
    if speedup.high < SLOWER:
        return "slower"
    return "no gain" if speedup.high <= FASTER else "unclear"
