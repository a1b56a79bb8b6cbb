"""Threads that stay until the process ends."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


def begin(name: str, work: Callable[[], None]) -> Future[None]:
    """Run something on the standing thread of that name, behind what it was given before.

    LoadGen keeps a log for every thread that it meets and, in 6.0, may read that of a thread which has ended:
    the process then dies at a later test, or after it. A thread that stays has its log as long.

    Args:
        name: of the thread; a forked process has its own.
        work: what to run.

    Returns:
        When it is done, and what it raised.
    """
    return _thread(name, os.getpid()).submit(work)


@functools.cache
def _thread(name: str, _process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=name)
