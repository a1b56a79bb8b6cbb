"""An exported model in the place of its PyTorch model, so that what is evaluated is what ships."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.deploy.inputs import Inputs, batch_size, copies, doubled, on_device
from prunekit.deploy.onnx import OnnxExport, feed
from prunekit.errors import ExportError
from prunekit.measure import Target, open_target
from prunekit.measure.batches import Compiled
from prunekit.workload import device_of, evaluating


class Served(nn.Module):
    """A module whose answers come from a runtime.

    It takes the inputs of the PyTorch model and gives its outputs, on the CPU: tensors in the same structure
    and of the same types. An exported graph gives nothing else, so that what is not a tensor has to be the
    same for every batch.

    Args:
        export: the file.
        model: in PyTorch; run on the example once as it is and once with every input twice, and not kept.
        example: ``(args, kwargs)`` as at export.
        target: what the file runs on; its batch and sequence are those of each call.

    Raises:
        ExportError: what the model gives beside tensors depends on the batch.
        MeasurementError: this machine does not have the target, or the runtime refuses the file.
    """

    def __init__(self, export: OnnxExport, model: nn.Module, example: Inputs, target: Target) -> None:
        super().__init__()
        self._like, other = (_outputs(model, inputs) for inputs in (example, doubled(example)))
        if export.dynamic_batch and _constants(self._like) != _constants(other):
            raise ExportError(
                f"{type(model).__name__} gives {_constants(self._like)} beside its tensors, and for a batch "
                f"twice as large {_constants(other)}",
                expected="tensors, and what is the same for every batch: a graph gives tensors alone",
                where=export.path,
                remedy="Let the model give tensors, and count examples in the workload's evidence",
            )
        self._export = export
        there = replace(target, batch=batch_size(example) or 1, sequence=None)
        self._runner: Any = open_target(there, Path(export.path), feed(export, *example))
        self._shapes = _shapes(self._runner.inputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of one call; shapes other than those of the call before may take compiling.

        Raises:
            ExportError: the inputs are not those of the export.
            MeasurementError: the runtime does not run on them.
        """
        arrays = feed(self._export, args, kwargs)
        if _shapes(arrays) != self._shapes and isinstance(self._runner, Compiled):
            self._runner = self._runner.compiled_for(arrays)
        self._shapes = _shapes(arrays)
        values = self._runner.outputs(arrays).values()
        return _filled(self._like, map(torch.from_numpy, values))


def _outputs(model: nn.Module, inputs: Inputs) -> Any:
    args, kwargs = copies(on_device(inputs, device_of(model)))
    with evaluating(model), torch.no_grad():
        return model(*args, **kwargs)


def _constants(outputs: Any) -> list[Any]:
    """The numbers and words among the outputs."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, int | float | str)]


def _filled(like: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with these tensors in the places of its own, in the order of ``output_tensors``."""
    if isinstance(like, Tensor):
        return next(tensors).to(like.dtype)
    leaves, structure = pytree.tree_flatten(like)
    if not structure.is_leaf():
        return pytree.tree_unflatten([_filled(leaf, tensors) for leaf in leaves], structure)
    if is_dataclass(like) and not isinstance(like, type):
        filled = copy.copy(like)
        for field in fields(like):  # Past what a frozen or a derived field would refuse.
            object.__setattr__(filled, field.name, _filled(getattr(like, field.name), tensors))
        return filled
    return like


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
