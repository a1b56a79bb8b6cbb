"""An exported model in int8, quantized after training: weights as they are, ranges from a few inputs."""

from __future__ import annotations

import io
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prunekit.deploy.onnx import OnnxExport
from prunekit.errors import ExportError, StorageError
from prunekit.files import file_digest, put_in_place
from prunekit.measure.environment import instruction_sets
from prunekit.quiet import overheard

if TYPE_CHECKING:
    import onnx

Arrays = Mapping[str, np.ndarray]

Scheme = Literal["all", "weighted"]
"""What computes in int8: every operator that can; or products with weights alone, and floats between them."""

VERSION = 1
"""Of what is done here; with that of onnxruntime it decides what a quantized model is."""

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = (*CONVOLUTIONS, "Gemm", "MatMul")
LOOKUP = "Gather"

MARKS = ("QuantizeLinear", "DequantizeLinear")
"""Operators that stand around what computes in int8."""

ADDED = ("_quantized", "_scale", "_zero_point")
"""Ends of the names that the quantizer gives to what it adds."""

WARNINGS, ERRORS = 2, 3
"""From here on ONNX Runtime logs, past Python, in sessions that the quantizer opens: by default, and now."""


def quantize_onnx(
    export: OnnxExport,
    calibration: Sequence[Arrays],
    path: Path | str,
    *,
    scheme: Scheme | None = None,
    seven_bits: bool | None = None,
) -> OnnxExport:
    """Quantize an exported model to int8; the exported file stays as it is.

    Weights become int8 with a scale for each output channel, tables of lookups 8 bits with one, activations
    uint8 with ranges that are the smallest and largest values on the calibration inputs. Batch normalization
    is folded in before. A table that is looked up in and multiplied with, as tied embeddings are, is there
    twice: in floats and in int8. ONNX Runtime's default log level is the usual one (warnings) afterwards.

    Source: Jacob et al., 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
    Only Inference, https://arxiv.org/abs/1712.05877, after training; as ``onnxruntime.quantization`` does it
    (static, in the form of ``QuantizeLinear`` and ``DequantizeLinear`` that OpenVINO reads too).

    Args:
        export: in floating point, with its weights in the same file.
        calibration: inputs of a few calls as :func:`prunekit.deploy.feed` gives them, at least one. A few
            hundred examples where quality counts; speed does not depend on them.
        path: the file, which is there complete or not at all; its directory exists.
        scheme: ``all`` or ``weighted``. Default ``all`` for models most of whose products are convolutions.
            Transformers have a few activations that are far larger than all others (Dettmers et al., 2022,
            https://arxiv.org/abs/2208.07339), which ``weighted`` leaves floats where they are not multiplied
            with weights.
        seven_bits: weights have one bit less, for x86 processors whose sums of products saturate. Default:
            where this processor is one (x86 without VNNI).

    Raises:
        ExportError: no inputs, or they do not fit the model; its weights are in a file of their own; it has
            nothing that computes in int8, or names that the quantizer gives; or the quantizer refused it.
        StorageError: the file could not be written.
    """
    begin = time.perf_counter()
    path, source = Path(path), Path(export.path)
    if export.weights_path is not None:
        raise ExportError(
            "A model with its weights in a file of their own was to be quantized",
            expected="one file, of less than 2 GB",
            where=export.path,
            remedy="Quantize it with the tools of its runtime",
        )
    if not source.is_file():
        raise ExportError("There is no such file", where=export.path, remedy="Export the model again")
    if path.resolve() == source.resolve():
        raise ExportError(
            "The quantized model was to have the name of its source", expected="another", where=str(path)
        )
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
            written = Path(directory) / path.name
            if not quantize_graph(source, calibration, written, scheme=scheme, seven_bits=seven_bits):
                raise ExportError(
                    "Nothing in the model computes in int8",
                    expected="a convolution or a product with weights",
                    where=export.path,
                    remedy="Stay with fp32 or bf16",
                )
            put_in_place(written, path)
    except OSError as error:
        raise StorageError(
            f"The quantized model could not be written: {error}",
            where=str(path),
            remedy="Check that the directory exists, is writable and has space, the temporary one too",
        ) from error
    return replace(
        export,
        path=str(path),
        size_bytes=path.stat().st_size,
        sha256=file_digest(path),
        seconds=round(export.seconds + time.perf_counter() - begin, 3),
    )


