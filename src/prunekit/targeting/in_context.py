"""Operations inside of a model: which of them are which operators that the runtime carried out and timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from math import prod

from prunekit.measure.operation import Operation, Shape
from prunekit.measure.runtimes import NodeTime

BLOCK = 16
"""Runtimes keep images in blocks of at most so many channels, and some tell the padded width."""

PRODUCTS = ("linear", "product")
"""Kinds of operations that runtimes carry out by the same operators."""

Parts = dict[Operation, tuple[int, float]]
"""By operation: how often a model has it, and the milliseconds that all of these take in it."""

Timed = tuple[NodeTime, float]
Key = Callable[[str, Shape, Shape, Shape], Hashable]


def parts_of(operations: Sequence[Operation], nodes: Sequence[NodeTime], whole_ms: float) -> Parts:
    """What operations take inside of a model.

    An operator that the runtime carried out is told by its kind and its shapes; first by all of them, then,
    among what is left, by channels rounded up to blocks. Of those that agree the first is the first
    operation, and so on: in models with branches, widths that differ by less than a block may be taken for
    each other. Where there are not as many of both, nothing is said about them: the runtime may have put some
    together. A change of layout counts with the nearest of these operators, on the side that it is done for.

    Args:
        operations: of the model, in the order they run in.
        nodes: as the runtime timed them, in the order they run in.
        whole_ms: what a call takes; the nodes' times, taken at another time, are scaled to add up to it.
    """
    total = sum(node.ms for node in nodes)
    if not total:
        return {}
    asked = [one for one in operations if one.kind in ("convolution", *PRODUCTS)]
    left, found = _with_layouts(nodes), []
    for channels in (1, BLOCK):
        pairs, asked, left = _paired(asked, left, partial(_key, channels))
        found += pairs
    counts, parts = Counter(operations), Parts()
    for operation, ms in found:
        count, before = parts.get(operation, (0, 0.0))
        parts[operation] = count + 1, before + ms * whole_ms / total
    # One that was recognised here and not there would count with a part of its own time.
    return {one: part for one, part in parts.items() if part[0] == counts[one] and part[1] > 0}


def _paired(
    operations: list[Operation], nodes: list[Timed], key: Key
) -> tuple[list[tuple[Operation, float]], list[Operation], list[Timed]]:
    """Operations with the milliseconds of their operators; and the operations and the operators left over."""
    asked: dict[Hashable, list[Operation]] = {}
    for operation in operations:
        data, weights, *_ = operation.inputs
        asked.setdefault(key(operation.kind, data, weights, operation.output), []).append(operation)
    seen: dict[Hashable, list[Timed]] = {}
    for node, ms in nodes:
        seen.setdefault(key(node.kind, node.data, node.weights, node.output), []).append((node, ms))
    agreeing = {each for each, some in asked.items() if len(some) == len(seen.get(each, ()))}
    pairs = [
        (operation, ms)
        for each in agreeing
        for operation, (_, ms) in zip(asked[each], seen[each], strict=True)
    ]
    return (
        pairs,
        [operation for each, some in asked.items() if each not in agreeing for operation in some],
        [timed for each, some in seen.items() if each not in agreeing for timed in some],
    )


def _with_layouts(nodes: Sequence[NodeTime]) -> list[Timed]:
    """Convolutions and products, with the changes of layout that are done for what they read or give."""
    found: list[list] = []
    before = 0.0
    for node in nodes:
        if node.kind in ("convolution", "linear"):
            found.append([node, node.ms + before])
            before = 0.0
        elif node.kind == "reads_layout":
            before += node.ms
        elif node.kind == "gives_layout" and found:
            found[-1][1] += node.ms
    return [(node, ms) for node, ms in found]


def _key(block: int, kind: str, data: Shape, weights: Shape, output: Shape) -> Hashable:
    """What an operation and its operator have in common."""
    if kind in PRODUCTS:  # Runtimes may have packed the weights, and may read the data transposed.
        return "product", prod(data), prod(output), output[-1:]
    channels = tuple(-(-sizes[1] // block) for sizes in (data, output) if len(sizes) > 1)
    space = len(data) - 2
    grouped = channels != (1, 1) and weights[-space - 1 : -space] == (1,)
    # Not the size of the image that is read: runtimes pad it as they convolve.
    return kind, grouped, data[:1], channels, output[2:], weights[len(weights) - space :]
