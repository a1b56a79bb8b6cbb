"""Operators that map what they read linearly: their inputs and outputs as rows, their weight as a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from prunekit.graph.nodes import bind, operator_name

AT_ONCE = 2**22
"""Numbers of unfolded inputs that are made at once."""


class Form(Protocol):
    """How an operator is a linear map; ``[groups, n, in]`` to ``[groups, n, out]``.

    Attributes:
        contracted: the dimension of the weight along which the inputs of one group lie.
    """

    @property
    def contracted(self) -> int: ...  # noqa: D102

    @property
    def key(self) -> tuple[Any, ...]:
        """Operators with equal keys that read the same tensor have the same rows."""
        ...

    def pieces(self, value: Tensor, output: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The inputs as rows, and the outputs in the same order, some at a time."""
        ...

    def to_matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``[groups, out, in]``."""
        ...

    def from_matrix(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The weight in its own shape."""
        ...


@dataclass(frozen=True)
class Linear:
    """``x[..., in] @ weight[out, in].T``; of a plain product ``weight[in, out]``."""

    turned: bool = False

    @property
    def contracted(self) -> int:
        """The weight's dimension of the inputs."""
        return 0 if self.turned else 1

    @property
    def key(self) -> tuple[Any, ...]:
        """All read the last dimension."""
        return ("linear",)

    def pieces(self, value: Tensor, output: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Rows are all positions of the leading dimensions."""
        rows = value.reshape(1, -1, value.shape[-1])
        outputs = None if output is None else output.reshape(1, -1, output.shape[-1])
        step = max(1, AT_ONCE // max(1, rows.shape[2]))
        for start in range(0, rows.shape[1], step):
            piece = None if outputs is None else outputs[:, start : start + step]
            yield rows[:, start : start + step], piece

    def to_matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``[1, out, in]``."""
        return (weight.T if self.turned else weight)[None]

    def from_matrix(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The weight in its own shape."""
        return matrix[0].T if self.turned else matrix[0]


@dataclass(frozen=True)
class Convolution:
    """``x[batch?, in, *space]`` with ``weight[out, in / groups, *kernel]``.

    A row holds what one output position reads: the kernel's positions and then the channels of one group, so
    that neighbours are channels of one position, the order of N:M patterns.

    Attributes:
        groups: of channels.
        kernel: extents.
        stride: of each.
        padding: of each, or ``same`` or ``valid``.
        dilation: of each.
    """

    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]

    contracted = 1

    @property
    def key(self) -> tuple[Any, ...]:
        """Everything that says which numbers are read."""
        return (self.groups, self.kernel, self.stride, self.padding, self.dilation)

    def pieces(self, value: Tensor, output: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Some examples at a time, so that no more than :data:`AT_ONCE` unfolded numbers are held."""
        if value.ndim == len(self.kernel) + 1:
            value, output = value[None], None if output is None else output[None]
        unfolded = value[0].numel() * math.prod(self.kernel) // math.prod(self.stride) if len(value) else 1
        step = max(1, AT_ONCE // max(1, unfolded))
        for start in range(0, len(value), step):
            rows = self._unfold(value[start : start + step])
            outputs = None
            if output is not None:
                given = output[start : start + step].flatten(2)
                outputs = given.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
            yield rows, outputs

    def _unfold(self, value: Tensor) -> Tensor:
        """``[groups, examples * positions, kernel * channels]``."""
        spatial = len(self.kernel)
        value = F.pad(value, [amount for pair in reversed(self._margins()) for amount in pair])
        for dim, (extent, stride, dilation) in enumerate(
            zip(self.kernel, self.stride, self.dilation, strict=True)
        ):
            value = value.unfold(2 + dim, (extent - 1) * dilation + 1, stride)[..., ::dilation]
        value = value.flatten(2 + spatial).flatten(2, 1 + spatial)  # [examples, channels, positions, kernel]
        value = value.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 4, 2)
        return value.reshape(self.groups, value.shape[1] * value.shape[2], -1)

    def _margins(self) -> list[tuple[int, int]]:
        if isinstance(self.padding, str):
            totals = [
                (extent - 1) * dilation if self.padding == "same" else 0
                for extent, dilation in zip(self.kernel, self.dilation, strict=True)
            ]
            return [(total // 2, total - total // 2) for total in totals]
        return [(amount, amount) for amount in self.padding]

    def to_matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``[groups, out / groups, kernel * in / groups]``."""
        return weight.flatten(2).transpose(1, 2).flatten(1).unflatten(0, (self.groups, -1))

    def from_matrix(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The weight in its own shape."""
        return matrix.flatten(0, 1).unflatten(1, (-1, shape[1])).transpose(1, 2).reshape(shape)


@dataclass(frozen=True, eq=False)
class Layer:
    """One operator that reads an activation with a weight.

    Attributes:
        node: the operator.
        source: what it reads.
        weight: its weight.
        bias: what is added, or None.
        form: how it is a linear map.
    """

    node: Node
    source: Node
    weight: Node
    bias: Node | None
    form: Form


def layer_of(node: Node, static: set[Node]) -> Layer | None:
    """The operator as a linear map of an activation; None where it is none that is known here."""
    build = _FORMS.get(operator_name(node)) if node.op == "call_function" else None
    found = None if build is None else build(node)
    if found is None or found.weight not in static or found.source in static:
        return None
    return found


def _linear(node: Node) -> Layer:
    given = bind(node)
    return Layer(node, given["input"], given["weight"], given.get("bias"), Linear())


def _product(node: Node) -> Layer | None:
    left, right = node.args[:2]
    if not isinstance(left, Node) or not isinstance(right, Node) or right.meta["val"].ndim != 2:
        return None
    return Layer(node, left, right, None, Linear(turned=True))


def _added_product(node: Node) -> Layer | None:
    given = bind(node)
    if given.get("alpha", 1) != 1 or given.get("beta", 1) != 1:
        return None
    return Layer(node, given["mat1"], given["mat2"], given["self"], Linear(turned=True))


def _convolution(node: Node) -> Layer:
    given = bind(node)
    kernel = tuple(int(size) for size in given["weight"].meta["val"].shape[2:])

    def each(value: Any) -> tuple[int, ...]:
        sizes = (value,) if isinstance(value, int) else tuple(value)
        return sizes * len(kernel) if len(sizes) == 1 else sizes

    padding = given["padding"]
    form = Convolution(
        groups=given["groups"],
        kernel=kernel,
        stride=each(given["stride"]),
        padding=padding if isinstance(padding, str) else each(padding),
        dilation=each(given["dilation"]),
    )
    return Layer(node, given["input"], given["weight"], given.get("bias"), form)


_FORMS: Mapping[str, Callable[[Node], Layer | None]] = {
    "aten.linear": _linear,
    "aten.matmul": _product,
    "aten.mm": _product,
    "aten.addmm": _added_product,
    "aten.conv1d": _convolution,
    "aten.conv2d": _convolution,
    "aten.conv3d": _convolution,
}
"""Operator -> how it is a linear map."""
