"""Operations: what one operator of a model computes, by its shapes alone, and a model of nothing else.

The time of an operation at given widths is measured on the smallest model that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Operation:
    """One operator at given sizes; equal operations take equal times.

    Attributes:
        kind: a key of :data:`TIMED`, or the family of operators it belongs to, such as ``normalization``.
        inputs: shapes of its tensor arguments in order, weights and biases included.
        output: shape of its first result.
        settings: what else decides how much it computes, such as a stride.
    """

    kind: str
    inputs: tuple[Shape, ...]
    output: Shape
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def is_timed(self) -> bool:
        """Whether it is timed by itself; else its time follows from :attr:`elements`."""
        return self.kind in TIMED

    @property
    def elements(self) -> int:
        """Numbers that it reads and writes; of a lookup those that it finds."""
        return prod(self.output) + (0 if self.kind == "lookup" else sum(map(prod, self.inputs)))

    @property
    def macs(self) -> int:
        """Multiply-accumulates, counted as :func:`prunekit.measure.count_macs` does."""
        if self.kind == "convolution":
            return prod(self.output) * prod(self.inputs[1][1:])
        if self.kind == "linear":
            return prod(self.inputs[0]) * self.inputs[1][0]
        if self.kind == "product":
            return prod(self.output) * self.inputs[0][-1]
        if self.kind == "attention":
            return prod(self.inputs[0]) * self.inputs[1][-2] + prod(self.output) * self.inputs[1][-2]
        return int(self.setting("macs") or 0)

    def setting(self, name: str) -> Any:
        """A setting by name; None where it is absent."""
        return dict(self.settings).get(name)

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.inputs)
        return f"{self.kind}({shapes})"


NOTHING = Operation("nothing", ((1,),), (1,))
"""Calling a model that computes nothing: what every call takes."""


def onnx_of(operation: Operation, seed: int = 0) -> tuple[bytes, Arrays]:
    """A model in ONNX that is only this operation, and inputs for it.

    Weights and inputs are normal random numbers, so that no time depends on zeros.

    Args:
        operation: of a kind in :data:`TIMED`.
        seed: of the numbers.
    """
    import onnx

    builder = _Builder(operation, seed)
    TIMED[operation.kind](builder)
    graph = onnx.helper.make_graph(
        builder.nodes,
        operation.kind,
        [_value(name, array.shape) for name, array in builder.inputs.items()],
        [_value("out", operation.output)],
        builder.constants,
    )
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10, producer_name="prunekit")
    return model.SerializeToString(), builder.inputs


def _value(name: str, shape: Shape) -> Any:
    import onnx

    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


class _Builder:
    """Collects the nodes of a model."""

    def __init__(self, operation: Operation, seed: int) -> None:
        self.operation = operation
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: Arrays = {}
        self._random = np.random.default_rng(seed)

    def given(self, name: str, shape: Shape) -> str:
        """An input of the model."""
        self.inputs[name] = self._random.standard_normal(shape, dtype=np.float32)
        return name

    def constant(self, name: str, shape: Shape) -> str:
        """A weight."""
        from onnx import numpy_helper

        scale = 1 / np.sqrt(max(1, prod(shape[1:])))
        values = self._random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def number(self, name: str, value: float) -> str:
        """A constant of one number."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.array(value, dtype=np.float32), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """One operator."""
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output


def _convolution(build: _Builder) -> None:
    operation = build.operation
    data, weight, *bias = operation.inputs
    read = [build.given("in", data), build.constant("weight", weight)]
    if bias:
        read.append(build.constant("bias", bias[0]))
    padding = operation.setting("padding")
    build.node(
        "Conv",
        read,
        "out",
        strides=list(operation.setting("stride")),
        pads=[*padding, *padding],
        dilations=list(operation.setting("dilation")),
        group=operation.setting("groups"),
    )


def _linear(build: _Builder) -> None:
    data, weight, *bias = build.operation.inputs
    read = build.given("in", data)
    if len(data) == 2:
        more = [build.constant("bias", bias[0])] if bias else []
        build.node("Gemm", [read, build.constant("weight", weight), *more], "out", transB=1)
        return
    last = "product" if bias else "out"
    build.node("MatMul", [read, build.constant("weight", weight[::-1])], last)
    if bias:
        build.node("Add", [last, build.constant("bias", bias[0])], "out")


def _product(build: _Builder) -> None:
    left, right = build.operation.inputs
    build.node("MatMul", [build.given("left", left), build.given("right", right)], "out")


def _attention(build: _Builder) -> None:
    query, key, value = build.operation.inputs[:3]
    heads = query[:-2]
    given = [
        build.given("query", query),
        build.given("key", (*heads, *key[-2:])),
        build.given("value", (*heads, *value[-2:])),
    ]
    rank = len(query)
    build.node("Transpose", [given[1]], "turned", perm=[*range(rank - 2), rank - 1, rank - 2])
    build.node("Mul", [given[0], build.number("scale", 1 / np.sqrt(query[-1]))], "scaled")
    build.node("MatMul", ["scaled", "turned"], "products")
    build.node("Softmax", ["products"], "weights", axis=-1)
    build.node("MatMul", ["weights", given[2]], "out")


def _nothing(build: _Builder) -> None:
    build.node("Identity", [build.given("in", build.operation.inputs[0])], "out")


TIMED: Mapping[str, Callable[[_Builder], None]] = {
    "convolution": _convolution,
    "linear": _linear,
    "product": _product,
    "attention": _attention,
    "nothing": _nothing,
}
"""Kinds of operations that are timed by themselves: how each is built in ONNX."""


def torch_of(operation: Operation, seed: int = 0) -> tuple[Any, tuple[Any, ...]]:
    """The same as :func:`onnx_of` as a module of PyTorch, with its positional inputs.

    Args:
        operation: of a kind in :data:`TIMED`.
        seed: of the numbers.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=random) for shape in operation.inputs]
    function, weights = _in_torch(operation)

    class Alone(torch.nn.Module):
        """One operation."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(tensors[weights:])

        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            """Compute it."""
            return function(*given, *self.weights)

    return Alone().eval(), tuple(tensors[:weights])


def _in_torch(operation: Operation) -> tuple[Callable[..., Any], int]:
    """The function, and how many of its tensors are no weights."""
    import torch
    from torch.nn import functional as F

    if operation.kind == "convolution":
        rank = len(operation.output) - 2
        convolve = getattr(F, f"conv{rank}d")
        settings = {name: value for name, value in operation.settings if name != "transposed"}
        return lambda *tensors: convolve(*tensors, **settings), 1
    if operation.kind == "linear":
        return F.linear, 1
    if operation.kind == "nothing":
        return lambda value: value, 1
    if operation.kind == "product":
        return torch.matmul, 2
    grouped = operation.inputs[0][-3:-2] != operation.inputs[1][-3:-2]
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped), 3
