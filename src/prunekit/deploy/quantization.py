"""An exported model in int8, quantized after training: weights as they are, ranges from a few inputs."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.deploy.onnx import OnnxExport
from prunekit.errors import ExportError, StorageError
from prunekit.files import file_digest, put_in_place
from prunekit.quiet import overheard

if TYPE_CHECKING:
    import onnx

Arrays = Mapping[str, np.ndarray]

WEIGHTED = ("Conv", "Gemm", "MatMul", "Gather")
"""Operators that have weights: what computes in int8 where floats are between; of a lookup the table."""

FLOAT_AFTER = ("Conv", "Gemm", "MatMul")
"""Those whose results stay floats there."""

WARNINGS, ERRORS = 2, 3
"""From here on ONNX Runtime logs, past Python, in sessions that the quantizer opens: by default, and now."""


def quantize_onnx(export: OnnxExport, calibration: Sequence[Arrays], path: Path | str) -> OnnxExport:
    """Quantize an exported model to int8; the exported file stays as it is.

    Weights become int8 with a scale for each output channel, activations uint8 with ranges that are the
    smallest and largest values on the calibration inputs. In models that mostly convolve all operators
    compute in int8 that can; elsewhere only products with weights do, and their results are floats, because
    between them transformers have a few activations that are far larger than all others. Batch normalization
    is folded in before.

    Source: Jacob et al., 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
    Only Inference, https://arxiv.org/abs/1712.05877, after training; as ``onnxruntime.quantization`` does it
    (static, in the form of ``QuantizeLinear`` and ``DequantizeLinear`` that OpenVINO reads too). Outliers:
    Dettmers et al., 2022, https://arxiv.org/abs/2208.07339.

    Args:
        export: in floating point, with its weights in the same file.
        calibration: inputs of a few calls as :func:`prunekit.deploy.feed` gives them, at least one. A few
            hundred examples where quality counts; speed does not depend on them.
        path: the file, which is there complete or not at all; its directory exists.

    Raises:
        ExportError: no inputs, or they do not fit the model; its weights are in a file of their own; or the
            quantizer refused it.
        StorageError: the file could not be written.
    """
    begin = time.perf_counter()
    if export.weights_path is not None:
        raise ExportError(
            "A model with its weights in a file of their own was to be quantized",
            expected="one file, of less than 2 GB",
            where=export.path,
            remedy="Quantize it with the tools of its runtime",
        )
    path, source = Path(path), Path(export.path)
    if not source.is_file():
        raise ExportError("There is no such file", where=export.path, remedy="Export the model again")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
            written = quantize_graph(source, calibration, Path(directory) / path.name)
            put_in_place(written, path)
    except OSError as error:
        raise StorageError(
            f"The quantized model could not be written: {error}",
            where=str(path),
            remedy="Check that the directory exists, is writable and has space",
        ) from error
    return replace(
        export,
        path=str(path),
        size_bytes=path.stat().st_size,
        sha256=file_digest(path),
        seconds=round(export.seconds + time.perf_counter() - begin, 3),
    )


def quantize_graph(source: Path, calibration: Sequence[Arrays], out: Path, *, fold: bool = True) -> Path:
    """The same for any graph; see :func:`quantize_onnx`.

    Args:
        source: an ONNX file.
        calibration: inputs of a few calls, at least one.
        out: the file to write, in a folder where nothing else is called ``folded.onnx``.
        fold: constants and batch normalization first; else the operators stay what they are.

    Raises:
        ExportError: as there.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not calibration:
        raise ExportError(
            "There are no inputs to find the ranges of activations with",
            expected="the inputs of one call or more, as feed() gives them",
            where="calibration",
        )
    folded = out.with_name("folded.onnx")
    onnxruntime.set_default_logger_severity(ERRORS)
    try:
        with overheard():
            quant_pre_process(source, folded, skip_symbolic_shape=True, skip_optimization=not fold)
            graph = onnx.load(folded)
            quantize_static(
                graph,
                out,
                _Reader(calibration),  # pyright: ignore[reportArgumentType]  # Any class with get_next is one.
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                **({} if _convolves(graph) else _weighted_alone(graph)),
            )
    except OSError:
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
        folded.unlink(missing_ok=True)
    return out


def _convolves(model: onnx.ModelProto) -> bool:
    """Whether most of its products are convolutions."""
    found = Counter(node.op_type for node in model.graph.node)
    return found["Conv"] > found["Gemm"] + found["MatMul"]


def _weighted_alone(model: onnx.ModelProto) -> dict[str, Any]:
    """Settings of the quantizer by which floats stay between products with weights; nodes get names."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
    floats = [
        node.name
        for node in model.graph.node
        if node.op_type in WEIGHTED and not weights.intersection(node.input[:2])
    ]
    return {
        "op_types_to_quantize": list(WEIGHTED),
        "nodes_to_exclude": floats,
        "extra_options": {"OpTypesToExcludeOutputQuantization": list(FLOAT_AFTER)},
    }


class _Reader:
    """Inputs of calls one by one, as the quantizer asks for them."""

    def __init__(self, calibration: Sequence[Arrays]) -> None:
        self._calls = iter(calibration)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The inputs of the next call; None after the last."""
        call = next(self._calls, None)
        return None if call is None else dict(call)
