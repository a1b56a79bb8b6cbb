"""Whether deleting layers is passing over them, also where the example inputs do not lead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.graph import Graph
from prunekit.surgery.compare import Precision, max_relative_error
from prunekit.surgery.tensors import copied

TIMES_LONGER = 4
"""How much longer than the example's the other sequences are."""


class Passing(nn.Module):
    """Gives back the first thing it is given."""

    def forward(self, given: Any, *args: Any, **kwargs: Any) -> Any:
        """``given``, whatever else there is."""
        return given


def same_elsewhere(shorter: nn.Module, passing: nn.Module, graph: Graph, precision: Precision) -> bool:
    """A class with fewer layers computes what it computes with as many, some of which pass on what they get.

    Compared in training mode with equal random numbers, and on longer sequences. A class that draws a number
    per layer, has a list with an entry for each, or treats the sixth in a way of its own, tells the two apart
    there. Where the class with as many does not run, nothing is compared.

    Args:
        shorter: without the layers.
        passing: with :class:`Passing` in their place.
        graph: of the dense model, with its example inputs.
        precision: in which the two are compared.
    """
    models = [precision.of(model) for model in (passing, shorter)]
    for training in (False, True):
        for batch in _inputs(graph, precision):
            expected = _run(models[0], batch, graph, training=training)
            if expected is None:
                continue
            found = _run(models[1], batch, graph, training=training)
            if found is None or max_relative_error(expected, found) > precision.tolerance:
                return False
    return True


def _run(
    model: nn.Module, batch: tuple[tuple, dict[str, Any]], graph: Graph, *, training: bool
) -> list[Tensor] | None:
    """The outputs that are not released, from a copy (statistics move); None where the model does not run."""
    twin = copied(model).train(training)
    args, kwargs = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            leaves, _ = pytree.tree_flatten_with_path(twin(*args, **kwargs))
        except Exception:  # whatever the user's forward raises about what it does not expect there
            return None
    return [
        leaf
        for path, leaf in leaves
        if isinstance(leaf, Tensor) and pytree.keystr(path) not in graph.released_paths
    ]


def _inputs(graph: Graph, precision: Precision) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """The example, and the example on sequences several times as long, if it has any."""
    batch = precision.batches(graph)[0]
    yield batch
    leaves, spec = pytree.tree_flatten(batch)
    lengths = Counter(leaf.shape[1] for leaf in leaves if _is_sequence(leaf))
    if lengths:
        length = lengths.most_common(1)[0][0]
        longer = [
            torch.cat([leaf] * TIMES_LONGER, dim=1)
            if _is_sequence(leaf) and leaf.shape[1] == length
            else leaf
            for leaf in leaves
        ]
        yield pytree.tree_unflatten(longer, spec)


def _is_sequence(leaf: object) -> bool:
    """Positions along the second dimension: of integers, or of vectors."""
    return isinstance(leaf, Tensor) and (
        (leaf.ndim == 2 and not leaf.is_floating_point()) or (leaf.ndim == 3 and leaf.is_floating_point())
    )
