"""What single operators take inside of a model, as its runtime times them itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

MOST_CALLS, LEAST_CALLS = 300, 10

TRIMMED = 0.25
"""The share of the calls that is left out at either end: clocks tick in microseconds, calls are disturbed."""

NodeKind = Literal["convolution", "linear", "reads_layout", "gives_layout", "other"]
"""Of these the layouts only put values into another order, for what reads them or for what gave them."""


@dataclass(frozen=True)
class NodeTime:
    """One operator as the runtime carries it out, with what was fused into it.

    Attributes:
        kind: what it computes.
        data: shape of its first input.
        weights: shape of its weights, or nothing where the runtime does not tell.
        output: shape of its first output; shapes that differ from call to call are empty.
        ms: of one call of the model, the mean of the middle half of calls.
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


def usual_ms(taken: Sequence[float], calls: int) -> float:
    """What an operator takes in one call of the model, from the milliseconds of all its runs.

    Args:
        taken: of each run; bodies of loops run more often than the model is called, branches less often.
        calls: of the model.
    """
    return float(scipy.stats.trim_mean(np.asarray(taken), TRIMMED)) * len(taken) / calls if taken else 0.0
