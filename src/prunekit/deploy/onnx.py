"""A PyTorch model as an ONNX file that takes any batch size."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.deploy.inputs import (
    Inputs,
    batch_size,
    copies,
    doubled,
    has_batch,
    input_names,
    input_tensors,
    on_device,
    output_tensors,
    unique_names,
)
from prunekit.deploy.onnx_file import clean, write
from prunekit.errors import ExportError
from prunekit.files import file_digest
from prunekit.quiet import overheard
from prunekit.workload import device_of, evaluating

OPSET = 20
"""torch 2.13's own default; its operators are written for 18 and converted upwards."""

OPSETS = range(18, 24)
"""What torch 2.13 says it can export to; below 18 its converter gives up without an error."""


@dataclass(frozen=True)
class OnnxExport:
    """An exported model.

    Attributes:
        path: the file.
        opset: version of the ONNX operator set.
        input_names: of the graph, in order.
        input_addresses: where in ``(args, kwargs)`` each input is found, such as ``[0][0]``.
        output_names: of the graph, in order.
        dynamic_batch: the graph takes any batch size.
        batch_size: of the example inputs.
        size_bytes: of the file, and of the file of weights beside it where there is one.
        sha256: of the file.
        weights_path: the file of weights, or None: everything is in one file.
        weights_sha256: of the file of weights, or None.
        seconds: that exporting took.
    """

    path: str
    opset: int
    input_names: tuple[str, ...]
    input_addresses: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_batch: bool
    batch_size: int | None
    size_bytes: int
    sha256: str
    weights_path: str | None
    weights_sha256: str | None
    seconds: float


def export_onnx(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    path: Path | str,
    *,
    opset: int = OPSET,
    dynamic_batch: bool = True,
) -> OnnxExport:
    """Export ``model`` in evaluation mode; it is left as it was found.

    Inputs and outputs are named after ``forward``'s parameters and the outputs' keys, so that a model and
    its pruned version have the same names whatever their classes. The first dimension of every input tensor
    that shares the example's batch size is open, under the name ``batch``.

    Args:
        model: any module; the example inputs are taken to its device.
        args: positional example inputs.
        kwargs: keyword example inputs.
        path: the file, which is there complete or not at all; its directory exists.
        opset: version of the ONNX operator set, in :data:`OPSETS`.
        dynamic_batch: False fixes the example's batch size, for models that accept no other.

    Raises:
        ExportError: the model does not run on the inputs, the exporter refused it, or the batch size
            could not be left open; what the exporter said goes along as a note.
        StorageError: the file could not be written.
    """
    begin = time.perf_counter()
    if opset not in OPSETS:
        raise ExportError(f"Opset {opset} was asked for", expected=f"one from {OPSETS[0]} to {OPSETS[-1]}")
    inputs: Inputs = on_device((tuple(args), dict(kwargs or {})), device_of(model))
    with evaluating(model), torch.no_grad():
        found = _names_of_outputs(model, inputs)
        names = input_names(model, inputs)
        outputs = unique_names([*names, *found])[len(names) :]
        graph = _translate(model, inputs, names, opset=opset, dynamic_batch=dynamic_batch)
    clean(graph, names, outputs)
    _check(graph, model, inputs, opset=opset, dynamic_batch=dynamic_batch)
    file, weights = write(graph, Path(path))
    return OnnxExport(
        path=str(file),
        opset=opset,
        input_names=tuple(names),
        input_addresses=tuple(input_tensors(inputs)),
        output_names=tuple(outputs),
        dynamic_batch=dynamic_batch,
        batch_size=batch_size(inputs),
        size_bytes=sum(part.stat().st_size for part in (file, weights) if part),
        sha256=file_digest(file),
        weights_path=str(weights) if weights else None,
        weights_sha256=file_digest(weights) if weights else None,
        seconds=round(time.perf_counter() - begin, 3),
    )


