"""The rig: one target, the inputs that models are timed on there, and a place for exported models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.deploy import export_onnx, feed
from prunekit.errors import MeasurementError
from prunekit.graph import Graph
from prunekit.measure import RUNTIMES, Target, check_target, open_target
from prunekit.measure.operation import Operation, onnx_of, torch_of
from prunekit.measure.runtimes import TargetRunner

Export = Callable[[nn.Module, str], Any]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Rig:
    """Where models are timed.

    Attributes:
        target: runtime, threads, batch and precision.
        inputs: ``(args, kwargs)`` with as many examples as the target's batch.
        example: ``(args, kwargs)`` as the graph was traced with; what models are exported with.
        folder: for exported models and operations; they are its user's to remove.
        dynamic_batch: models take any batch size, so that one export serves every batch.
    """

    target: Target
    inputs: Inputs
    example: Inputs
    folder: Path
    dynamic_batch: bool = True
    _exports: dict[str, Any] = field(default_factory=dict)

    def open(self, module: nn.Module, name: str) -> TargetRunner:
        """Open a model on the target; for a runtime that takes files it is exported first, once by name."""
        return self.open_artifact(self.artifact(module, name))

    def artifact(self, module: nn.Module, name: str) -> Any:
        """What the runtime opens: the module, or what it was exported to."""
        if RUNTIMES[self.target.runtime].takes != "file":
            return module.eval()
        if name not in self._exports:
            args, kwargs = self.example
            self._exports[name] = export_onnx(
                module, args, kwargs, self.folder / f"{name}.onnx", dynamic_batch=self.dynamic_batch
            )
        return self._exports[name]

    def open_artifact(self, artifact: Any) -> TargetRunner:
        """Open what :meth:`artifact` gave."""
        if isinstance(artifact, nn.Module):
            return open_target(self.target, artifact, self.inputs)
        args, kwargs = self.inputs
        return open_target(self.target, Path(artifact.path), feed(artifact, args, kwargs))

    def open_operation(self, operation: Operation) -> TargetRunner:
        """Open a model that is one operation alone."""
        if RUNTIMES[self.target.runtime].takes != "file":
            module, args = torch_of(operation)
            return open_target(self.target, module, (args, {}))
        model, inputs = onnx_of(operation)
        path = self.folder / "operation.onnx"
        path.write_bytes(model)
        return open_target(self.target, path, inputs)


def rig_for(graph: Graph, target: Target, folder: Path) -> Rig:
    """Make the rig for a traced model.

    Args:
        graph: of the model; its example inputs are repeated or cut to the target's batch.
        target: where models are timed.
        folder: exists, and has room for a few exported models.

    Raises:
        MeasurementError: this machine does not have the target; or the model takes one batch size only, and
            the target has another.
    """
    check_target(target)
    example = (tuple(graph.args), dict(graph.kwargs))
    if not graph.batch_is_open and target.batch != graph.batch_size:
        raise MeasurementError(
            f"The target has a batch of {target.batch}, and the model takes {graph.batch_size} only",
            expected=f"a batch of {graph.batch_size}",
            where=str(target),
            remedy="Trace the model with the batch of the target, or let it take any batch",
        )
    inputs = _with_batch(example, graph.open_inputs, target.batch) if graph.batch_is_open else example
    # The module of a target runs where the graph was traced; its device is the target's to choose.
    return Rig(target, inputs, example, folder, graph.batch_is_open)


def _with_batch(inputs: Inputs, is_open: tuple[bool, ...], batch: int) -> Inputs:
    leaves, structure = pytree.tree_flatten(inputs)
    sized = [
        _repeated(leaf, batch) if opened and isinstance(leaf, Tensor) else leaf
        for leaf, opened in zip(leaves, is_open, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(sized, structure)
    return args, kwargs


def _repeated(tensor: Tensor, batch: int) -> Tensor:
    """The first examples, from the first one again where there are too few."""
    return tensor[torch.arange(batch, device=tensor.device) % len(tensor)]
