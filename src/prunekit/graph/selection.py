"""Which of the groups that were found the user wants pruned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from prunekit.errors import SelectionError
from prunekit.graph.bypasses import only_unit
from prunekit.types import Granularity, Group


@dataclass(frozen=True)
class Selection:
    """What is to be pruned, and what is not.

    Attributes:
        kinds: granularities; None = every one.
        only: shell-style patterns; if there are any, what matches none of them is left out.
        ignore: shell-style patterns of what is left out.
    """

    kinds: frozenset[Granularity] | None
    only: tuple[str, ...]
    ignore: tuple[str, ...]

    @staticmethod
    def of(granularity: object, only: object, ignore: object) -> Selection:
        """A selection as users write it: one kind or pattern, or a collection of them.

        Raises:
            SelectionError: something else, or an unknown granularity.
        """
        kinds = None
        if granularity is not None:
            kinds = frozenset(_granularity(kind) for kind in _several(granularity, "granularity"))
        return Selection(kinds, _several(only, "only"), _several(ignore, "ignore"))

    def check(self, groups: Collection[Group]) -> None:
        """Refuse a pattern that matches nothing.

        Raises:
            SelectionError: it matches none of the groups, nor a tensor or module in them.
        """
        for pattern in (*self.only, *self.ignore):
            if not any(group.matches(pattern) for group in groups):
                raise SelectionError(
                    f"the pattern {pattern!r} matches no prunable group, tensor or module",
                    expected="a shell-style pattern such as 'layer1.*' or 'conv1.weight'",
                    remedy="`prunekit inspect` lists the groups and the tensors they touch",
                )

    def reasons(self, groups: Iterable[Group]) -> dict[str, str]:
        """The groups that are left out whole, and why; layers and branches are left out one by one."""
        found = {}
        for group in groups:
            reason = self._kind(group) or ("" if group.is_depth else self._pattern(group))
            if reason:
                found[group.name] = reason
        return found

    def unit_reasons(self, group: Group, paths: Sequence[str]) -> dict[int, str]:
        """The layers or branches of a group that patterns leave out, and why.

        Args:
            group: of layers or branches.
            paths: of the module that each unit is.
        """
        reasons = {unit: self._pattern(only_unit(group, unit), path) for unit, path in enumerate(paths)}
        return {unit: reason for unit, reason in reasons.items() if reason}

    def wants(self, kind: Granularity) -> bool:
        """A granularity is asked for."""
        return self.kinds is None or kind in self.kinds

    def _kind(self, group: Group) -> str:
        if self.wants(group.granularity):
            return ""
        return f"granularity {group.granularity.value} was not asked for"

    def _pattern(self, group: Group, path: str = "") -> str:
        if self.only and not any(_matches(group, path, pattern) for pattern in self.only):
            return "it matches no pattern of `only`"
        for pattern in self.ignore:
            if _matches(group, path, pattern):
                return f"it matches the `ignore` pattern {pattern!r}"
        return ""


def _matches(group: Group, path: str, pattern: str) -> bool:
    return group.matches(pattern) or (path != "" and fnmatchcase(path, pattern))


def _several(given: object, where: str) -> tuple[str, ...]:
    """One string or a collection of strings, as a tuple.

    Raises:
        SelectionError: something else.
    """
    several = (given,) if isinstance(given, str) else given
    if isinstance(several, Collection) and not isinstance(several, Mapping):
        strings = tuple(item for item in several if isinstance(item, str))
        if len(strings) == len(several):
            return strings
    raise SelectionError(f"{given!r} was given", expected="a string, or a list of strings", where=where)


def _granularity(kind: Granularity | str) -> Granularity:
    try:
        return Granularity(kind)
    except (ValueError, TypeError):
        raise SelectionError(
            f"{kind!r} is not a granularity",
            expected="one of " + ", ".join(member.value for member in Granularity),
        ) from None
