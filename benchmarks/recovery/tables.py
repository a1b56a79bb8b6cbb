"""From ledgers to the Markdown pages of docs/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from textwrap import fill
from typing import Any

import numpy as np
from benchmarks.recovery.cells import Cell, cell_of
from benchmarks.recovery.claims import CLAIMS, KIND_NAMES
from benchmarks.recovery.intervals import Difference, better
from benchmarks.recovery.results import PARENT, Results
from benchmarks.recovery.words import in_words, lost

NOT_MEASURED = "not measured"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """``mean (lowest to highest)`` in percent; the number of values where it is not three."""
    if not values:
        return NOT_MEASURED
    mean, low, high = (f"{100 * value:.2f}" for value in (np.mean(values), min(values), max(values)))
    if len(values) == 1:
        return f"{mean} (one seed)"
    return f"{mean} ({low} to {high})"


def points(found: Difference | None) -> tuple[str, str, str]:
    """Difference, interval over seeds and interval over examples, in points."""
    if found is None:
        return NOT_MEASURED, "", ""
    seeds, examples = (f"{100 * low:+.2f} to {100 * high:+.2f}" for low, high in _ends(found))
    if len(found.by_seed) < 2:
        seeds = "one seed"
    return f"{100 * found.mean:+.2f}", seeds, examples


def _ends(found: Difference) -> tuple[tuple[float, float], tuple[float, float]]:
    return found.over_seeds, found.over_examples


def ways(results: Results, sparsities: Sequence[float] = (0.3, 0.5, 0.7, 0.9)) -> str:
    """Test accuracy by kind, sparsity and way, at the main budget."""
    rows = []
    for kind, name in KIND_NAMES.items():
        for sparsity in sparsities:
            cells = [Cell(kind, sparsity, way) for way in ("oneshot", "iterative", "gradual")]
            if any(results.of(cell) for cell in cells):
                before = [row["log"][0]["before"] for row in results.of(cells[0]).values() if row["log"]]
                rows.append(
                    [
                        f"{sparsity:.0%} of {name}",
                        spread(before),
                        *(spread(results.figures(c)) for c in cells),
                    ]
                )
    return table(["gone", "cut, before recovery (validation)", "one-shot", "iterative", "gradual"], rows)


def claims(results: Results) -> str:
    """Every claim with its verdict and the comparisons that decide it."""
    parts = []
    for claim in CLAIMS:
        rows = [(one.what, *points(one.found), one.verdict) for one in claim.compare(results)]
        head = ["comparison", "points", "over seeds", "over pictures", f"{claim.rule}?"]
        parts.append(f"**{claim.text}: {claim.verdict(results)}**\n\n{table(head, rows)}")
    return "\n".join(parts)


def budgets(results: Results, shares: Sequence[float] = (0.05, 0.1, 0.2, 0.5)) -> str:
    """Test accuracy of one-shot pruning by budget."""
    rows = []
    for kind, name in KIND_NAMES.items():
        for sparsity in (0.5, 0.7, 0.9):
            cells = [Cell(kind, sparsity, budget=share) for share in shares]
            rows.append([f"{sparsity:.0%} of {name}", *(spread(results.figures(cell)) for cell in cells)])
    return table(["gone, one-shot", *(f"budget {share:.0%}" for share in shares)], rows)


def pairs(results: Results, named: Iterable[tuple[str, Cell, Cell]], names: tuple[str, str]) -> str:
    """Two cells side by side with their difference and whether the first is better."""
    rows = []
    for what, first, second in named:
        found = results.difference(first, second)
        verdict = {"CONFIRMED": "yes", "REFUTED": "no, worse"}.get(
            better(found) if found else "", "not separated"
        )
        sides = [spread(results.figures(cell)) for cell in (first, second)]
        rows.append([what, *sides, *points(found), verdict if found else ""])
    return table(["", *names, "points", "over seeds", "over examples", "better?"], rows)


def missing(design: Iterable[Cell], rows: Sequence[dict[str, Any]]) -> str:
    """What of the design was not measured, in words."""
    measured = {cell_of(row) for row in rows}
    lacking: dict[str, list[int]] = {}
    for cell in design:
        if cell not in measured:
            lacking.setdefault(in_words(cell), []).append(cell.seed)
    if not lacking:
        return "Every cell of the design is measured.\n"
    lines = [f"- {what}: seeds {', '.join(map(str, seeds))}" for what, seeds in lacking.items()]
    return "Of the design these cells are not measured yet:\n\n" + "\n".join(lines) + "\n"


def rates(results: Results, cells: Iterable[Cell], names: Sequence[str], figure: str) -> str:
    """One figure of cells under several ways to choose the learning rate."""
    rows = [
        [lost(cell), *(spread(results.figures(replace(cell, rates=name), figure)) for name in names)]
        for cell in cells
    ]
    return table(["", *names], rows)


def cells(results: Results) -> str:
    """Every cell: quality on validation before and after recovery, and on the test split."""
    rows = []
    for cell in dict.fromkeys(replace(cell_of(row), seed=0) for row in results.rows):
        found = results.of(cell).values()
        before = [row["log"][0]["before"] for row in found if row["log"]]
        sides = [spread(results.figures(cell, figure)) for figure in ("validation", "test")]
        rows.append((in_words(cell), str(len(found)), spread(before) if before else "", *sides))
    return table(["", "seeds", "validation, before recovery", "validation", "test"], rows)


def origin(record: dict[str, Any]) -> str:
    """Commits, dates and machine of a study."""
    rows, machine = record["rows"], record["environment"]
    commits = ", ".join(f"`{one}`" for one in sorted({row["commit"] for row in rows}))
    days = sorted({row["date"] for row in rows})
    packages = machine["packages"]
    minutes = sum(row["cpu_seconds"] for row in rows) / 60
    text = (
        f"{len(rows)} cells, measured with the commits {commits} on {' to '.join(dict.fromkeys(days))}; "
        f"{machine['cpu']['model']}, {machine['threads']} thread, torch {packages['torch']}; {minutes:.0f} "
        "CPU minutes for pruning and recovery. The machine did other work as well. Each row of the JSON file "
        "names its commit, its seed and what it saw."
    )
    return fill(text, width=116) + "\n"


def parent_line(results: Results) -> str:
    """Accuracy of the parents."""
    return f"Parents: {spread(results.figures(PARENT))} on the test split, by seed."
