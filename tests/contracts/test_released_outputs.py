"""Outputs keep their shape unless they are released; caches, which a model only hands to itself, are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import prunekit as pk
from prunekit.errors import ProofError, SelectionError


@dataclass
class Given:
    """An output type that torch knows nothing of."""

    logits: Tensor
    features: Tensor
    past_key_values: list[tuple[Tensor, Tensor]] | None = None


class Model(nn.Module):
    """Gives back its logits, the 8 features they come from, and the keys and values of 3 heads of 4."""

    def __init__(self, *, caches: bool) -> None:
        super().__init__()
        self.caches = caches
        self.first, self.out = nn.Linear(6, 8), nn.Linear(12, 8)
        self.q, self.k, self.v = (nn.Linear(8, 12) for _ in range(3))
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = self.out(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))
        features = x + mixed
        return Given(self.last(features), features, [(k, v)] if self.caches else None)


LEAVES = [".logits", ".features", ".past_key_values[0][0]", ".past_key_values[0][1]"]
X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


def model(*, caches: bool = True) -> Model:
    torch.manual_seed(0)
    return Model(caches=caches)


def look(given: Given) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]


def test_leaves_have_their_paths_and_caches_are_released():
    graph = pk.trace(model(), X)
    assert list(graph.outputs) == LEAVES
    assert graph.released == {2, 3}
    assert pk.trace(model(), X, release="*features").released == {1, 2, 3}
    assert pk.trace(model(), X, release=["*"]).released == {0, 1, 2, 3}


def test_caches_shrink_and_other_outputs_do_not():
    pruned = pk.prune(model(), X)
    assert {group.granularity for group in pruned.groups} == {"head", "head_dim"}
    assert look(pruned.model(X)) == [(2, 5, 4), (2, 5, 8), (2, 2, 5, 2), (2, 2, 5, 2)]
    assert type(pruned.model(X)) is Given
    assert {"first.weight:0", "last.weight:0"} <= {
        item.name for item in pruned.frozen if item.operator == "output"
    }


def test_a_released_output_shrinks_and_the_rest_stays():
    pruned = pk.prune(model(), X, release="*features", granularity="hidden")
    assert look(pruned.model(X)) == [(2, 5, 4), (2, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4)]
    assert {item.name for item in pruned.frozen if item.operator == "output"} == {"last.weight:0"}


def test_released_features_are_those_of_the_kept_units():
    """The oracle computes in the dense model with the removed units' columns of every reader set to zero."""
    dense = model(caches=False)
    pruned = pk.prune(dense, X, release="*features", granularity="hidden")
    (group,) = pruned.groups
    keep = pruned.plan.keep_mask()[group.name]
    with torch.no_grad():
        for part in group.slices:
            gone = torch.from_numpy(~keep[part.units])
            dense.get_parameter(part.tensor).index_fill_(part.dim, gone.nonzero().flatten(), 0.0)
        expected, found = dense(X), pruned.model(X)
    assert torch.allclose(found.logits, expected.logits, atol=1e-6)
    assert torch.allclose(found.features, expected.features[..., np.flatnonzero(keep)], atol=1e-6)


def test_releasing_the_logits_frees_the_last_layer():
    groups = pk.find_groups(pk.trace(model(caches=False), X, release="*logits"))
    assert [group.size for group in groups if "last.bias" in group.tensors] == [4]
    assert {item.name for item in groups.frozen} == {"first.weight:1", "first.weight:0"}


def test_a_pattern_that_matches_no_output_is_refused():
    with pytest.raises(SelectionError, match="'logit' matches no output") as caught:
        pk.trace(model(), X, release="logit")
    assert ".logits" in caught.value.expected
    with pytest.raises(SelectionError, match="3 was given"):
        pk.trace(model(), X, release=3)


def test_with_every_output_released_nothing_can_be_compared():
    with pytest.raises(ProofError, match="no tensor that could be compared"):
        pk.prune(model(caches=False), X, release="*")
