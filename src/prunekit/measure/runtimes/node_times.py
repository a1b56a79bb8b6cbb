"""What single operators take inside of a model, as its runtime times them itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MOST_CALLS, LEAST_CALLS = 1000, 10

NodeKind = Literal["convolution", "linear", "layout", "other"]
"""``layout``: values are only put into another order, for what comes before or after."""


@dataclass(frozen=True)
class NodeTime:
    """One operator as the runtime carries it out, with what was fused into it.

    Attributes:
        kind: what it computes.
        data: shape of its first input.
        weights: shape of its weights, or nothing where the runtime does not tell.
        output: shape of its first output.
        ms: the median over calls.
    """

    kind: NodeKind
    data: tuple[int, ...]
    weights: tuple[int, ...]
    output: tuple[int, ...]
    ms: float


def called(call: Callable[[], object], seconds: float) -> int:
    """Call again and again for some time, at least :data:`LEAST_CALLS` times and at most :data:`MOST_CALLS`.

    Args:
        call: what to do.
        seconds: for how long.

    Returns:
        How often.
    """
    end, done = time.perf_counter() + seconds, 0
    while done < LEAST_CALLS or (done < MOST_CALLS and time.perf_counter() < end):
        call()
        done += 1
    return done
