"""Claims and tables are made of the rows that are there, and say what is not."""

import numpy as np
import pytest
from benchmarks.recovery.cells import Cell, Ledger, packed
from benchmarks.recovery.claims import CLAIMS
from benchmarks.recovery.intervals import CONFIRMED, NOT_SEPARATED, REFUTED
from benchmarks.recovery.results import PARENT, Results
from benchmarks.recovery.tables import budgets, missing, spread, ways

EXAMPLES = 2000


@pytest.fixture
def made(tmp_path):
    """Results of cells with given accuracies, the errors of a worse cell among them those of a better one."""

    def make(accuracies, seeds=3):
        ledger = Ledger(tmp_path / "cells.json")
        for cell, accuracy in accuracies.items():
            for seeded in cell.over(range(seeds)):
                order = np.random.default_rng(seeded.seed).permutation(EXAMPLES)
                right = order < round(accuracy * EXAMPLES)
                log = [{"before": 0.1}]
                ledger.add(
                    seeded, {"test": accuracy, "validation": accuracy, "right": packed(right), "log": log}
                )
        return Results(tuple(ledger.rows()), EXAMPLES)

    return make


def verdicts(results):
    return [claim.verdict(results) for claim in CLAIMS]


def test_without_figures_no_claim_is_judged(made):
    assert verdicts(made({})) == [NOT_SEPARATED] * 4


def test_claims_follow_the_figures(made):
    worse = {Cell(kind, sparsity): 0.7 for kind in ("macs", "weights") for sparsity in (0.7, 0.9)}
    fine = {Cell(kind, sparsity, "iterative"): 0.9 for kind in ("macs", "weights") for sparsity in (0.7, 0.9)}
    low = {Cell(kind, 0.3): 0.9 for kind in ("macs", "weights")}
    half = {Cell(kind, 0.5, budget=budget): 0.9 for kind in ("macs", "weights") for budget in (0.1, 0.2)}
    all_well = {PARENT: 0.9, **worse, **fine, **low, **half}
    assert verdicts(made(all_well)) == [CONFIRMED] * 4


def test_one_comparison_refutes(made):
    high = {
        Cell(kind, s, way): 0.9
        for kind in ("macs", "weights")
        for s in (0.7, 0.9)
        for way in ("oneshot", "iterative")
    }
    found = made(
        {PARENT: 0.9, **high, Cell("macs", 0.9): 0.95, Cell("macs", 0.3): 0.8, Cell("weights", 0.3): 0.9}
    )
    assert verdicts(found)[:2] == [REFUTED, REFUTED]


def test_the_way_is_chosen_on_validation(made):
    cells = [Cell("weights", 0.9, way) for way in ("oneshot", "iterative", "gradual")]
    found = made(dict(zip(cells, (0.8, 0.9, 0.85), strict=True)))
    assert found.best_on_validation(cells) == cells[1]
    assert found.best_on_validation([Cell("weights", 0.7)]) is None


def test_a_spread_is_the_mean_with_the_range():
    assert spread([0.9, 0.8, 0.85]) == "85.00 (80.00 to 90.00)"
    assert spread([0.9]) == "90.00 (one seed)"
    assert spread([]) == "not measured"


def test_tables_show_what_is_measured(made):
    found = made({Cell("macs", 0.5): 0.9, Cell("macs", 0.5, budget=0.1): 0.8})
    row = next(line for line in ways(found).splitlines() if line.startswith("| 50% of MACs"))
    assert row.count("90.00 (90.00 to 90.00)") == 1
    assert row.count("not measured") == 2
    row = next(line for line in budgets(found).splitlines() if line.startswith("| 50% of MACs"))
    assert [cell.strip()[:5] for cell in row.split("|")[2:6]] == ["not m", "80.00", "90.00", "not m"]


def test_what_is_missing_is_listed_with_its_seeds(made):
    cells = [*Cell("macs", 0.5).over(range(3)), *Cell("macs", 0.9).over([0, 1])]
    found = made({Cell("macs", 0.5): 0.9}, seeds=2)
    assert "- 50% of MACs, one-shot, budget 20%: seeds 2" in missing(cells, found.rows)
    assert "- 90% of MACs, one-shot, budget 20%: seeds 0, 1" in missing(cells, found.rows)
    assert missing(cells[:2], found.rows) == "Every cell of the design is measured.\n"
