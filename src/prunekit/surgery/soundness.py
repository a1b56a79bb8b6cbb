"""Which groups may be pruned at all: those that obey the laws and, on request, that the class can follow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from torch import nn

from prunekit.graph import Groups
from prunekit.importance import check_seed
from prunekit.surgery.laws import LawResult, broken_groups, half_of
from prunekit.surgery.remove import carry_out
from prunekit.types import Granularity, Group


def sound(model: nn.Module, groups: Groups, *, seed: int = 0, own_class: bool = False) -> Groups:
    """The groups that obey the laws; one that does not is frozen with that reason.

    Args:
        model: that the groups were found in.
        groups: to check.
        seed: of permutations and redrawn weights.
        own_class: also freeze the groups that the model's class cannot follow when half of their units go,
            together with the ones that were found to be possible before; head dimensions are tried last.

    Raises:
        ProofError: the laws cannot be checked: no values, or outputs that are not finite.
        SelectionError: a seed that is none.
    """
    check_seed(seed)
    broken = broken_groups(model, groups, seed=seed)
    for law, explain in _BROKEN.items():
        reasons = {name: explain(result) for name, result in broken.items() if result.law == law}
        groups = groups.freeze(reasons, operator=f"{law} law") if reasons else groups
    if own_class:
        groups = groups.freeze(_not_followed(model, groups, seed), operator="own class")
    return groups


_BROKEN: dict[str, Callable[[LawResult], str]] = {
    "permutation": lambda law: (
        f"permuting its units changes the outputs (relative error {law.max_relative_error:.1e})"
    ),
    "mask": lambda law: (
        law.note or f"removing units differs from zeroing them ({law.max_relative_error:.1e})"
    ),
    "bypass": lambda law: (
        law.note or f"leaving units out differs from going on without them ({law.max_relative_error:.1e})"
    ),
    "removal": lambda law: law.note,
}

_ORDER = (
    Granularity.HIDDEN,
    Granularity.CHANNEL,
    Granularity.CHANNEL_GROUP,
    Granularity.NEURON,
    Granularity.HEAD,
    Granularity.HEAD_GROUP,
    Granularity.EXPERT,
    Granularity.LAYER,
    Granularity.BRANCH,
    Granularity.HEAD_DIM,
)


def _not_followed(model: nn.Module, groups: Groups, seed: int) -> dict[str, str]:
    """The groups that the class cannot follow, with what then goes wrong."""
    keep = half_of(groups, seed)
    followed: list[str] = []
    refused: dict[str, str] = {}

    def grow(names: list[str]) -> None:
        together = {name: keep[name] for name in (*followed, *names)}
        removal = carry_out(model, together, groups, describes=False)
        if removal.form == "own class":
            followed.extend(names)
        elif len(names) == 1:
            refused[names[0]] = removal.reason
        else:
            grow(names[: len(names) // 2])
            grow(names[len(names) // 2 :])

    ordered = sorted(groups, key=_place)
    for _, kind in groupby(ordered, key=_place):
        grow([group.name for group in kind])
    return refused


def _place(group: Group) -> int:
    return _ORDER.index(group.granularity)
