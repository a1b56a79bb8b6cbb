"""A ledger measures what is missing and nothing twice; a row says which test examples were right."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.recovery.cells import Cell, Ledger, cell_of, packed, unpacked

CELLS = [
    Cell("macs", 0.5),
    Cell("macs", 0.5, "iterative"),
    Cell("macs", 0.5, budget=0.1),
    Cell("macs", 0.5, rates="last"),
    Cell("macs", 0.5, distilled=True),
    Cell("macs", 0.5, seed=1),
    Cell("weights", 0.5),
]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_what_is_packed_comes_back(count):
    right = np.random.default_rng(count).random(count) < 0.9
    assert np.array_equal(unpacked(packed(right), count), right)


def test_only_what_is_missing_is_measured_in_the_order_of_the_design(tmp_path):
    ledger = Ledger(tmp_path / "cells.json")
    assert ledger.missing(CELLS) == CELLS
    for cell in CELLS[1:3]:
        ledger.add(cell, {"test": 0.5})
    assert ledger.missing([*CELLS, *CELLS]) == [CELLS[0], *CELLS[3:]]


def test_a_row_is_the_cell_and_what_was_found(tmp_path):
    ledger = Ledger(tmp_path / "cells.json")
    for number, cell in enumerate(CELLS):
        ledger.add(cell, {"test": number / 10, "commit": "abc"}, study="a study")
    rows = ledger.rows()
    assert [cell_of(row) for row in rows] == CELLS
    assert [row["test"] for row in rows] == [number / 10 for number in range(len(CELLS))]
    assert ledger.record()["study"] == "a study"


def test_a_cell_that_is_measured_again_replaces_its_row(tmp_path):
    ledger = Ledger(tmp_path / "cells.json")
    ledger.add(CELLS[0], {"test": 0.1})
    ledger.add(CELLS[1], {"test": 0.2})
    ledger.add(CELLS[0], {"test": 0.3})
    assert [(cell_of(row), row["test"]) for row in ledger.rows()] == [(CELLS[1], 0.2), (CELLS[0], 0.3)]


def test_seeds_make_cells_of_their_own():
    assert list(CELLS[0].over([0, 2])) == [replace(CELLS[0], seed=0), replace(CELLS[0], seed=2)]
