"""The proof of one removal: the laws of its groups, and that the model given is the model proved.

Form law: the model the user gets equals the pruned graph, and the dense model the graph it was traced into.
Use law: it trains, is saved and loaded, and its outputs look as those of the dense model do.
The other laws are those of :mod:`prunekit.surgery.laws`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from prunekit.graph import Groups
from prunekit.graph.pruned_graph import PrunedGraph
from prunekit.plan import PruningPlan
from prunekit.surgery.carried import graph_at
from prunekit.surgery.compare import precision_of
from prunekit.surgery.laws import TOLERANCE, LawResult, Laws
from prunekit.surgery.lengths import at_another_length
from prunekit.surgery.remove import Removal, check_fits, reduced_graph
from prunekit.surgery.use import check_use
from prunekit.types import KeepMask


@dataclass(frozen=True)
class Proof:
    """All laws checked for one removal; ``passed`` if every one holds."""

    laws: tuple[LawResult, ...]

    @property
    def passed(self) -> bool:
        """Every law holds."""
        return all(law.passed for law in self.laws)

    def __str__(self) -> str:
        return "\n".join(map(_line, self.laws))


def _line(law: LawResult) -> str:
    note = f"; {law.note}" if law.note else ""
    if law.passed and not law.groups:
        return f"{law.law} law: no group to check{note}"
    return (
        f"{law.law} law: {'holds' if law.passed else 'BROKEN'} for {_named(law)}, "
        f"max relative error {law.max_relative_error:.1e} (tolerance {law.tolerance:.0e}), "
        f"batch sizes {', '.join(map(str, law.batch_sizes))}{note}"
    )


def _named(law: LawResult) -> str:
    """How many groups, and which where the law is broken."""
    count = f"{len(law.groups)} groups"
    return count if law.passed else f"{count} ({', '.join(law.groups[:8])})"


def verify(
    model: nn.Module, small: nn.Module | Removal, plan: PruningPlan, groups: Groups, *, seed: int = 0
) -> Proof:
    """Check all laws for one plan carried out.

    Args:
        model: the dense model.
        small: what ``remove(model, plan, groups)`` gave, or its model.
        plan: the plan.
        groups: that the plan was made on.
        seed: of the permutations and perturbations.

    Raises:
        PlanError: plan, groups and model do not belong together.
    """
    check_fits(model, plan, groups)
    small = small.model if isinstance(small, Removal) else small
    keep = plan.keep_mask()
    names = [group.name for group in groups.prunable if group.name in keep]
    found = _all_laws(model, small, groups, keep, names, seed)
    use = check_use(model, small, groups, keep)
    # A graph as a module runs at the length it was traced with.
    other = None if isinstance(small, PrunedGraph) else at_another_length(model, groups)
    if other is None:
        return Proof((*found, use))
    longer = _all_laws(model, small, other[0], keep, names, seed)
    pairs = zip(found, longer, strict=True)
    return Proof((*(_both(law, again, other[1]) for law, again in pairs), use))


def _all_laws(
    model: nn.Module, small: nn.Module, groups: Groups, keep: KeepMask, names: list[str], seed: int
) -> tuple[LawResult, ...]:
    laws = Laws(model, groups, seed=seed)
    found = [laws.permutation(names), laws.mask(keep)]
    if groups.bypassed(keep):
        found.append(laws.bypass(keep))
    return (*found, _check_form(model, small, groups, keep))


def _both(law: LawResult, longer: LawResult, length: int) -> LawResult:
    """One law on the example and on longer sequences."""
    worse = max(law, longer, key=lambda result: (not result.passed, result.max_relative_error))
    note = "; ".join(text for text in (worse.note, f"also on sequences of {length}") if text)
    return dataclasses.replace(worse, note=note)


def check_permutation(
    model: nn.Module, groups: Groups, names: Sequence[str] | None = None, *, seed: int = 0
) -> LawResult:
    """Permute all named groups at once (default: every prunable one) and compare outputs."""
    names = [group.name for group in groups] if names is None else list(names)
    return Laws(model, groups, seed=seed).permutation(names)


def check_mask(model: nn.Module, groups: Groups, keep: KeepMask, *, seed: int = 0) -> LawResult:
    """Removed equals masked, for the part of ``keep`` that is mask-equivalent."""
    return Laws(model, groups, seed=seed).mask(keep)


def _check_form(model: nn.Module, small: nn.Module, groups: Groups, keep: KeepMask) -> LawResult:
    """The dense model is its graph, and the small one the pruned graph."""
    graph = groups.graph
    precision, worst = precision_of(model, reduced_graph(model, {}, groups), graph)
    note = "" if worst <= precision.tolerance else "the model does not compute what its traced graph computes"
    if precision.name == "own":
        note = note or "in the model's own precision, the only one it runs in"
    pruned = precision.of(reduced_graph(model, keep, groups))
    try:
        worst = max(worst, precision.distance(pruned, precision.of(small), graph_at(groups, keep)))
    except Exception as error:  # whatever the user's forward raises
        worst, note = float("inf"), f"the model does not run: {type(error).__name__}: {error}"
    tolerance = max(TOLERANCE, precision.tolerance)
    sizes = tuple(graph.batch_size + more for more in range(len(precision.batches(graph))))
    return LawResult("form", tuple(keep), worst, tolerance, sizes, worst <= tolerance, note)
