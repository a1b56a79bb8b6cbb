"""Recurrent layers: LSTM, GRU and plain ones, of any depth and direction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.fx import Node

from prunekit.graph.atoms import Dim, Dims, length
from prunekit.graph.call import Call
from prunekit.graph.operator import Operator
from prunekit.types import IntArray

GATES = {"aten.lstm": 4, "aten.gru": 3, "aten.rnn_tanh": 1, "aten.rnn_relu": 1}
"""Matrices stacked in the rows of each weight."""


def recurrent(call: Call) -> tuple[Dims, ...] | None:
    """Units of all layers and directions stand together, because one state tensor holds them all.

    Weights are ``[gates * hidden, in]`` and ``[gates * hidden, hidden]``; the output carries the units of
    each direction one after the other. Removing a unit equals zeroing its rows: from a state of zero its
    candidate stays ``tanh(0) = 0``, whatever the gates say.
    """
    if "data" in call.arguments:
        call.refusal = "it runs over packed sequences"
        return None
    states: list[Node] = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    size = length(call.dims(states[0])[-1])
    if any(length(call.dims(state)[-1]) != size for state in states):
        call.refusal = "its outputs are projected"
        return None
    unit = call.atoms.fresh(size)
    for state in states:
        call.unify(unit, call.dims(state)[-1])
    source = call.dims("input")
    batch_first = bool(call["batch_first"])
    call.freeze([source[1 if batch_first and len(source) == 3 else 0]], "it is walked step by step")
    directions = 2 if call["bidirectional"] else 1
    output: Dim = np.tile(unit, directions)
    for position, weights in enumerate(_layers(call, directions)):
        arriving = source[-1] if position < directions else output
        _matrices(call, weights, unit, arriving)
    return ((*source[:-1], output), *((*call.dims(state)[:-1], unit) for state in states))


def _layers(call: Call, directions: int) -> Iterator[list[Node]]:
    """The parameters of one direction of one layer after the other."""
    count = len(call["params"]) // (call["num_layers"] * directions)
    for start in range(0, len(call["params"]), count):
        yield call["params"][start : start + count]


def _matrices(call: Call, weights: list[Node], unit: IntArray, arriving: Dim) -> None:
    """The first matrix reads what arrives, the second the state; the rest are biases."""
    rows = np.tile(unit, GATES[call.operator])
    for position, weight in enumerate(weights):
        dims = call.dims(weight)
        call.unify(dims[0], rows)
        if len(dims) == 2:
            call.produces(dims[0])
            call.contract(arriving if position == 0 else unit, dims[1], weight=dims[1])


OPERATORS: dict[str, Operator] = dict.fromkeys(GATES, Operator(recurrent))
