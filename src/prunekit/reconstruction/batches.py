"""Calibration batches as the inputs of a traced graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from prunekit.errors import CalibrationError
from prunekit.graph import Graph
from prunekit.importance.batches import ModelInputs, checked_batches
from prunekit.importance.replay import leaves_of


def leaves_of_batches(graph: Graph, batches: Iterable[ModelInputs]) -> list[list[Any]]:
    """The leaves of each batch, in the order of the graph's inputs.

    Raises:
        CalibrationError: no batches, something else than batches, or of another shape than the example that
            the model was traced with, apart from its open first dimension.
    """
    found: list[list[Any]] = []
    for number, batch in checked_batches(batches):
        leaves = leaves_of(graph, tuple(batch.args), batch.kwargs)
        if leaves is None:
            traced = _described((*graph.args, *graph.kwargs.values()))
            raise CalibrationError(
                f"It holds {_described((*batch.args, *batch.kwargs.values()))}",
                expected=f"what the model was traced with, {traced}, but for the number of examples",
                where=f"calibration batch {number}",
                remedy="Trace the model with an example of the calibration data's length, size and dtypes",
            )
        found.append(leaves)
    return found


def _described(values: Iterable[Any]) -> str:
    tensors = [leaf for leaf in pytree.tree_leaves(tuple(values)) if isinstance(leaf, Tensor)]
    return ", ".join(f"{list(leaf.shape)} of {leaf.dtype}" for leaf in tensors) or "no tensors"
