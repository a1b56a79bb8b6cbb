"""Scores of whole units by exact greedy removal: what the rest cannot make up for stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from prunekit.errors import SelectionError
from prunekit.graph import Groups
from prunekit.graph.atoms import Fixed
from prunekit.graph.nodes import static_nodes
from prunekit.importance.calibration import ModelInputs
from prunekit.importance.untouched import untouched
from prunekit.reconstruction.batches import leaves_of_batches
from prunekit.reconstruction.damping import DAMPING, check_damping
from prunekit.reconstruction.greedy import Elimination, empty_together, inverse_of, padded
from prunekit.reconstruction.layers import Convolution, Layer, layer_of
from prunekit.reconstruction.moments import Gram
from prunekit.reconstruction.places import model_tensors
from prunekit.reconstruction.stream import Stream
from prunekit.types import FloatArray, IntArray

Reader = tuple[Layer, IntArray]
"""A layer, and the unit that each of its inputs belongs to, -1 = none."""


def score_by_removal(
    model: nn.Module, groups: Groups, calibration: Iterable[ModelInputs], *, damping: float = DAMPING
) -> dict[str, FloatArray]:
    """Score units by the error of the layers that read them once they are gone and the rest is updated.

    Each group is emptied one unit after another: always the unit whose removal, with the least-squares update
    of the weights that are left, adds least to the squared differences of the outputs of all layers that read
    the group, each over the squares of its outputs. A unit's score is the error once it is gone: what went
    first has the lowest. It is what :func:`prunekit.reconstruction.reconstruct` does in parallel, foreseen.

    Args:
        model: the model the groups were found in; left as it is.
        groups: to score; layers and branches have no columns and cannot be.
        calibration: batches on the model's device, shaped like the example of the trace; never test data.
        damping: as a fraction of the mean of the diagonal of the second moments.

    Returns:
        By group ``[units]`` float32, >= 0; higher = keep.

    Raises:
        SelectionError: a group that no linear layer or convolution reads in a way that is known here.
        ShapeError: the groups were found in another model.
        CalibrationError: no batches, or shaped unlike the example; NaN or infinity in what a layer reads.

    Source: Kurtic et al., 2023 (ZipLM), Algorithm 1, https://arxiv.org/abs/2302.04089. Deviation: several
    layers may read one group; grouped convolutions take no part. Time grows as ``units * in^2``.
    """
    check_damping(damping)
    readers = _readers(groups)
    unread = [name for name, found in readers.items() if not found]
    if unread:
        raise SelectionError(
            f"No linear layer or convolution reads {', '.join(unread[:5])} as a whole",
            expected="groups whose units are columns of weights",
            remedy="Leave them out with groups.select(ignore=...), or score them by another criterion",
        )
    own = model_tensors(model, groups.graph)
    leaves = leaves_of_batches(groups.graph, calibration)
    layers = {layer.node: layer for found in readers.values() for layer, _ in found}
    names = groups.graph.tensors
    grams = {
        node: Gram(names.get(layer.weight.name, node.name), torch.float64) for node, layer in layers.items()
    }
    with torch.inference_mode(False), untouched(model, ()), torch.no_grad():
        stream = partial(Stream, groups.graph.program.graph_module, lambda node: own.get(node.name), {})
        watchers = {node: partial(_look, layer, grams[node]) for node, layer in layers.items()}
        weights: dict[Node, Tensor] = {}
        for one in leaves:
            values = stream([one]).advance(0, 0, watchers)
            weights = weights or {node: values[layer.weight].double() for node, layer in layers.items()}
        return {
            name: _emptied(groups.whole(name).size, found, weights, grams, damping)
            for name, found in readers.items()
        }


def _readers(groups: Groups) -> dict[str, list[Reader]]:
    """By group the layers that read it as a whole."""
    graph = groups.graph
    static = static_nodes(graph.nodes, lambda node: node.name in graph.tensors)
    found: dict[str, list[Reader]] = {group.name: [] for group in groups}
    for node in graph.nodes:
        layer = layer_of(node, static)
        if layer is None or (isinstance(layer.form, Convolution) and layer.form.groups > 1):
            continue
        dim = groups.labels_of(layer.weight)[0][layer.form.contracted]
        for item in () if isinstance(dim, Fixed) else groups.occurrences(dim):
            if item.group in found and not item.detached:
                found[item.group].append((layer, item.units))
    return found


def _look(layer: Layer, gram: Gram, values: Mapping[Node, Tensor]) -> None:
    for rows, _ in layer.form.pieces(values[layer.source], None):
        gram.add(rows)


def _emptied(
    size: int,
    readers: list[Reader],
    weights: Mapping[Node, Tensor],
    grams: Mapping[Node, Gram],
    damping: float,
) -> FloatArray:
    """``[units]`` the error once each is gone."""
    problems: list[tuple[Elimination, float]] = []
    for layer, units in readers:
        matrix = layer.form.to_matrix(weights[layer.node]).cpu()
        moment = grams[layer.node].finish()[0][0].cpu()
        repeats = matrix.shape[2] // len(units)  # of a convolution, the kernel's positions
        columns = np.tile(units, repeats)
        sets = padded([np.flatnonzero(columns == unit).tolist() for unit in range(size)])
        squares = float(((matrix[0] @ moment) * matrix[0]).sum())
        problem = Elimination(matrix, inverse_of(moment, damping)[0][None], sets)
        problems.append((problem, squares or 1.0))
    order, errors = empty_together(problems, size, size)
    scores = np.zeros(size, dtype=np.float32)
    scores[order] = errors
    return scores
