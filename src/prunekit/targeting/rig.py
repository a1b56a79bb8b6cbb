"""The rig: one target, the inputs that models are timed on there, and a place for exported models."""

from __future__ import annotations

import copy
import gc
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.deploy import OnnxExport, Scheme, export_onnx, feed, quantize_onnx
from prunekit.deploy.quantization import quantize_graph, quantizer_version
from prunekit.errors import MeasurementError
from prunekit.files import content_digest, file_digest, write_atomically
from prunekit.graph import Graph, Groups
from prunekit.graph.nodes import operator_name
from prunekit.measure import RUNTIMES, Target, check_target, open_target, peak_memory
from prunekit.measure.macs import MACS
from prunekit.measure.operation import Operation, onnx_of, torch_of
from prunekit.measure.priority import real_time
from prunekit.measure.runtimes import NodeTime, TargetRunner
from prunekit.surgery.carried import narrowed_inputs
from prunekit.targeting.timing import TIMED_SECONDS
from prunekit.types import KeepMask

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

PROFILED_SECONDS = 3.0
"""That the operators of a model are timed for in it, at most."""


@dataclass(frozen=True, eq=False)
class Rig:
    """Where models are timed.

    Attributes:
        target: runtime, threads, batch and precision.
        inputs: ``(args, kwargs)`` with as many examples as the target's batch.
        example: ``(args, kwargs)`` as the graph was traced with; what models are exported with.
        folder: for exported models of this one dense model; they are found again by name, and are its
            user's to remove.
        dynamic_batch: models take any batch size, so that one export serves every batch.
        of: digest of the dense model, so that nothing of another one is found in the folder.
        real_time: time with real-time scheduling where the process may
            (:func:`prunekit.measure.priority.real_time`), for machines that others use too.
        seconds: that timing a model beside the dense one takes at least.
        scheme: of quantization, for targets in int8; one for the model, its operations and what it becomes.
    """

    target: Target
    inputs: Inputs
    example: Inputs
    folder: Path
    dynamic_batch: bool = True
    of: str = ""
    real_time: bool = False
    seconds: float = TIMED_SECONDS
    scheme: Scheme = "weighted"
    _exports: dict[str, OnnxExport] = field(default_factory=dict)

    def quietly(self) -> AbstractContextManager[bool]:
        """Around whatever is timed, opening included: threads are scheduled as where they were begun."""
        return real_time(self.real_time)

    @property
    def batch(self) -> int | None:
        """Examples in a call; None where the model takes one size only, that of the trace."""
        return self.target.batch if self.dynamic_batch else None

    def fitted(self, groups: Groups, keep: KeepMask) -> Rig:
        """The same for a smaller model: inputs that shrink with the model are as that model takes them.

        Args:
            groups: of the dense model, in whose rig this is asked.
            keep: what the smaller model keeps.
        """
        if not groups.inputs:
            return self
        inputs, example = (narrowed_inputs(groups, keep, given) for given in (self.inputs, self.example))
        return replace(self, inputs=inputs, example=example)

    def artifact(self, module: nn.Module, name: str) -> Any:
        """What the runtime opens: a copy of the module, or what it was exported to, once by name.

        For a target in int8 that is quantized, with ranges from the example inputs.
        """
        gc.collect()  # Pruned graphs are cycles that hold weights: those before go first.
        if RUNTIMES[self.target.runtime].takes != "file":
            return copy.deepcopy(module).eval()
        name = f"{self.of[:12]}-{name}" if self.of else name
        return self._int8(module, name) if self.target.precision == "int8" else self._floats(module, name)

    def _floats(self, module: nn.Module, name: str) -> OnnxExport:
        args, kwargs = self.example
        return self._once(name, partial(export_onnx, module, args, kwargs, dynamic_batch=self.dynamic_batch))

    def _int8(self, module: nn.Module, name: str) -> OnnxExport:
        floats = self._floats(module, name)
        made_by = content_digest(json.dumps([quantizer_version(), self.scheme, floats.sha256]).encode())
        calibration = [feed(floats, *self.example)]
        quantize = partial(quantize_onnx, floats, calibration, scheme=self.scheme)
        return self._once(f"{name}.int8-{made_by[:8]}", quantize)

    def _once(self, name: str, make: Callable[..., OnnxExport]) -> OnnxExport:
        """Found in the folder under that name, or made at ``path=`` and recorded there."""
        found = self._exports.get(name) or self._exported(name)
        if found is None:
            found = make(path=self.folder / f"{name}.onnx")
            write_atomically(self.folder / f"{name}.json", json.dumps(asdict(found)).encode())
        self._exports[name] = found
        return found

    def _exported(self, name: str) -> OnnxExport | None:
        """What the same folder holds under that name, where it is as it was written."""
        try:
            content = json.loads((self.folder / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        known = {field.name for field in fields(OnnxExport)}
        if not isinstance(content, dict) or set(content) != known:
            return None
        path = Path(content["path"])
        if not path.is_file() or file_digest(path) != content["sha256"]:
            return None
        return OnnxExport(**{key: tupled(value) for key, value in content.items()})

    def open_artifact(self, artifact: Any) -> TargetRunner:
        """Open what :meth:`artifact` gave."""
        if isinstance(artifact, nn.Module):
            return open_target(self.target, artifact, self.inputs)
        args, kwargs = self.inputs
        return open_target(self.target, Path(artifact.path), feed(artifact, args, kwargs))

    def node_times(self, artifact: Any) -> tuple[NodeTime, ...]:
        """What the operators take in what was exported, :meth:`quietly`; nothing where no runtime tells."""
        profile = RUNTIMES[self.target.runtime].profile
        if profile is None or self.target.precision == "int8":  # Whose operators have other shapes.
            return ()
        target, inputs = self.target, feed(artifact, *self.inputs)
        with self.quietly():
            return profile(
                Path(artifact.path),
                inputs,
                threads=target.threads,
                precision=target.precision,
                seconds=min(PROFILED_SECONDS, self.seconds),
            )

    def peak_bytes(self, artifact: Any) -> int:
        """Peak memory of a process that serves what was exported, on the inputs that it is timed on.

        Raises:
            MeasurementError: the runtime does not serve files.
        """
        target = self.target
        if RUNTIMES[target.runtime].takes != "file":
            raise MeasurementError(
                "Memory while serving was asked for, and the runtime does not serve exported models",
                expected="onnxruntime or openvino",
                where=str(target),
                remedy="Ask for size_bytes, or for another runtime",
            )
        return peak_memory(
            artifact.path,
            feed(artifact, *self.inputs),
            threads=target.threads,
            runtime=target.runtime,  # pyright: ignore[reportArgumentType]
            precision=target.precision,
        ).peak_bytes

    def open_operation(self, operation: Operation) -> TargetRunner:
        """Open a model that is one operation alone, :meth:`quietly`."""
        target = self.target
        runtime = RUNTIMES[target.runtime]
        open_it = partial(
            runtime.open, threads=target.threads, device=target.device, precision=target.precision
        )
        if runtime.takes != "file":
            module, args = torch_of(operation)
            with self.quietly():
                return open_it(module, (args, {}))
        model, inputs = onnx_of(operation)
        with tempfile.TemporaryDirectory(dir=self.folder) as directory:
            file = Path(directory) / "operation.onnx"
            file.write_bytes(model)
            if target.precision == "int8":
                source, file = file, file.with_name("int8.onnx")
                quantize_graph(source, [inputs], file, scheme=self.scheme, fold=False)
            with self.quietly():
                return open_it(file, inputs)


def rig_for(
    graph: Graph,
    target: Target,
    folder: Path | str | None = None,
    *,
    of: str = "",
    real_time: bool = False,
    seconds: float = TIMED_SECONDS,
) -> Rig:
    """Make the rig for a traced model.

    Args:
        graph: of the model; its example inputs are repeated or cut to the target's batch.
        target: where models are timed.
        folder: exists, and has room for a few exported models; default a temporary one, which goes with the
            rig.
        of: see :attr:`Rig.of`; needed where the folder is used again.
        real_time: see :attr:`Rig.real_time`.
        seconds: see :attr:`Rig.seconds`.

    Raises:
        MeasurementError: this machine does not have the target; or the model takes one batch size only, and
            the target has another.
    """
    check_target(target)
    if target.precision == "int8" and RUNTIMES[target.runtime].takes != "file":
        raise MeasurementError(
            "Models are quantized as exported files here, and this runtime takes modules",
            expected="int8 on onnxruntime or openvino; here fp32 or bf16",
            where=str(target),
            remedy="Plan on fp32 and quantize the smaller model; its speed-up has to be measured again",
        )
    example = (tuple(graph.args), dict(graph.kwargs))
    if not graph.batch_is_open and target.batch != graph.batch_size:
        raise MeasurementError(
            f"The target has a batch of {target.batch}, and the model takes {graph.batch_size} only",
            expected=f"a batch of {graph.batch_size}",
            where=str(target),
            remedy="Trace the model with the batch of the target, or let it take any batch",
        )
    inputs = _with_batch(example, graph.open_inputs, target.batch) if graph.batch_is_open else example
    place = Path(tempfile.mkdtemp(prefix="prunekit-") if folder is None else folder)
    rig = Rig(target, inputs, example, place, graph.batch_is_open, of, real_time, seconds, scheme_of(graph))
    if folder is None:
        weakref.finalize(rig, shutil.rmtree, place, ignore_errors=True)
    return rig


def scheme_of(graph: Graph) -> Scheme:
    """Whether most of the model's products are convolutions, as :func:`quantize_onnx` asks of a file."""
    products = [name for name in map(operator_name, graph.nodes) if name in MACS]
    convolutions = sum("conv" in name for name in products)
    return "all" if 2 * convolutions > len(products) else "weighted"


def _with_batch(inputs: Inputs, is_open: tuple[bool, ...], batch: int) -> Inputs:
    leaves, structure = pytree.tree_flatten(inputs)
    sized = [
        _repeated(leaf, batch) if opened and isinstance(leaf, Tensor) else leaf
        for leaf, opened in zip(leaves, is_open, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(sized, structure)
    return args, kwargs


def tupled(value: Any) -> Any:
    """What JSON made a list of as the tuple that it was, inside as well."""
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def _repeated(tensor: Tensor, batch: int) -> Tensor:
    """The first examples, from the first one again where there are too few."""
    return tensor[torch.arange(batch, device=tensor.device) % len(tensor)]
