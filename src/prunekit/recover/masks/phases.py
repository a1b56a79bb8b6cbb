"""When masks come, change and go in a training run of so many steps."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.recover.numbers import check, check_count, is_number
from prunekit.recover.schedules import Curve, Schedule, schedule_of

WHERE = "gradual masks"


@dataclass(frozen=True)
class Phases:
    """The steps of a run at which masks change, and the sparsity after each.

    ``s(t) = initial + (final - initial) * curve((t - first) / (last - first))`` from ``first`` to ``last``

    Attributes:
        first: steps made when masks come.
        last: steps made when the final sparsity is reached; above ``first``.
        lifted: steps made when masks go; None = never.
        every: steps from one change to the next.
        initial: the sparsity at ``first``.
        final: the sparsity at ``last`` and after.
        curve: progress from 0 to 1 -> share of the way, as well.

    Source: Zhu & Gupta, 2017, eq. 1, https://arxiv.org/abs/1710.01878, for the cubic curve.
    """

    first: int
    last: int
    lifted: int | None
    every: int
    initial: float
    final: float
    curve: Schedule

    @staticmethod
    def of(
        *,
        steps: int,
        begin: float,
        end: float,
        every: int,
        lift: float | None,
        initial: float,
        final: float,
        curve: Curve,
    ) -> Phases:
        """Phases from shares of ``steps``, each rounded to the nearest step.

        Raises:
            UsageError: a number that is none, or not in its range.
        """
        for name, count in (("steps", steps), ("every", every)):
            check_count(name, count, where=WHERE)
        check(
            "sparsity", final, "a number from 0 to below 1", is_number(final) and 0 <= final < 1, where=WHERE
        )
        check(
            "initial",
            initial,
            f"a number from 0 to the sparsity, {final}",
            is_number(initial) and 0 <= initial <= final,
            where=WHERE,
        )
        check(
            "begin",
            begin,
            "a share of the steps from 0 to below 1",
            is_number(begin) and 0 <= begin < 1,
            where=WHERE,
        )
        check(
            "end",
            end,
            f"a share of the steps above begin ({begin}), at most 1",
            is_number(end) and begin < end <= 1,
            where=WHERE,
        )
        last = max(1, round(end * steps))
        lifted = None
        if lift is not None:
            lifted = round(lift * steps) if is_number(lift) and end < lift <= 1 else last
            wanted = f"a share of the steps at least one step above end ({end}), at most 1, or None"
            check("lift", lift, wanted, lifted > last, where=WHERE)
        return Phases(
            min(round(begin * steps), last - 1), last, lifted, every, initial, final, schedule_of(curve)
        )

    @property
    def settled(self) -> int:
        """Steps made at the last change of the sparsity."""
        return self.last if self.lifted is None else self.lifted

    def sparsity(self, step: int) -> float:
        """The sparsity after ``step`` steps, by the curve."""
        if step < self.first or self.is_lifted(step):
            return 0.0
        if step >= self.last:
            return self.final
        return self.initial + (self.final - self.initial) * self.curve(self.progress(step))

    def progress(self, step: int) -> float:
        """How much of the way from ``first`` to ``last`` is behind, from 0 to 1."""
        return min(1.0, max(0.0, (step - self.first) / (self.last - self.first)))

    def is_due(self, step: int) -> bool:
        """Masks change after ``step`` steps, if there is anything to change."""
        if step == self.lifted:
            return True
        inside = self.first <= step <= self.last
        return inside and (step == self.last or (step - self.first) % self.every == 0)

    def is_lifted(self, step: int) -> bool:
        """The masks are gone for good."""
        return self.lifted is not None and step >= self.lifted
