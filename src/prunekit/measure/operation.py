"""Operations: what one operator of a model computes, by its shapes alone, and a model of nothing else.

The time of an operation at given widths is measured on the smallest model that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

FED = 4
"""Channels from which the image is made that a convolution is timed on."""

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
    def moved(self) -> int:
        """Numbers that it reads and writes, but for weights of convolutions and linear operators."""
        if self.kind in ("convolution", "linear"):
            return prod(self.inputs[0]) + prod(self.output)
        return self.elements

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

PACE = Operation(
    "convolution",
    ((1, 64, 30, 30), (64, 64, 3, 3)),
    (1, 64, 28, 28),
    (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1)),
)
"""What is timed beside all others, to tell how fast the machine goes at the moment."""


def frame_of(operation: Operation) -> Operation:
    """What is timed along with an operation and is to be taken off: see :func:`_convolution`."""
    if operation.kind != "convolution":
        return NOTHING
    return Operation("frame", operation.inputs[:1], operation.inputs[0])


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
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
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
    """Between a narrow 1x1 convolution and a mean over space.

    Runtimes keep images in blocks of channels between convolutions. Alone, a convolution would pay for taking
    that layout up and leaving it; and one that is too narrow for it would not pay for the change that it
    forces upon its neighbours.
    """
    operation = build.operation
    data, weight, *bias = operation.inputs
    read = [_fed(build, data), build.constant("weight", weight)]
    if bias:
        read.append(build.constant("bias", bias[0]))
    padding = operation.setting("padding")
    build.node(
        "Conv",
        read,
        "convolved",
        strides=list(operation.setting("stride")),
        pads=[*padding, *padding],
        dilations=list(operation.setting("dilation")),
        group=operation.setting("groups"),
    )
    build.node("GlobalAveragePool", ["convolved"], "out")


def _frame(build: _Builder) -> None:
    build.node("GlobalAveragePool", [_fed(build, build.operation.inputs[0])], "out")


def _fed(build: _Builder, data: Shape) -> str:
    """An image that a convolution made."""
    batch, channels, *space = data
    kernel = build.constant("feed", (channels, FED, *(1 for _ in space)))
    return build.node("Conv", [build.given("in", (batch, FED, *space)), kernel], "fed")


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
    "frame": _frame,
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
    given, weights, function = _in_torch(operation)

    class Alone(torch.nn.Module):
        """One operation."""

        def __init__(self) -> None:
            super().__init__()
            drawn = [torch.randn(shape, generator=random) for shape in weights]
            self.weights = torch.nn.ParameterList(drawn)

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            """Compute it."""
            return function(*tensors, *self.weights)

    return Alone().eval(), tuple(torch.randn(shape, generator=random) for shape in given)


def _in_torch(operation: Operation) -> tuple[list[Shape], list[Shape], Callable[..., Any]]:
    """The shapes of inputs and of weights, and the function of both."""
    import torch
    from torch.nn import functional as F

    shapes = list(operation.inputs)
    if operation.kind in ("convolution", "frame"):
        batch, channels, *space = shapes[0]
        convolve = getattr(F, f"conv{len(space)}d")
        axes = tuple(range(2, 2 + len(space)))
        feed = (channels, FED, *(1 for _ in space))
        settings = dict(operation.settings)

        def framed(image: Any, kernel: Any, *weights: Any) -> Any:
            fed = convolve(image, kernel)
            return (convolve(fed, *weights, **settings) if weights else fed).mean(axes)

        return [(batch, FED, *space)], [feed, *shapes[1:]], framed
    if operation.kind == "linear":
        return shapes[:1], shapes[1:], F.linear
    if operation.kind == "product":
        return shapes, [], torch.matmul
    if operation.kind == "nothing":
        return shapes, [], lambda value: value
    grouped = shapes[0][-3:-2] != shapes[1][-3:-2]
    return shapes, [], lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
