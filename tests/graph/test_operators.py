"""The table of operators: every family is in it, no operator twice, and each is one that torch has."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import torch

from prunekit.graph import rules
from prunekit.graph.operator import Operator

FAMILIES = {
    found.name: import_module(f"{rules.__name__}.{found.name}").OPERATORS
    for found in iter_modules(rules.__path__)
}
OUTSIDE_ATEN = {"transformers.grouped_mm_fallback", "wrap_with_autocast"}


def test_every_family_is_in_the_table_and_no_two_know_the_same_operator():
    rows = [(name, row) for family in FAMILIES.values() for name, row in family.items()]
    assert len(rows) == len(rules.OPERATORS)
    assert dict(rows) == rules.OPERATORS
    assert all(isinstance(row, Operator) for row in rules.OPERATORS.values())


def test_every_row_is_an_operator_that_torch_has():
    missing = {
        name
        for name in rules.OPERATORS.keys() - OUTSIDE_ATEN
        if not hasattr(torch.ops.aten, name.removeprefix("aten."))
    }
    assert missing == set()
