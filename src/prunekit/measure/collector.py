"""Keeping Python's garbage collector out of what is timed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_resting() -> Iterator[None]:
    """Disable the garbage collector inside of the block, without collecting first.

    With torch loaded a collection takes a fifth of a second, as long as timing an operation; who holds large
    models that are garbage collects before (:meth:`prunekit.targeting.rig.Rig.artifact`).
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
