"""The measured rows of a study, asked for by cell over all of its seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from benchmarks.recovery.cells import Cell, cell_of, unpacked
from benchmarks.recovery.intervals import Difference, difference

PARENT = Cell("nothing", 0.0, budget=0.0)
"""The cell of the parent as it is."""


@dataclass(frozen=True)
class Results:
    """Rows by cell.

    Attributes:
        rows: of one study, as in its ledger.
        examples: of the test split.
    """

    rows: tuple[dict[str, Any], ...]
    examples: int

    def of(self, cell: Cell) -> dict[int, dict[str, Any]]:
        """The rows of a cell by seed, ascending; the seed of ``cell`` does not matter."""
        found = {row["seed"]: row for row in self.rows if cell_of(row) == replace(cell, seed=row["seed"])}
        return dict(sorted(found.items()))

    def figures(self, cell: Cell, figure: str = "test") -> list[float]:
        """One figure of every seed."""
        return [row[figure] for row in self.of(cell).values()]

    def difference(self, first: Cell, second: Cell) -> Difference | None:
        """How much better the first is on the test split, over the seeds that have both; None without any."""
        one, other = self.of(first), self.of(second)
        seeds = [seed for seed in one if seed in other]
        if not seeds:
            return None
        return difference(*(self._right(side, seeds) for side in (one, other)))

    def best_on_validation(self, cells: Iterable[Cell]) -> Cell | None:
        """The cell with the highest mean on validation, the first of equals; None where none is measured."""
        means = {cell: float(np.mean(found)) for cell in cells if (found := self.figures(cell, "validation"))}
        return max(means, key=means.__getitem__, default=None)

    def _right(self, rows: dict[int, dict[str, Any]], seeds: list[int]) -> np.ndarray:
        return np.stack([unpacked(rows[seed]["right"], self.examples) for seed in seeds])