def quantize_graph(
    source: Path,
    calibration: Sequence[Arrays],
    out: Path,
    *,
    scheme: Scheme | None = None,
    seven_bits: bool | None = None,
    fold: bool = True,
) -> bool:
    """The same for any graph, whether anything of it computes in int8 or not; see :func:`quantize_onnx`.

    Args:
        source: an ONNX file.
        calibration: inputs of a few calls, at least one.
        out: the file to write, in a directory of the caller's own.
        scheme: as there.
        seven_bits: as there.
        fold: constants and batch normalization first; else the operators stay what they are.

    Returns:
        Whether anything of it does.

    Raises:
        ExportError: as there.
        OSError: a file could not be written.
    """
    import onnxruntime

    if not calibration:
        raise ExportError(
            "There are no inputs to find the ranges of activations with",
            expected="the inputs of one call or more, as feed() gives them",
            where="calibration",
        )
    seven_bits = _saturates() if seven_bits is None else seven_bits
    onnxruntime.set_default_logger_severity(ERRORS)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent) as directory, overheard("root") as said:
            prepared = Path(directory) / "prepared.onnx"
            graph = _prepared(source, prepared, said, fold=fold)
            return _quantize(graph, prepared, calibration, out, scheme or _scheme_of(graph), seven_bits)
    except (OSError, ExportError):
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(
            f"The model cannot be quantized: {reason}",
            expected="a graph, and inputs of a few calls by the names and shapes of its inputs",
            where=str(source),
            remedy="Stay with fp32 or bf16, or quantize it with the tools of its runtime",
        ) from error
    finally:
        onnxruntime.set_default_logger_severity(WARNINGS)


def _prepared(source: Path, path: Path, said: io.StringIO, *, fold: bool) -> onnx.ModelProto:
    """The graph with shapes and a name for every node, also written to ``path``.

    Raises:
        ExportError: it cannot be folded as weights are not float32, or tensors have names that the quantizer
            gives.
        ValueError: it cannot be folded for another reason.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(source, path, skip_symbolic_shape=True, skip_optimization=not fold)
    if "Optimization Failed" in said.getvalue():  # It says so, and goes on.
        others = _other_floats(onnx.load(source))
        if others:
            raise ExportError(
                f"There are weights in {', '.join(others)}",
                expected="float32, which int8 is made from",
                where=str(source),
                remedy="Export the model in float32: model.float()",
            )
        raise ValueError(f"ONNX Runtime cannot optimize it: {said.getvalue().strip().splitlines()[-1]}")
    graph = onnx.load(path)
    for place, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
    names = _read(graph.graph) | {name for node in graph.graph.node for name in node.output}
    taken = sorted(name + end for name in names for end in ADDED if name + end in names)
    if taken:
        raise ExportError(
            f"A tensor is called {taken[0]!r}, which is what the quantizer would call one",
            expected=f"no parameter or buffer that is called as another with {', '.join(ADDED)} behind it",
            where=str(source),
            remedy="Rename it",
        )
    onnx.save(graph, path)
    return graph


def _quantize(
    graph: onnx.ModelProto,
    prepared: Path,
    calibration: Sequence[Arrays],
    out: Path,
    scheme: Scheme,
    seven_bits: bool,
) -> bool:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    quantize_static(
        prepared,
        out,
        _Reader(calibration),  # pyright: ignore[reportArgumentType]  # Any class with get_next is one.
        per_channel=True,
        reduce_range=seven_bits,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        **(_weighted_alone(graph) if scheme == "weighted" else {}),
    )
    quantized = onnx.load(out)
    if scheme == "weighted":
        _leave_floats(quantized, graph, _weighted(graph))
        onnx.save(quantized, out)
    return any(node.op_type in MARKS for node in quantized.graph.node)


def quantizer_version() -> str:
    """What decides, beside the model and its inputs, what a quantized model is on this machine."""
    import onnxruntime

    bits = 7 if _saturates() else 8
    return f"{VERSION}, onnxruntime {onnxruntime.__version__}, {bits} bits"


def _saturates() -> bool:
    """Whether this processor adds products of int8 to 16 bits: x86 without VNNI."""
    found = instruction_sets()
    return "avx2" in found and not any("vnni" in name for name in found)


def _scheme_of(model: onnx.ModelProto) -> Scheme:
    found = Counter(node.op_type for node in model.graph.node)
    convolutions = sum(found[kind] for kind in CONVOLUTIONS)
    return "all" if 2 * convolutions > sum(found[kind] for kind in PRODUCTS) else "weighted"


def _weighted(model: onnx.ModelProto) -> set[str]:
    """Names of the products with weights, and of lookups in tables that no product reads too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    products = [
        node for node in model.graph.node if node.op_type in PRODUCTS and weights.intersection(node.input[:2])
    ]
    read = {name for node in products for name in node.input}
    lookups = [
        node
        for node in model.graph.node
        if node.op_type == LOOKUP and node.input[0] in weights and node.input[0] not in read
    ]
    return {node.name for node in (*products, *lookups)}


