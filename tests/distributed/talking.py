"""What three processes tell each other."""

from __future__ import annotations

from typing import Any

import torch
from tests.distributed.failing import told

from prunekit import ranks as room
from prunekit.ranks import Ranks


def everything(ranks: Ranks) -> dict[str, Any]:
    room.AT_ONCE = 3  # So that tensors go in pieces.
    rank = ranks.rank
    one = (
        torch.tensor([[1e16, 1.0], [-1e16, 0.5]], dtype=torch.float64)
        if rank == 1
        else torch.ones(2, 2).double()
    )
    return {
        "gathered": ranks.gather({"é": [rank, None, 0.1 * rank]}, "each"),
        "first": ranks.first(f"of {rank}", "the first"),
        "sum": ranks.sum(one, "numbers"),
        "counts": ranks.sum(torch.full((7,), rank + 1), "counts"),
        "together": ranks.sum_all([torch.full((2, 2), float(rank)), torch.full((), 1.0)], "two"),
        "empty": ranks.sum(torch.zeros(0, 3), "nothing"),
        "largest": ranks.largest(torch.tensor([rank, -rank, 5]), "numbers"),
        "same": told(lambda: ranks.check_same(0.1 + 0.2, "a number")),
        "different": told(lambda: ranks.check_same(0.3 if rank else 0.1 + 0.2, "a number")),
        "shapes": told(lambda: ranks.sum(torch.ones(1 + (rank == 2)), "tensors")),
        "who": [ranks.rank, ranks.size, ranks.is_first],
    }
