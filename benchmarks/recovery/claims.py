"""What common wisdom says, as comparisons of cells, and what the figures say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.recovery.cells import Cell
from benchmarks.recovery.intervals import NOT_SEPARATED, Difference, better, no_worse, together
from benchmarks.recovery.results import PARENT, Results
from benchmarks.recovery.words import WAY_NAMES

MARGIN = 0.005
"""What "enough", "recovers" and "reachable" mean: no more than half a point of accuracy below the parent."""


@dataclass(frozen=True)
class Comparison:
    """One row of a claim.

    Attributes:
        what: in words.
        found: the measured difference; None where cells are missing.
        verdict: about this row alone.
    """

    what: str
    found: Difference | None
    verdict: str


@dataclass(frozen=True)
class Claim:
    """A sentence of common wisdom and the comparisons that decide it.

    Attributes:
        text: the sentence.
        rule: how a comparison confirms it.
        compare: from results to comparisons.
    """

    text: str
    rule: str
    compare: Callable[[Results], Iterator[Comparison]]

    def verdict(self, results: Results) -> str:
        """Confirmed where every comparison confirms it, refuted where any refutes it."""
        return together([one.verdict for one in self.compare(results)])


KIND_NAMES = {"macs": "MACs", "weights": "weights"}
"""What goes in the networks of convolutions."""


def against_parent(results: Results, cell: Cell, what: str) -> Comparison:
    """Whether a cell is within :data:`MARGIN` of the parent."""
    found = results.difference(cell, PARENT)
    return Comparison(what, found, no_worse(found, MARGIN) if found else NOT_SEPARATED)


def iterative_beats_oneshot(results: Results) -> Iterator[Comparison]:
    for kind, name in KIND_NAMES.items():
        for sparsity in (0.7, 0.9):
            found = results.difference(Cell(kind, sparsity, "iterative"), Cell(kind, sparsity))
            verdict = better(found) if found else NOT_SEPARATED
            yield Comparison(f"iterative - one-shot at {sparsity:.0%} of {name}", found, verdict)


def oneshot_is_enough(results: Results) -> Iterator[Comparison]:
    for kind, name in KIND_NAMES.items():
        yield against_parent(results, Cell(kind, 0.3), f"one-shot at 30% of {name} - parent")


def a_fifth_recovers(results: Results) -> Iterator[Comparison]:
    for kind, name in KIND_NAMES.items():
        for budget in (0.1, 0.2):
            what = f"one-shot at 50% of {name}, budget {budget:.0%} - parent"
            yield against_parent(results, Cell(kind, 0.5, budget=budget), what)


def many_weights_can_go(results: Results) -> Iterator[Comparison]:
    for sparsity in (0.7, 0.9):
        ways = [Cell("weights", sparsity, way) for way in ("oneshot", "iterative", "gradual")]
        chosen = results.best_on_validation(ways)
        if chosen is not None:
            what = f"{WAY_NAMES[chosen.way]} (best on validation) at {sparsity:.0%} of weights - parent"
            yield against_parent(results, chosen, what)


WITHIN = f"no more than {100 * MARGIN:g} points below the parent"

CLAIMS = (
    Claim("Iterative beats one-shot above 50 %", "the difference is above 0", iterative_beats_oneshot),
    Claim("One-shot is enough below 30 %", WITHIN, oneshot_is_enough),
    Claim("10-20 % of the training budget recovers moderate sparsity (50 %)", WITHIN, a_fifth_recovers),
    Claim("70-90 % of single weights can go", WITHIN, many_weights_can_go),
)
"""The four sentences, and what decides each."""
