"""The plan: the immutable, serialisable decision which units go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from prunekit.errors import GoalError, PlanError
from prunekit.plan.goal import Goal
from prunekit.types import Cost, KeepMask

SCHEMA = "prunekit.plan/1"
SCOPES = ("uniform", "global", "knapsack", "isomorphic", "greedy")


class FrozenDict(dict):
    """A dict that cannot be changed, so that a plan is immutable and still plain JSON."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("A plan is immutable; make another one")

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict]]:
        # dict's own way sets the entries one by one
        return FrozenDict, (dict(self),)

    def __copy__(self) -> FrozenDict:
        return self

    def __deepcopy__(self, memo: object) -> FrozenDict:
        return self


@dataclass(frozen=True)
class PruningPlan:
    """Which units stay, why, and what that changes.

    Attributes:
        keep: for each group that loses units, the ids of those that stay, ascending, in the numbering of the
            model the plan was made on; none where the group goes with the layer it lies in.
        sizes: units of each group the plan was made over, touched or not.
        fingerprint: of the groups it was made on (``Groups.fingerprint``).
        criterion: what scored the units, such as ``l2``; "" if unknown.
        goal: what was asked.
        scope: ``uniform``, ``global`` or ``knapsack``, chosen for a measured target.
        before: cost of the model the plan was made on.
        after: cost once the plan is carried out.

    Raises:
        PlanError: the values contradict each other.
    """

    keep: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    fingerprint: str
    criterion: str
    goal: Goal
    scope: str
    before: Cost
    after: Cost

    def __post_init__(self) -> None:
        keep = FrozenDict({name: tuple(units) for name, units in self.keep.items()})
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "sizes", FrozenDict(self.sizes))
        if self.scope not in SCOPES:
            raise PlanError(f"The scope is '{self.scope}'", expected=f"one of {list(SCOPES)}", where="scope")
        for name, size in self.sizes.items():
            if size < 1:
                raise PlanError(f"The group has {size} units", expected="at least 1", where=f"sizes '{name}'")
        for name, units in keep.items():
            _check_units(name, units, self.sizes.get(name))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the plan, as hexadecimal digits."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Units of each group before and after."""
        return {name: (size, len(self.keep.get(name, range(size)))) for name, size in self.sizes.items()}

    def keep_mask(self) -> KeepMask:
        """Return what stays as masks, ``[units]`` bool by group; groups that lose nothing are absent."""
        masks = {name: np.zeros(self.sizes[name], dtype=np.bool_) for name in self.keep}
        for name, mask in masks.items():
            mask[list(self.keep[name])] = True
        return masks

    def removed(self, name: str) -> tuple[int, ...]:
        """Return the ids of the units a group loses, ascending; none if it is kept whole.

        Raises:
            PlanError: the plan was not made over such a group.
        """
        if name not in self.sizes:
            raise PlanError(f"The plan has no group '{name}'", expected=f"one of {sorted(self.sizes)}")
        if name not in self.keep:
            return ()
        gone = np.ones(self.sizes[name], dtype=np.bool_)
        gone[list(self.keep[name])] = False
        return tuple(np.flatnonzero(gone).tolist())

    def then(self, later: PruningPlan) -> PruningPlan:
        """Compose with a plan made on the model this one gives, into one plan for the original model.

        Unit ids are those of the original model: unit ``u`` of the smaller model is the ``u``-th unit kept.
        That holds with blocks too, since every block keeps equally many units and ids ascend through them.
        Criterion, goal and scope are those of ``later`` (its goal is relative to the model it was made on).

        Raises:
            PlanError: ``later`` was made on another model.
        """
        sizes, keep = dict(self.sizes), dict(self.keep)
        for name, size in later.sizes.items():
            left = len(keep[name]) if name in keep else sizes.setdefault(name, size)
            if left != size:
                raise PlanError(
                    f"The later plan was made on {size} units",
                    expected=f"the {left} units that this plan leaves",
                    where=f"group '{name}'",
                    remedy="Find the groups again on the pruned model and plan on those",
                )
        if later.before.params != self.after.params:
            raise PlanError(
                f"The later plan was made on a model of {later.before.params} parameters",
                expected=f"the {self.after.params} that this plan leaves",
                remedy="Find the groups again on the pruned model and plan on those",
            )
        for name, units in later.keep.items():
            keep[name] = tuple(keep[name][unit] for unit in units) if name in keep else units
        return PruningPlan(
            keep=keep,
            sizes=sizes,
            fingerprint=self.fingerprint,
            criterion=later.criterion,
            goal=later.goal,
            scope=later.scope,
            before=self.before,
            after=later.after,
        )

    def to_json(self) -> str:
        """Return the plan as JSON, with its schema and digest; the same plan gives the same text."""
        return json.dumps({**self._content(), "digest": self.digest}, indent=None, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """Read a plan back and check all of it.

        Raises:
            PlanError: not JSON, another schema, a missing, unknown or mistyped field, impossible values, or a
                digest that does not fit.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged(f"It is not JSON ({error})") from error
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            schema = content.get("schema") if isinstance(content, dict) else None
            raise _damaged(f"Its schema is {schema!r}", expected=f"'{SCHEMA}'")
        if set(content) != _FIELDS:
            missing, unknown = sorted(_FIELDS - set(content)), sorted(set(content) - _FIELDS)
            raise _damaged(f"It lacks the fields {missing} and has the unknown fields {unknown}")
        try:
            plan = _plan_of(content)
        except (TypeError, ValueError, OverflowError, GoalError) as error:
            raise _damaged(f"A field has a wrong value ({error})") from error
        if plan.digest != content["digest"]:
            raise _damaged(f"Its digest is {plan.digest}", expected=f"{content['digest']}, as it says itself")
        return plan

    def _content(self) -> dict[str, Any]:
        content = {"schema": SCHEMA, **asdict(self)}
        if self.goal.percentile is None:
            del content["goal"]["percentile"]
        return content


_FIELDS = {
    "schema",
    "digest",
    "keep",
    "sizes",
    "fingerprint",
    "criterion",
    "goal",
    "scope",
    "before",
    "after",
}


def _check_units(name: str, units: tuple[int, ...], size: int | None) -> None:
    where = f"keep '{name}'"
    if size is None:
        raise PlanError("The group has no size", expected="every group of keep in sizes", where=where)
    ids = np.array(units, dtype=np.int64)
    if len(ids) >= size or (ids < 0).any() or (ids >= size).any() or (np.diff(ids) <= 0).any():
        raise PlanError(
            f"It keeps {len(ids)} of {size} units",
            expected=f"ascending unit ids from 0 to {size - 1}, not all of them",
            where=where,
        )


def _plan_of(content: dict[str, Any]) -> PruningPlan:
    """Build the plan from JSON values; ints must be ints and strings strings."""
    for name in ("fingerprint", "criterion", "scope", "digest"):
        _expect(content[name], str, name)
    for name in ("keep", "sizes", "goal", "before", "after"):
        _expect(content[name], dict, name)
    for name, units in content["keep"].items():
        _expect(units, list, f"keep '{name}'")
    for value in (
        *content["sizes"].values(),
        *content["before"].values(),
        *content["after"].values(),
        *(unit for units in content["keep"].values() for unit in units),
    ):
        _expect(value, int, "a count or unit id")
    return PruningPlan(
        keep={name: tuple(units) for name, units in content["keep"].items()},
        sizes=content["sizes"],
        fingerprint=content["fingerprint"],
        criterion=content["criterion"],
        goal=Goal(**content["goal"]),
        scope=content["scope"],
        before=Cost(**content["before"]),
        after=Cost(**content["after"]),
    )


def _expect(value: object, kind: type, name: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} is {type(value).__name__}, not {kind.__name__}")


def _damaged(given: str, expected: str = "") -> PlanError:
    return PlanError(
        given,
        expected=expected,
        where="plan",
        remedy="The plan is damaged or from another version; plan again",
    )
