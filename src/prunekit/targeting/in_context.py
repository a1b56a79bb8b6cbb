"""Operations inside of a model: which of them are which operators that the runtime carried out and timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import prod

from prunekit.measure.operation import Operation
from prunekit.measure.runtimes import NodeTime

BLOCK = 16
"""Runtimes keep images in blocks of at most so many channels, and tell the padded width."""

Parts = dict[Operation, tuple[int, float]]
"""By operation: how often a model has it, and the milliseconds that all of these take in it."""


def parts_of(operations: Sequence[Operation], nodes: Sequence[NodeTime], whole_ms: float) -> Parts:
    """What operations take inside of a model.

    An operator that the runtime carried out is told by its kind and its shapes; of those that agree in these
    the first is the first operation, and so on. Where there are not as many of both, nothing is said about
    them: the runtime may have put some together. What changes the layout of values counts with the operator
    that it is done for.

    Args:
        operations: of the model, in the order they run in.
        nodes: as the runtime timed them, in the order they run in.
        whole_ms: what a call takes; the nodes' times, taken at another time, are scaled to add up to it.
    """
    total = sum(node.ms for node in nodes)
    if not total:
        return {}
    asked: dict[Hashable, list[Operation]] = {}
    for operation in operations:
        if operation.kind in ("convolution", "linear"):
            asked.setdefault(_key_of(operation), []).append(operation)
    seen: dict[Hashable, list[float]] = {}
    for node, ms in _with_layouts(nodes):
        seen.setdefault(_key(node.kind, node.data, node.weights, node.output), []).append(ms)
    found: Parts = {}
    for key, some in asked.items():
        taken = seen.get(key, [])
        if len(taken) != len(some):
            continue
        for operation, ms in zip(some, taken, strict=True):
            count, before = found.get(operation, (0, 0.0))
            found[operation] = count + 1, before + ms * whole_ms / total
    # One that was recognised here and not there would count with a part of its own time.
    counts = Counter(operations)
    return {one: part for one, part in found.items() if part[0] == counts[one] and part[1] > 0}


def _with_layouts(nodes: Sequence[NodeTime]) -> list[tuple[NodeTime, float]]:
    """Convolutions and linear operators, with the changes of layout behind them and, at first, before."""
    found, before = [], 0.0
    for node in nodes:
        if node.kind in ("convolution", "linear"):
            found.append([node, node.ms + before])
            before = 0.0
        elif node.kind == "layout" and found:
            found[-1][1] += node.ms
        elif node.kind == "layout":
            before += node.ms
    return [(node, ms) for node, ms in found]


def _key_of(operation: Operation) -> Hashable:
    data, weights, *_ = operation.inputs
    return _key(operation.kind, data, weights, operation.output)


def _key(kind: str, data: tuple[int, ...], weights: tuple[int, ...], output: tuple[int, ...]) -> Hashable:
    if kind == "linear":  # Runtimes may have packed the weights, and may read the data transposed.
        return kind, prod(data), prod(output), output[-1:]
    channels = tuple(-(-sizes[1] // BLOCK) if len(sizes) > 1 else 0 for sizes in (data, output))
    space = len(data) - 2
    # Not the size of the image that is read: runtimes pad it as they convolve.
    return kind, data[:1], channels, output[2:], weights[len(weights) - space :]
