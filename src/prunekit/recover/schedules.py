"""How the sparsity grows over the cycles of an iterative run."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

from prunekit.errors import UsageError

Schedule = Callable[[float], float]
"""``schedule(progress)`` is the share of the final sparsity at ``progress`` of the way, both in [0, 1]."""

Curve = str | Sequence[Sequence[float]]
"""A schedule as a recipe writes it: a name in :data:`SCHEDULES`, or the pairs of :func:`steps`."""


def oneshot(progress: float) -> float:
    """Everything at the first step.

    ``share(p) = 0 if p = 0 else 1``

    Args:
        progress: in [0, 1].

    Returns:
        0.0 or 1.0.

    Raises:
        UsageError: ``progress`` lies outside [0, 1].

    >>> oneshot(0.0), oneshot(1 / 3), oneshot(1.0)
    (0.0, 1.0, 1.0)
    """
    return 1.0 if _inside(progress) > 0 else 0.0


def linear(progress: float) -> float:
    """The same amount at every step.

    ``share(p) = p``

    Args:
        progress: in [0, 1].

    Returns:
        In [0, 1].

    Raises:
        UsageError: ``progress`` lies outside [0, 1].

    >>> linear(0.25)
    0.25
    """
    return _inside(progress)


def cubic(progress: float) -> float:
    """Much at first, while redundancy is plentiful, and little at the end.

    ``share(p) = 1 - (1 - p)^3``

    Args:
        progress: in [0, 1].

    Returns:
        In [0, 1].

    Raises:
        UsageError: ``progress`` lies outside [0, 1].

    Source: Zhu & Gupta, 2017, "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", eq. 1, https://arxiv.org/abs/1710.01878, with initial sparsity 0 and
    ``p = (t - t0) / (n dt)``. Deviation: none.

    >>> cubic(0.5)
    0.875
    """
    return 1.0 - (1.0 - _inside(progress)) ** 3


def exponential(progress: float) -> float:
    """Most of it very early, and ever less: three quarters at an eighth of the way.

    ``share(p) = (1 - exp(-k p)) / (1 - exp(-k))`` with ``k = 11.0899...``, so that ``share(1/8) = 3/4``

    Args:
        progress: in [0, 1].

    Returns:
        In [0, 1].

    Raises:
        UsageError: ``progress`` lies outside [0, 1].

    Source: He, Dong, Kang, Fu, Yan & Yang, 2019, "Asymptotic Soft Filter Pruning for Deep Convolutional
    Neural Networks", https://arxiv.org/abs/1808.07471, for the form ``P = a exp(-k i) + b``. That it goes
    through (1/8, 3/4), as shares of the epochs and of the goal, was not checked against the paper.

    >>> round(exponential(0.125), 12), round(exponential(0.5), 3)
    (0.75, 0.996)
    """
    return math.expm1(-_DECAY * _inside(progress)) / math.expm1(-_DECAY)


def one_cycle(progress: float) -> float:
    """Little at first, most around a third of the way, and little at the end.

    ``share(p) = (raw(p) - raw(0)) / (raw(1) - raw(0))`` with ``raw(p) = 1 / (1 + exp(5 - 14 p))``

    Args:
        progress: in [0, 1].

    Returns:
        In [0, 1].

    Raises:
        UsageError: ``progress`` lies outside [0, 1].

    Source: Hubens, Mancas, Gosselin, Preda & Zaharia, 2021, "One-Cycle Pruning: Pruning ConvNets Under a
    Tight Training Budget", https://arxiv.org/abs/2107.02086: ``(1 + exp(-a + b)) / (1 + exp(-a p + b))`` with
    ``a = 14`` and ``b = 5``. Deviation: theirs is 0.0067 at the start; it is moved and stretched, so that
    this one starts at exactly 0 and ends at exactly 1. They differ by less than 0.007.

    >>> one_cycle(0.0), round(one_cycle(5 / 14), 3), one_cycle(1.0)
    (0.0, 0.497, 1.0)
    """
    return (_rise(_inside(progress)) - _rise(0.0)) / (_rise(1.0) - _rise(0.0))


def steps(pairs: Sequence[Sequence[float]]) -> Schedule:
    """The schedule that goes up where it is told to.

    ``share(p)`` is the share of the last pair whose progress is at most ``p``, and 0 before the first pair.

    Args:
        pairs: of progress and share, such as ``[(0.5, 0.3), (1.0, 1.0)]``: progress above 0, at most 1 and
            rising, shares from 0 to 1 that never fall, the last of them 1.

    Raises:
        UsageError: the pairs are something else; or, from the schedule, progress outside [0, 1].

    >>> halves = steps([(0.5, 0.3), (1.0, 1.0)])
    >>> [halves(progress) for progress in (0.0, 0.49, 0.5, 0.99, 1.0)]
    [0.0, 0.0, 0.3, 0.3, 1.0]
    """
    if not _are_pairs(pairs):
        raise _no_steps(pairs, "a list of pairs of numbers, progress and share, such as [[0.5, 0.3], [1, 1]]")
    starts = [float(start) for start, _ in pairs]
    levels = [float(level) for _, level in pairs]
    if not (starts[0] > 0 and starts[-1] <= 1 and all(a < b for a, b in pairwise(starts))):
        raise _no_steps(pairs, "progress that rises from pair to pair, above 0 and at most 1")
    if not (levels[0] >= 0 and levels[-1] == 1 and all(a <= b for a, b in pairwise(levels))):
        raise _no_steps(pairs, "shares from 0 to 1 that never fall from pair to pair, the last of them 1")

    def share(progress: float) -> float:
        reached = bisect_right(starts, _inside(progress))
        return levels[reached - 1] if reached else 0.0

    return share


SCHEDULES: dict[str, Schedule] = {
    "oneshot": oneshot,
    "linear": linear,
    "cubic": cubic,
    "exponential": exponential,
    "one_cycle": one_cycle,
}
"""Every sparsity schedule by its name in a recipe; beside them there are the pairs of :func:`steps`."""


def schedule_of(curve: Curve) -> Schedule:
    """The schedule of that name, or with those steps.

    Raises:
        UsageError: there is no such schedule, or the pairs are not those of :func:`steps`.
    """
    if not isinstance(curve, str):
        return steps(curve)
    if curve not in SCHEDULES:
        raise UsageError(
            f"the sparsity schedule is {curve!r}",
            expected=f"one of {', '.join(SCHEDULES)}, or pairs of progress and share",
        )
    return SCHEDULES[curve]


def shares(schedule: Curve, cycles: int) -> tuple[float, ...]:
    """The share of the final sparsity after each of ``cycles`` cycles; the last is 1.

    ``shares[i] = schedule((i + 1) / cycles)``

    Args:
        schedule: a name in :data:`SCHEDULES`, or the pairs of :func:`steps`.
        cycles: at least 1.

    Raises:
        UsageError: there is no such schedule, or less than one cycle.

    >>> [round(share, 3) for share in shares("cubic", 3)]
    [0.704, 0.963, 1.0]
    """
    share_at = schedule_of(schedule)
    if cycles < 1:
        raise UsageError(f"the number of cycles is {cycles}", expected="at least 1")
    return tuple(share_at((cycle + 1) / cycles) for cycle in range(cycles))


_DECAY = 11.089988552228322
"""The positive root ``k`` of ``(1 - exp(-k / 8)) / (1 - exp(-k)) = 3 / 4``."""


def _rise(progress: float) -> float:
    return 1.0 / (1.0 + math.exp(5.0 - 14.0 * progress))


def _inside(progress: float) -> float:
    if not 0.0 <= progress <= 1.0:
        raise UsageError(f"progress is {progress}", expected="a number from 0 to 1")
    return float(progress)


def _are_pairs(pairs: object) -> bool:
    return (
        isinstance(pairs, Sequence)
        and len(pairs) > 0
        and all(isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2 for pair in pairs)
        and all(isinstance(n, int | float) and not isinstance(n, bool) for pair in pairs for n in pair)
    )


def _no_steps(pairs: object, expected: str) -> UsageError:
    return UsageError(f"the steps of the sparsity schedule are {pairs!r}", expected=expected)
