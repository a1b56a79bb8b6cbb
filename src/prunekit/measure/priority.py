"""Real-time scheduling while something is timed, so that other processes of the machine do not disturb it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

LOWEST = 1


@contextmanager
def real_time(wanted: bool = True) -> Iterator[bool]:
    """Run this thread, and those that it starts meanwhile, before all ordinary processes.

    Linux only, and only where the process may (``CAP_SYS_NICE``, or a limit ``rtprio``); elsewhere nothing
    changes. Linux itself leaves ordinary processes a part of every second (``sched_rt_runtime_us``).

    Args:
        wanted: False changes nothing.

    Yields:
        Whether it holds; a measurement records it.
    """
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    if not wanted or before is None:
        yield False
        return
    given = os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(LOWEST))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, before, given)


def is_real_time(wanted: bool = True) -> bool:
    """Whether :func:`real_time` would hold here and now."""
    with real_time(wanted) as holds:
        return holds
