"""The law of the zoo: an architecture is pruned and proved, or refused with the reason its row states.

Runs every N-th row of ``tests.zoo.architectures``, beginning at the day of the year, so that all rows have
had their turn after N days. ``PRUNEKIT_ZOO_PART=3/27`` runs the third part of 27,
``PRUNEKIT_ZOO_PART=all`` the whole zoo.
"""

from __future__ import annotations

import copy
import os
import time

import pytest
import torch
from tests.zoo.architectures.row import Row
from tests.zoo.architectures.table import ARCHITECTURES, chosen
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import prunekit as pk

ROWS_A_DAY = 3

pytestmark = pytest.mark.filterwarnings("ignore")  # what other people's models warn about is theirs


def of_today() -> list[Row]:
    """The rows of the environment's part, or of today."""
    asked = os.environ.get("PRUNEKIT_ZOO_PART", "")
    if asked == "all":
        return chosen()
    if asked:
        part, parts = (int(number) for number in asked.split("/"))
        return chosen("*", part - 1, parts)
    parts = -(-len(ARCHITECTURES) // ROWS_A_DAY)
    return chosen("*", time.gmtime().tm_yday % parts, parts)


def test_table_is_large_and_its_names_are_unique():
    names = [row.name for row in ARCHITECTURES]
    assert len(names) >= 80
    assert len(set(names)) == len(names)


def test_parts_cover_the_table():
    parts = [chosen("*", part, 27) for part in range(27)]
    assert sorted(row.name for part in parts for row in part) == sorted(row.name for row in ARCHITECTURES)


@pytest.mark.parametrize("row", of_today(), ids=lambda row: row.name)
def test_pruned_and_proved_or_refused(row: Row):
    model, inputs = row.model(), row.example()
    if row.refused is not None:
        with pytest.raises(pk.PrunekitError) as caught:
            pk.prune(model, kwargs=inputs, sparsity=0.5)
        assert type(caught.value).__name__ == row.refused.error
        assert row.refused.says in str(caught.value)
        return
    before = copy.deepcopy(model.state_dict())
    pruned = pk.prune(model, kwargs=inputs, sparsity=0.5)
    assert pruned.proof.passed
    assert _parameters(pruned.model) < _parameters(model)
    assert _looks(pruned.model, inputs) == _looks(model, inputs)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    if row.trains:
        _assert_trains(pruned.model, inputs)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _looks(model: nn.Module, inputs: dict) -> list[object]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(model.eval()(**inputs))
    return [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]


def _assert_trains(model: nn.Module, inputs: dict) -> None:
    model = copy.deepcopy(model).train()
    torch.manual_seed(0)
    leaves = pytree.tree_leaves(model(**inputs))
    loss = torch.stack(
        [leaf.float().square().mean() for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    ).sum()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert bool(loss.isfinite())
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