def feed(
    export: OnnxExport, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """The inputs of a call as the arrays that the exported graph takes, by input name.

    Args:
        export: the exported model.
        args: positional inputs, given as at export: positional stays positional, keyword stays keyword.
        kwargs: keyword inputs, in any order.

    Raises:
        ExportError: an input tensor of the export is missing, or there is one it does not know.
    """
    given = input_tensors((tuple(args), dict(kwargs or {})))
    if set(given) != set(export.input_addresses):
        raise ExportError(
            f"Tensors were given at {sorted(given)} of (args, kwargs)",
            expected=f"tensors at {list(export.input_addresses)}, as in the example inputs of the export",
            where=export.path,
            remedy="Give the inputs as they were given when the model was exported",
        )
    return {
        name: np.require(given[address].detach().cpu().numpy(), requirements="C")
        for name, address in zip(export.input_names, export.input_addresses, strict=True)
    }


class _Flat(nn.Module):
    """The model as the exporter likes it best: tensors in, tensors out, one after another.

    The exporter takes a mapping at the end of ``args`` for keyword inputs and cannot open dimensions of
    inputs in ``**kwargs`` (torch 2.13, ``torch/onnx/_internal/exporter/_compat.py``).
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        leaves, self._structure = pytree.tree_flatten(inputs)
        self._others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        following = iter(tensors)
        leaves = [
            next(following) if is_tensor else other
            for is_tensor, other in zip(self._is_tensor, self._others, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        return tuple(output_tensors(self.model(*args, **kwargs)).values())


def _names_of_outputs(model: nn.Module, inputs: Inputs) -> list[str]:
    """Run the model as it is, which also tells a wrong example input from a fault of the exporter.

    On copies: a cache grows with every call.
    """
    args, kwargs = copies(inputs)
    try:
        outputs = output_tensors(model(*args, **kwargs))
    except Exception as error:  # the user's own code runs here
        raise ExportError(
            f"{type(model).__name__} does not run on the example inputs: {type(error).__name__}: {error}",
            expected="example inputs that its forward takes",
        ) from error
    if not outputs:
        raise ExportError(
            f"{type(model).__name__} gives no tensor",
            expected="a tensor, or a tuple, mapping or dataclass with tensors in it",
        )
    return list(outputs)


def _translate(
    model: nn.Module, inputs: Inputs, names: Sequence[str], *, opset: int, dynamic_batch: bool
) -> ir.Model:
    from prunekit.deploy.translations import remembered_translations  # It loads all of onnxscript.

    if dynamic_batch and batch_size(inputs) == 1:
        inputs = doubled(inputs)  # torch.export takes a dimension of one for a constant.
    tensors = tuple(input_tensors(inputs).values())
    size = batch_size(inputs)
    open_batch = {0: torch.export.Dim.DYNAMIC}
    shapes = tuple(open_batch if has_batch(tensor, size) else None for tensor in tensors)
    said = None
    try:
        with overheard() as said, remembered_translations():
            program = torch.onnx.export(
                _Flat(model, inputs).eval(),
                tensors,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=(shapes,) if dynamic_batch else None,
                verbose=False,
            )
    except Exception as error:  # torch.onnx raises whatever the stages of the exporter raise
        refusal = _refused(model, error, names, dynamic_batch)
        refusal.add_note(f"The exporter said:\n{said.getvalue() if said else ''}")
        raise refusal from error
    assert program is not None
    symbols: dict[str | ir.SymbolicDim, str] = {
        str(value.shape[0]): "batch"
        for value, shape in zip(program.model.graph.inputs, shapes, strict=True)
        if shape and value.shape is not None and isinstance(value.shape[0], ir.SymbolicDim)
    }
    program.rename_axes(symbols)
    return program.model


def _refused(model: nn.Module, error: Exception, names: Sequence[str], dynamic_batch: bool) -> ExportError:
    """One paragraph with the innermost reason."""
    reason: BaseException = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    paragraph = " ".join(str(reason).strip().split("\n\n")[0].split())
    for place, name in enumerate(names):
        paragraph = paragraph.replace(f"inputs['tensors'][{place}]", f"input {name}")
    return ExportError(
        f"torch.onnx cannot export {type(model).__name__}: {type(reason).__name__}: {paragraph}",
        where=_users_line(reason),
        remedy=(
            "If the model takes one batch size only, export it with dynamic_batch=False; otherwise change "
            "what the message names"
            if dynamic_batch
            else "Change what the message names"
        ),
    )


def _users_line(error: BaseException) -> str:
    """The innermost line of code that belongs neither to a package nor to Python, or nothing."""
    mine = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not {"site-packages", "prunekit"} & set(Path(frame.filename).parts)
        and not frame.filename.startswith(("<", sys.base_prefix))
    ]
    return f"{mine[-1].filename}:{mine[-1].lineno}: {mine[-1].line}" if mine else ""


def _check(model: ir.Model, module: nn.Module, inputs: Inputs, *, opset: int, dynamic_batch: bool) -> None:
    reached = model.opset_imports.get("")
    if reached != opset:
        raise ExportError(
            f"{type(module).__name__} could only be exported to opset {reached}",
            expected=f"opset {opset}",
            remedy=f"Ask for opset {reached}",
        )
    size = batch_size(inputs)
    for value, tensor in zip(model.graph.inputs, input_tensors(inputs).values(), strict=True):
        closed = value.shape is None or isinstance(value.shape[0], int) if tensor.ndim else False
        if dynamic_batch and has_batch(tensor, size) and closed:
            raise ExportError(
                f"The exporter fixed the batch size of input {value.name!r}",
                expected="a model that takes any batch size",
                remedy="Export it with dynamic_batch=False",
            )
