"""Keeping Python's garbage collector out of what is timed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_resting() -> Iterator[None]:
    """Keep it from running meanwhile; what is garbage already stays until it runs again.

    With torch loaded a collection takes a fifth of a second, more than timing an operation.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
