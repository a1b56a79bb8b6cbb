"""How the sparsity grows over the cycles of an iterative run."""

from __future__ import annotations

from collections.abc import Callable

from prunekit.errors import UsageError

Schedule = Callable[[float], float]
"""``schedule(progress)`` is the share of the final sparsity at ``progress`` of the way, both in [0, 1]."""


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


SCHEDULES: dict[str, Schedule] = {"oneshot": oneshot, "linear": linear, "cubic": cubic}
"""Every sparsity schedule by its name in a recipe."""


def shares(schedule: str, cycles: int) -> tuple[float, ...]:
    """The share of the final sparsity after each of ``cycles`` cycles; the last is 1.

    ``shares[i] = schedule((i + 1) / cycles)``

    Args:
        schedule: a name in :data:`SCHEDULES`.
        cycles: at least 1.

    Raises:
        UsageError: there is no such schedule, or less than one cycle.

    >>> [round(share, 3) for share in shares("cubic", 3)]
    [0.704, 0.963, 1.0]
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"the sparsity schedule is {schedule!r}", expected=f"one of {', '.join(SCHEDULES)}")
    if cycles < 1:
        raise UsageError(f"the number of cycles is {cycles}", expected="at least 1")
    return tuple(SCHEDULES[schedule]((cycle + 1) / cycles) for cycle in range(cycles))


def _inside(progress: float) -> float:
    if not 0.0 <= progress <= 1.0:
        raise UsageError(f"progress is {progress}", expected="a number from 0 to 1")
    return float(progress)
