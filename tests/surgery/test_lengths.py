"""Proofs on longer sequences, where the model takes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunekit as pk

LENGTH = 5


class Numbered(nn.Module):
    """Tokens and their places, looked up in tables; a place beyond the table is out of range."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 6), nn.Embedding(places, 6)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(torch.relu(self.hidden(x)))


@pytest.mark.parametrize(("places", "proved"), [(LENGTH, False), (LENGTH + 1, True)])
def test_a_proof_on_longer_sequences_only_where_the_model_takes_them(places, proved):
    """The oracle is the class: it raises IndexError as soon as a sequence is longer than its table."""
    pruned = pk.prune(Numbered(places), torch.arange(2 * LENGTH).reshape(2, LENGTH), sparsity=0.5)
    assert pruned.form == "own class"
    assert pruned.proof.passed
    assert (f"also on sequences of {LENGTH + 1}" in str(pruned.proof)) is proved
