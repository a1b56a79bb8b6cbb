"""A model of one operation computes the same in ONNX as in PyTorch, and as much as its MACs say.

Oracles: the ONNX reference evaluator beside torch's functions on the same numbers; torch.utils.flop_counter.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunekit.measure.operation import NOTHING, TIMED, Operation, frame_of, onnx_of, torch_of


def convolution(batch, channels, size, outputs, kernel, *, groups=1, bias=True, **given) -> Operation:
    rank = len(size)
    settings = {"stride": (1,) * rank, "padding": (0,) * rank, "dilation": (1,) * rank, **given}
    reach = [d * (k - 1) for d, k in zip(settings["dilation"], kernel, strict=True)]
    places = tuple(
        (width + 2 * pad - far - 1) // step + 1
        for width, pad, far, step in zip(size, settings["padding"], reach, settings["stride"], strict=True)
    )
    inputs = [(batch, channels, *size), (outputs, channels // groups, *kernel)]
    inputs += [(outputs,)] if bias else []
    return Operation(
        "convolution",
        tuple(inputs),
        (batch, outputs, *places),
        (*settings.items(), ("groups", groups)),
    )


def linear(shape, outputs, *, bias=True) -> Operation:
    inputs = (shape, (outputs, shape[-1]), *([(outputs,)] if bias else []))
    return Operation("linear", inputs, (*shape[:-1], outputs))


def attention(query, key, value) -> Operation:
    return Operation("attention", (query, key, value), (*query[:-1], value[-1]))


OPERATIONS = {
    "convolution": convolution(2, 3, (8, 8), 5, (3, 3), padding=(1, 1)),
    "pointwise": convolution(1, 6, (4, 4), 8, (1, 1), bias=False),
    "stride": convolution(1, 4, (9, 7), 6, (3, 2), stride=(2, 3)),
    "dilated": convolution(1, 4, (9, 9), 6, (3, 3), dilation=(2, 3), padding=(2, 1)),
    "grouped": convolution(2, 6, (5, 5), 9, (3, 3), groups=3),
    "depthwise": convolution(2, 6, (5, 5), 6, (3, 3), groups=6, padding=(1, 1)),
    "depthwise with multiplier": convolution(1, 4, (5, 5), 8, (3, 3), groups=4),
    "one dimension": convolution(2, 4, (11,), 6, (3,), dilation=(2,), stride=(2,)),
    "three dimensions": convolution(1, 2, (4, 5, 6), 3, (2, 3, 3), padding=(0, 1, 1)),
    "linear": linear((4, 6), 5),
    "linear without bias": linear((4, 6), 5, bias=False),
    "linear over tokens": linear((2, 7, 6), 5),
    "linear over tokens without bias": linear((2, 3, 4, 6), 5, bias=False),
    "product": Operation("product", ((2, 3, 4, 5), (2, 3, 5, 6)), (2, 3, 4, 6)),
    "product of matrices": Operation("product", ((4, 5), (5, 6)), (4, 6)),
    "product, one side for all": Operation("product", ((2, 3, 4, 5), (5, 6)), (2, 3, 4, 6)),
    "attention": attention((2, 4, 7, 8), (2, 4, 7, 8), (2, 4, 7, 8)),
    "cross attention": attention((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6)),
    "attention in three dimensions": attention((4, 7, 8), (4, 7, 8), (4, 7, 8)),
    "grouped-query attention": attention((2, 6, 7, 8), (2, 2, 7, 8), (2, 2, 7, 8)),
    "multi-query attention": attention((2, 6, 7, 8), (2, 1, 7, 8), (2, 1, 7, 8)),
    "frame": frame_of(convolution(2, 3, (8, 8), 5, (3, 3))),
    "frame in three dimensions": frame_of(convolution(1, 2, (4, 5, 6), 3, (2, 3, 3))),
    "nothing": NOTHING,
}


WEIGHTS = ("feed", "weight", "bias")


@pytest.fixture(params=OPERATIONS, ids=str)
def operation(request) -> Operation:
    return OPERATIONS[request.param]


def as_given(operation: Operation, model: onnx.ModelProto, tensors: list[torch.Tensor]):
    """The tensors of the torch module put into the ONNX model: its weights, and its inputs by name."""
    names = [value.name for value in model.graph.input]
    inputs, weights = tensors[: len(names)], tensors[len(names) :]
    held = sorted(
        (constant for constant in model.graph.initializer if constant.name in WEIGHTS),
        key=lambda constant: WEIGHTS.index(constant.name),
    )
    for constant, weight in zip(held, weights, strict=True):
        values = weight.detach().numpy()
        turned = operation.kind == "linear" and constant.name == "weight" and len(operation.inputs[0]) > 2
        constant.CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(values.T if turned else values), constant.name)
        )
    feed = {}
    for value, tensor in zip(model.graph.input, inputs, strict=True):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if list(tensor.shape) != shape:  # Heads that several query heads share are repeated in ONNX.
            tensor = tensor.repeat_interleave(shape[-3] // tensor.shape[-3], -3)
        feed[value.name] = tensor.numpy()
    return feed


def test_every_kind_is_tried():
    assert {operation.kind for operation in OPERATIONS.values()} == set(TIMED)


def test_onnx_computes_what_torch_does(operation):
    content, made = onnx_of(operation)
    model = onnx.load_from_string(content)
    assert {name: array.shape for name, array in made.items()} == {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }
    module, args = torch_of(operation)
    feed = as_given(operation, model, [*args, *module.weights])
    with torch.no_grad():
        expected = module(*args).numpy()
    found = ReferenceEvaluator(model).run(None, feed)[0]
    if operation.kind in ("convolution", "frame"):  # Of these the mean over space is given.
        assert expected.shape == operation.output[:2]
        found = found.reshape(expected.shape)
    else:
        assert expected.shape == operation.output
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def counted_macs(operation: Operation) -> int:
    module, args = torch_of(operation)
    spelt_out = sdpa_kernel(SDPBackend.MATH)  # The counter knows not all of the others.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), spelt_out:
        module(*args)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "name", [name for name, operation in OPERATIONS.items() if operation.kind != "frame"]
)
def test_macs_are_what_torch_counts_beside_the_frame(name):
    operation = OPERATIONS[name]
    assert operation.macs == counted_macs(operation) - counted_macs(frame_of(operation))


def test_numbers_follow_from_the_seed(operation):
    (one, inputs), (same, again), (_, other) = (onnx_of(operation, seed) for seed in (3, 3, 4))
    assert one == same
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, again[name])
        assert (array != other[name]).any()
    module, args = torch_of(operation, 3)
    repeated, args_again = torch_of(operation, 3)
    tensors, others = [*args, *module.weights], [*args_again, *repeated.weights]
    assert all(torch.equal(one, two) for one, two in zip(tensors, others, strict=True))


def test_equal_operations_are_one_key():
    assert linear((4, 6), 5) == linear((4, 6), 5)
    assert len({linear((4, 6), 5), linear((4, 6), 5), linear((4, 6), 4)}) == 2
    assert str(linear((4, 6), 5)) == "linear(4x6, 5x6, 5)"


def test_elements_are_what_is_read_and_written():
    assert linear((4, 6), 5).elements == 24 + 30 + 5 + 20
    assert Operation("lookup", ((1000, 8), (3,)), (3, 8)).elements == 24
    assert not Operation("lookup", ((1000, 8), (3,)), (3, 8)).is_timed
