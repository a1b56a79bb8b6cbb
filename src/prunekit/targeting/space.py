"""The space that plans are chosen from: which units may go, how far, and at how many widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

from prunekit.errors import SelectionError
from prunekit.graph import Groups
from prunekit.plan import Limits
from prunekit.plan.levers import MOST_LEVELS, Levers, find_levers
from prunekit.types import Granularity, Scores

NARROWEST = Limits(max_sparsity=0.9)
"""Where nothing is said: a group that loses nearly everything loses more than its scores say."""

WIDTHS_AND_DEPTH = ("channel", "neuron", "head", "head_group", "expert", "layer")


@dataclass(frozen=True)
class Space:
    """What a plan may be: which units may go, how far, and at how many widths.

    Attributes:
        granularity: one kind of unit that may go or several; default those of :data:`WIDTHS_AND_DEPTH` that
            the model has.
        only: one pattern or several of the groups that may, as in ``Groups.select``.
        ignore: patterns of groups that are kept whole.
        limits: what no group may be pruned beyond; where it says no ``max_sparsity``, that is 0.9.
        per_group: limits of groups that match a pattern, which come before ``limits``, each by itself.
        most_levels: widths of each group to choose from, the whole one among them, >= 2. More of them come
            nearer to a goal, and take longer to measure.

    Raises:
        SelectionError: fewer than two levels, or limits that are none. What the model has to answer, such as
            a pattern that matches nothing, shows where the space is used.
    """

    granularity: Granularity | str | Sequence[Granularity | str] | None = None
    _: KW_ONLY
    only: str | Sequence[str] = ()
    ignore: str | Sequence[str] = ()
    limits: Limits = NARROWEST
    per_group: Mapping[str, Limits] = field(default_factory=dict)
    most_levels: int = MOST_LEVELS

    def __post_init__(self) -> None:
        if not isinstance(self.limits, Limits):
            raise SelectionError(
                f"The limits are {self.limits!r}", expected="such as Limits(min_units=8)", where="limits"
            )
        most = self.most_levels
        if isinstance(most, bool) or not isinstance(most, int) or most < 2:
            raise SelectionError(
                f"{most!r} levels were asked for", expected="an integer of at least 2", where="most_levels"
            )

    def select(self, groups: Groups) -> Groups:
        """Those of a model's groups that may lose units; the others are frozen.

        Raises:
            SelectionError: an unknown granularity, or a pattern that matches nothing.
        """
        kinds = {group.granularity.value for group in groups}
        present = [kind for kind in WIDTHS_AND_DEPTH if kind in kinds]
        return groups.select(granularity=self.granularity or present, only=self.only, ignore=self.ignore)

    def levers(
        self, chosen: Groups, scores: Scores, *, widths: Mapping[str, Sequence[int]] | None = None
    ) -> Levers:
        """The decisions of a plan: :func:`prunekit.plan.levers.find_levers` within these limits.

        Args:
            chosen: of :meth:`select`.
            scores: by group name ``[units]``.
            widths: by group name, the units to choose from (:func:`prunekit.targeting.rewarded_widths`).

        Raises:
            SelectionError: a limit that cannot be; widths that no limit allows.
            ShapeError: scores that do not fit.
            CalibrationError: a score is NaN or infinite.
        """
        return find_levers(
            chosen.prunable,
            scores,
            limits=self.limits.over(NARROWEST),
            per_group=self.per_group,
            most_levels=self.most_levels,
            widths=widths,
        )