def _weighted_alone(model: onnx.ModelProto) -> dict[str, Any]:
    """Settings of the quantizer by which only these compute in int8, and give floats."""
    kinds, chosen = (*PRODUCTS, LOOKUP), _weighted(model)
    return {
        "op_types_to_quantize": list(kinds),
        "nodes_to_exclude": [
            node.name for node in model.graph.node if node.op_type in kinds and node.name not in chosen
        ],
        "extra_options": {"OpTypesToExcludeOutputQuantization": list(kinds)},
    }


def _leave_floats(model: onnx.ModelProto, source: onnx.ModelProto, chosen: set[str]) -> None:
    """Let all but the chosen nodes read floats: the quantizer gives every reader the rounded ones."""
    nodes, weights = model.graph.node, {tensor.name: tensor for tensor in source.graph.initializer}
    floats = {node.output[0]: node.input[0] for node in nodes if node.op_type == MARKS[0]}
    floats |= {name + ADDED[0]: name for name in weights}
    rounded = {
        node.output[0]: floats[node.input[0]]
        for node in nodes
        if node.op_type == MARKS[1] and node.input[0] in floats
    }
    for node in nodes:
        if node.op_type not in MARKS and node.name not in chosen:
            for place, name in enumerate(node.input):
                node.input[place] = rounded.get(name, name)
    there = {tensor.name for tensor in model.graph.initializer} | {node.output[0] for node in nodes}
    again = sorted((_read(model.graph) & set(weights)) - there)
    model.graph.initializer.extend(weights[name] for name in again)
    for node in [node for node in nodes if node.op_type == LOOKUP and node.name in chosen]:
        _look_up_rounded(model, node)
    _drop_unread(model)


def _look_up_rounded(model: onnx.ModelProto, lookup: onnx.NodeProto) -> None:
    """Look up in int8 and make floats of what is found: runtimes would make floats of the whole table."""
    import onnx

    nodes = model.graph.node
    table = next((node for node in nodes if node.output[0] == lookup.input[0]), None)
    if table is None:  # A table of integers, which stays what it is.
        return
    found = lookup.output[0]
    lookup.input[0], lookup.output[0] = table.input[0], f"{found}_rounded"
    floats = onnx.helper.make_node(
        MARKS[1], [lookup.output[0], *table.input[1:]], [found], f"{lookup.name}_floats"
    )
    nodes.insert([*nodes].index(lookup) + 1, floats)


def _drop_unread(model: onnx.ModelProto) -> None:
    """Take out what only rounds and nobody reads, with its constants."""
    nodes, constants = model.graph.node, model.graph.initializer
    idle = [*nodes]
    while idle:
        read = _read(model.graph)
        idle = [node for node in nodes if node.op_type in MARKS and node.output[0] not in read]
        for node in idle:
            nodes.remove(node)
    read = _read(model.graph)
    for tensor in [tensor for tensor in constants if tensor.name not in read]:
        constants.remove(tensor)


def _other_floats(model: onnx.ModelProto) -> list[str]:
    """Types of the tables and matrices that are floats and not float32."""
    import onnx

    names = {
        onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        for tensor in model.graph.initializer
        if len(tensor.dims) > 1
    }
    return sorted(name for name in names if ("float" in name and name != "float") or name == "double")


def _read(graph: onnx.GraphProto) -> set[str]:
    """Names of the tensors that a node reads, in branches and loops too, or the graph gives."""
    found = {value.name for value in graph.output}
    for node in graph.node:
        found |= set(node.input)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found |= _read(inner)
    return found


class _Reader:
    """Inputs of calls one by one, as the quantizer asks for them."""

    def __init__(self, calibration: Sequence[Arrays]) -> None:
        self._calls = iter(calibration)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The inputs of the next call; None after the last."""
        call = next(self._calls, None)
        return None if call is None else dict(call)
