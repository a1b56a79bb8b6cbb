"""Scores of whole units by exact greedy removal: what the rest cannot make up for stays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.fx import Node

from prunekit.graph import Groups
from prunekit.graph.atoms import Fixed
from prunekit.graph.nodes import static_nodes
from prunekit.importance.calibration import ModelInputs
from prunekit.importance.removal import REMOVAL
from prunekit.importance.untouched import untouched
from prunekit.importance.view import ROLES, Statistics, check_roles
from prunekit.reconstruction.batches import leaves_of_batches
from prunekit.reconstruction.damping import DAMPING, check_damping
from prunekit.reconstruction.greedy import Elimination, empty_together, inverse_of, padded
from prunekit.reconstruction.layers import Convolution, Layer, layer_of
from prunekit.reconstruction.moments import Gram
from prunekit.reconstruction.places import model_tensors
from prunekit.reconstruction.stream import Stream
from prunekit.types import IntArray

Reader = tuple[Layer, IntArray]
"""A layer, and the unit that each of its inputs belongs to, -1 = none."""


def removal_errors(
    model: nn.Module, groups: Groups, calibration: Iterable[ModelInputs], *, damping: float = DAMPING
) -> Statistics:
    """Gather what the criterion ``removal`` needs: errors once units are gone and the rest is updated.

    Each group is emptied one unit after another: always the unit whose removal, with the least-squares update
    of the weights that are left, adds least to the squared differences of the outputs of all layers that read
    the group, each over the squares of its outputs. A unit's figure is the error once it is gone: what went
    first has the lowest. It is what :func:`prunekit.reconstruction.reconstruct` does in parallel, foreseen.

    Args:
        model: the model the groups were found in; left as it is.
        groups: to empty; those that no linear layer or convolution reads as a whole are left out.
        calibration: batches on the model's device, shaped like the example of the trace; never test data.
        damping: as a fraction of the mean of the diagonal of the second moments.

    Returns:
        For :func:`prunekit.score` with the criterion ``removal``: by group ``[units]`` float64, >= 0.

    Raises:
        SelectionError: a dampening below 0.
        ShapeError: the groups were found in another model.
        CalibrationError: no batches, or shaped unlike the example; NaN or infinity in what a layer reads.

    Source: Kurtic et al., 2023 (ZipLM), Algorithm 1, https://arxiv.org/abs/2302.04089. Deviation: several
    layers may read one group; grouped convolutions take no part. Time grows as ``units * in^2``.
    """
    check_damping(damping)
    readers = {name: found for name, found in _readers(groups).items() if found}
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
        errors = {
            name: _emptied(groups.whole(name).size, found, weights, grams, damping)
            for name, found in readers.items()
        }
    held = sum(gram.nbytes for gram in grams.values())
    return Statistics({REMOVAL: errors}, check_roles(ROLES), len(leaves), math.nan, peak_bytes=held)


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
) -> npt.NDArray[np.float64]:
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
    found = np.zeros(size, dtype=np.float64)
    found[order] = errors
    return found
