"""Targets: the runtime, device, threads, shape and precision that a model is measured on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch.utils import _pytree as pytree

from prunekit.errors import MeasurementError
from prunekit.measure.environment import check_threads
from prunekit.measure.runtimes import RUNTIMES, Device, Precision, Runtime, TargetRunner, check_file

RuntimeName = Literal["onnxruntime", "openvino", "torch_eager", "torch_compile"]

DEVICES: tuple[Device, ...] = ("cpu", "cuda")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")

QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
"""ONNX operators of which a quantized graph has one."""


@dataclass(frozen=True)
class Target:
    """Where and how a model is measured: what a latency is a latency of.

    Attributes:
        runtime: a row of :data:`prunekit.measure.RUNTIMES`.
        device: ``cpu`` or ``cuda``.
        threads: within an operator.
        batch: examples in one call.
        sequence: positions of an example; None where it has no such dimension.
        precision: that is computed in; ``int8`` means a model that was quantized before.
    """

    runtime: RuntimeName = "onnxruntime"
    device: Device = "cpu"
    threads: int = 1
    batch: int = 1
    sequence: int | None = None
    precision: Precision = "fp32"

    def __str__(self) -> str:
        """One line, such as ``onnxruntime on cpu, 2 threads, batch 1, fp32``."""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        sequence = [f"sequence {self.sequence}"] if self.sequence is not None else []
        return ", ".join(
            [f"{self.runtime} on {self.device}", threads, f"batch {self.batch}", *sequence, self.precision]
        )

    def digest(self, environment: Mapping[str, Any]) -> str:
        """What a measurement on this target may be found again by: 16 hexadecimal digits.

        Of the target and of what decides speed in the environment: CPU, instruction sets, available
        cores, the version of the runtime, and the GPUs where one is used; not of date or load.

        Args:
            environment: of :func:`prunekit.measure.environment`.
        """
        cpu, package = environment["cpu"], RUNTIMES[self.runtime].package
        decides = {
            "target": asdict(self),
            "cpu": [cpu["model"], cpu["isa"], cpu["available_cores"]],
            "version": environment["packages"][package],
            "gpus": environment["gpus"] if self.device == "cuda" else [],
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def check_target(target: Target) -> None:
    """Refuse a target that this machine does not have.

    Raises:
        MeasurementError: a runtime, device or precision that there is not; a runtime that is not
            installed; a precision that runtime, device or processor do not do; no GPU; more threads
            than cores; no example or no position in a call.
    """
    runtime = _row(target)
    if target.precision not in PRECISIONS:
        raise _unknown("precision", target.precision, PRECISIONS)
    if target.device not in DEVICES:
        raise _unknown("device", target.device, DEVICES)
    for what, size in (("batch", target.batch), ("sequence", target.sequence)):
        if size is not None and size < 1:
            raise MeasurementError(f"A {what} of {size} was asked for", expected="1 or more", where="target")
    _check_installed(runtime)
    _check_precision(runtime, target)
    check_threads(target.threads)


def open_target(target: Target, model: Any, inputs: Any) -> TargetRunner:
    """Open a model on a target and run it once.

    Args:
        target: see :class:`Target`.
        model: the path of an ONNX file, or for ``torch_*`` a module in evaluation mode, which is left as
            it is.
        inputs: arrays by input name, or for ``torch_*`` ``(args, kwargs)`` of the module.

    Raises:
        MeasurementError: this machine does not have the target, the model is not of the kind that the
            runtime takes, the runtime refuses it, or the inputs do not fit the model or the target.
    """
    check_target(target)
    runtime = RUNTIMES[target.runtime]
    is_file = isinstance(model, str | Path)
    if is_file != (runtime.takes == "file"):
        raise MeasurementError(
            f"{target.runtime} was given {'a file' if is_file else f'a {type(model).__name__}'}",
            expected="the path of an ONNX file" if runtime.takes == "file" else "a torch.nn.Module",
            where=str(target),
        )
    _check_shapes(target, inputs)
    if is_file:
        check_file(Path(model))
        if target.precision == "int8":
            _check_quantized(Path(model), target)
    return runtime.open(
        model, inputs, threads=target.threads, device=target.device, precision=target.precision
    )


def is_installed(runtime: Runtime) -> bool:
    """Whether its package can be imported; it is not imported."""
    return importlib.util.find_spec(runtime.package) is not None


def _row(target: Target) -> Runtime:
    if target.runtime not in RUNTIMES:
        raise _unknown("runtime", target.runtime, RUNTIMES)
    return RUNTIMES[target.runtime]


def _unknown(what: str, given: object, known: Any) -> MeasurementError:
    return MeasurementError(
        f"There is no {what} {given!r}", expected=f"one of {', '.join(known)}", where="target"
    )


def _check_installed(runtime: Runtime) -> None:
    if not is_installed(runtime):
        raise MeasurementError(
            f"{runtime.name} is not installed",
            expected=f"the package {runtime.package}",
            where="target",
            remedy=f'Install it with: pip install "{runtime.install}"',
        )


def _check_precision(runtime: Runtime, target: Target) -> None:
    if target.device not in runtime.precisions:
        raise MeasurementError(
            f"{runtime.name} is measured on {', '.join(runtime.precisions)} and not on {target.device}",
            where=str(target),
            remedy="Ask for another device, or for torch_eager or torch_compile",
        )
    offered = runtime.precisions[target.device]
    if target.precision not in offered:
        raise MeasurementError(
            f"{runtime.name} does not compute in {target.precision} on {target.device}",
            expected=f"one of {', '.join(offered)}",
            where=str(target),
            remedy="Ask for one of these, or for a runtime that does, such as openvino",
        )
    lacking = runtime.lacks(target.device, target.precision)
    if lacking:
        raise MeasurementError(
            f"This machine cannot do it: {lacking}",
            where=str(target),
            remedy="Measure on the machine that will serve the model, or ask for another device or precision",
        )


def _check_shapes(target: Target, inputs: Any) -> None:
    """Inputs of another batch would be recorded, and found again, under this target."""
    shapes = list(_shapes(inputs))
    for what, size in (("batch", target.batch), ("sequence", target.sequence)):
        if size is not None and shapes and not any(size in shape for shape in shapes):
            raise MeasurementError(
                f"No input has a dimension of {size}, the {what} of the target: {shapes}",
                expected=f"inputs with a {what} of {size}",
                where=str(target),
                remedy="Give inputs of that size, or ask for the target that they have",
            )


def _shapes(inputs: Any) -> Iterator[tuple[int, ...]]:
    for leaf in pytree.tree_leaves(inputs):
        shape = tuple(getattr(leaf, "shape", ()))
        if shape:
            yield shape


def _check_quantized(path: Path, target: Target) -> None:
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # Of protobuf; the runtime would refuse it too.
        raise MeasurementError(
            "The file is damaged", expected="a complete ONNX file", where=str(path), remedy="Export it again"
        ) from error
    if not any(node.op_type in QUANTIZED for node in graph.node):
        raise MeasurementError(
            "The model has no quantized operator",
            expected=f"a quantized model, because the target is {target}",
            where=str(path),
            remedy="Quantize it first, or ask for fp32",
        )
