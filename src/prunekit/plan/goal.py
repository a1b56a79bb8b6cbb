"""What the user asked for, and when it counts as reached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

from prunekit.errors import GoalError

GoalKind = Literal["sparsity", "macs", "params"]

GOAL_KINDS: dict[GoalKind, str] = {
    "sparsity": "prunable units",
    "macs": "multiply-accumulates of one example",
    "params": "parameters of the whole model",
}
"""What each kind of goal counts."""

assert set(GOAL_KINDS) == set(get_args(GoalKind))


@dataclass(frozen=True)
class Goal:
    """How much is to go.

    Give exactly one of ``remove`` and ``reach``. A goal in ``macs`` or ``params``, and a global ``sparsity``,
    is reached when ``|left - asked| <= tolerance * asked``, where ``asked`` is the figure that should be
    left: ``reach``, or ``figure before * (1 - remove)``. A uniform ``sparsity`` is met by rounding in every
    group: see :func:`prunekit.plan.allocate`.

    Attributes:
        kind: ``sparsity`` (of the prunable units), ``macs`` or ``params`` (of the whole model, frozen parts
            included).
        remove: fraction removed, in ``[0, 1)``; 0 removes nothing.
        reach: the figure to be left, > 0; for ``macs`` and ``params``.
        tolerance: how far the figure may lie from the asked one, relative to the asked one, in ``[0, 1)``.

    Raises:
        GoalError: a value outside these ranges.
    """

    kind: GoalKind
    remove: float | None = None
    reach: int | None = None
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in GOAL_KINDS:
            raise GoalError(f"The goal is '{self.kind}'", expected=f"one of {list(GOAL_KINDS)}", where="kind")
        if (self.remove is None) == (self.reach is None):
            raise GoalError(
                f"The goal '{self.kind}' has remove={self.remove} and reach={self.reach}",
                expected="exactly one of them",
            )
        if self.remove is not None and not _is_share(self.remove):
            raise GoalError(
                f"The fraction of {self.kind} to remove is {self.remove!r}",
                expected="a number from 0 (remove nothing) to below 1",
                where="remove",
            )
        if self.remove is not None:  # a NumPy number would not go into JSON
            object.__setattr__(self, "remove", float(self.remove))
        if self.reach is not None:
            self._check_reach(self.reach)
        if not _is_share(self.tolerance):
            raise GoalError(
                f"The tolerance is {self.tolerance!r}",
                expected="a number from 0 to below 1",
                where="tolerance",
            )

    def _check_reach(self, reach: int) -> None:
        if self.kind == "sparsity":
            raise GoalError(
                "A sparsity was given as an absolute figure", expected="remove, a fraction", where="reach"
            )
        if isinstance(reach, bool) or not isinstance(reach, int) or reach <= 0:
            raise GoalError(
                f"The {self.kind} to reach are {reach!r}", expected="an integer above 0", where="reach"
            )

    @property
    def removes_nothing(self) -> bool:
        """Whether the goal is 0."""
        return self.remove == 0

    def asked(self, before: int) -> int:
        """Return the figure that should be left of ``before``, a half rounded up (nothing too much goes)."""
        if self.reach is not None:
            return self.reach
        assert self.remove is not None
        return math.floor(round(before * (1 - self.remove), 6) + 0.5)

    def is_reached(self, left: int, asked: int) -> bool:
        """Say whether ``left`` is within the tolerance of ``asked``."""
        return abs(left - asked) <= self.tolerance * asked

    def __str__(self) -> str:
        if self.reach is not None:
            return f"{self.reach:,} {self.kind}"
        return (
            f"sparsity {self.remove:g}" if self.kind == "sparsity" else f"{self.remove:g} fewer {self.kind}"
        )


def _is_share(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < 1
