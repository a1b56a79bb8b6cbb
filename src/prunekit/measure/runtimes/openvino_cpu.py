"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure.environment import check_threads
from prunekit.measure.runtimes.node_times import NodeKind, NodeTime, called, usual_ms
from prunekit.measure.runtimes.runner import Arrays, Device, Precision, Runtime, check_file
from prunekit.measure.session import compiled_options, open_compiled, openvino_core

if TYPE_CHECKING:
    import openvino

RECORDED = (
    "INFERENCE_NUM_THREADS",
    "NUM_STREAMS",
    "PERFORMANCE_HINT",
    "INFERENCE_PRECISION_HINT",
    "ENABLE_CPU_PINNING",
    "EXECUTION_DEVICES",
)
"""Properties that are read back from the compiled model: what it does, not what it was asked."""

SOURCE_LINES = ("Exception from ", "Check '", "While validating ", "FrontEnd API failed")
"""How the lines of OpenVINO's messages begin that name its own source and not the trouble."""


NODE_KINDS: Mapping[str, NodeKind] = {
    "Convolution": "convolution",
    "FullyConnected": "linear",
    "GroupConvolution": "convolution",
    "MatMul": "linear",
    "Reorder": "reads_layout",
}
"""OpenVINO's name of an operator -> what it computes."""


class OpenvinoRunner:
    """A model file compiled by OpenVINO for the shapes of its inputs.

    Attributes:
        name: the file's name.
        path: the file.
        options: how it was compiled, plain JSON for the record.
        inputs: by input name; what a call runs on.
        compiled_for: the same model, compiled for the shapes of other inputs, which it then runs on.
    """

    def __init__(
        self,
        path: Path,
        compiled: openvino.CompiledModel,
        inputs: Arrays,
        options: dict,
        compile_for: Callable[[Arrays], OpenvinoRunner],
    ) -> None:
        self.name = path.name
        self.path = path
        self.options = options
        self.compiled_for = compile_for
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._output_names = [port.get_any_name() for port in compiled.outputs]
        self.inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        self._bind(self.inputs)
        self.outputs()

    def __call__(self) -> None:
        """Run once; the outputs stay where OpenVINO wrote them."""
        self._request.infer(share_outputs=True)

    def outputs(self, inputs: Arrays | None = None) -> dict[str, np.ndarray]:
        """Run once and keep the outputs, by name in the order of the graph.

        Args:
            inputs: others than its own, of the same shapes: those are what the model was compiled for.

        Raises:
            MeasurementError: the inputs do not fit the model, or it failed on them.
        """
        if inputs is not None:
            check_inputs(self.path, self._compiled, inputs)
            self._bind({name: np.ascontiguousarray(array) for name, array in inputs.items()})
        try:
            self._request.infer(share_outputs=True)
            values = [np.array(self._request.get_output_tensor(place).data) for place in range(self._count)]
        except RuntimeError as error:
            raise MeasurementError(
                f"OpenVINO could not run the model: {said(error)}",
                where=str(self.path),
                remedy="Check that the inputs have the shapes that the model was exported for",
            ) from error
        finally:
            if inputs is not None:
                self._bind(self.inputs)
        return dict(zip(self._output_names, values, strict=True))

    def node_times(self, seconds: float) -> tuple[NodeTime, ...]:
        """What its operators take, in the order they run in; it was opened with ``PERF_COUNT``.

        Args:
            seconds: to call it for.
        """
        taken: dict[str, list[float]] = {}

        def call() -> None:
            self()
            for node in self._request.get_profiling_info():
                taken.setdefault(node.node_name, []).append(1000 * node.real_time.total_seconds())

        calls, nodes = called(call, seconds), []
        for node in self._compiled.get_runtime_model().get_ops():
            facts = {name: value.astype(str) for name, value in node.get_rt_info().items()}
            data, weights, *_ = (*(_shape(value.get_source_output()) for value in node.inputs()), (), ())
            output = _shape(node.output(0)) if node.outputs() else ()
            kind = NODE_KINDS.get(facts["layerType"], "other")
            ms = usual_ms(taken.get(node.get_friendly_name(), ()), calls)
            nodes.append((int(facts["execOrder"]), NodeTime(kind, data, weights, output, ms)))
        return tuple(node for _, node in sorted(nodes, key=itemgetter(0)))

    @property
    def _count(self) -> int:
        return len(self._output_names)

    def _bind(self, inputs: Arrays) -> None:
        """Let the request read these arrays where they lie."""
        import openvino

        self._bound = inputs  # The request does not keep them alive.
        for name, array in inputs.items():
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))


def open_openvino(
    path: Path | str,
    inputs: Arrays,
    *,
    threads: int,
    precision: Precision = "fp32",
    properties: Mapping[str, str] | None = None,
) -> OpenvinoRunner:
    """Compile an ONNX file for the CPU with OpenVINO and run it once.

    One stream, the latency hint, and shapes fixed to those of the inputs.

    Args:
        path: the file.
        inputs: by input name; their shapes fit those of the model.
        threads: of the one stream.
        precision: ``bf16`` computes in bfloat16; ``int8`` opens a quantized file, whose other operators
            compute in float32.
        properties: more of OpenVINO's, which go on top of those that are always set.

    Raises:
        MeasurementError: more threads than cores; the file is absent, damaged or has an operator that
            OpenVINO does not know; the inputs do not fit.
    """
    path = Path(path)
    check_threads(threads)
    check_file(path)
    more = dict(properties or {})
    wanted = compiled_options(threads=threads, precision=precision) | more
    check_inputs(path, _read(path), inputs)
    try:
        compiled = open_compiled(str(path), inputs, wanted)
    except RuntimeError as error:
        raise _refused(path, error) from error
    again = partial(open_openvino, path, threads=threads, precision=precision, properties=properties)
    return OpenvinoRunner(path, compiled, inputs, _record(compiled, precision, (*RECORDED, *more)), again)


def check_inputs(path: Path, model: openvino.Model | openvino.CompiledModel, inputs: Arrays) -> None:
    """Refuse inputs whose names, types or shapes are not those of the model.

    Raises:
        MeasurementError: they are not.
    """
    ports = {port.get_any_name(): port for port in model.inputs}
    if set(inputs) != set(ports):
        raise _misfit(path, f"The inputs {sorted(inputs)} were given", f"the inputs {sorted(ports)}")
    for name, port in ports.items():
        array, dtype = inputs[name], port.get_element_type().to_dtype()
        if array.dtype != dtype:
            raise _misfit(path, f"Input {name!r} has the type {array.dtype.name}", dtype.name)
        shape = port.get_partial_shape()
        if not shape.compatible(type(shape)(list(array.shape))):
            raise _misfit(path, f"Input {name!r} has the shape {list(array.shape)}", str(shape))


def said(error: RuntimeError) -> str:
    """The first line of OpenVINO's message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(SOURCE_LINES)]
    return next(iter(telling or lines), type(error).__name__)


def _shape(value: openvino.Output) -> tuple[int, ...]:
    """Of a value; nothing where it is not the same in every call."""
    shape = value.get_partial_shape()
    return tuple(shape.to_shape()) if shape.is_static else ()


def _read(path: Path) -> openvino.Model:
    try:
        return openvino_core().read_model(str(path))
    except RuntimeError as error:
        raise _refused(path, error) from error


def _record(compiled: openvino.CompiledModel, precision: Precision, names: Iterable[str]) -> dict[str, Any]:
    import openvino

    found = {name: _plain(compiled.get_property(name)) for name in names}
    return {
        "runtime": "openvino",
        "version": openvino.__version__,
        "precision": precision,
        "shapes": "static",
        **found,
    }


def _plain(value: Any) -> str:
    """A property as OpenVINO spells it."""
    spelled = getattr(value, "get_type_name", None)
    if spelled is not None:
        return spelled()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _refused(path: Path, error: RuntimeError) -> MeasurementError:
    return MeasurementError(
        f"OpenVINO could not open the model: {said(error)}",
        expected="a complete ONNX file whose operators this version of OpenVINO knows",
        where=str(path),
        remedy="Export it again, or with a lower opset, or measure on ONNX Runtime",
    )


def _misfit(path: Path, given: str, expected: str) -> MeasurementError:
    return MeasurementError(
        given,
        expected=expected,
        where=str(path),
        remedy="Give the inputs that the model was exported with; only dimensions with a name may differ",
    )


def _open(
    model: Path | str, inputs: Arrays, *, threads: int, device: Device, precision: Precision
) -> OpenvinoRunner:
    del device  # The table offers the CPU alone.
    return open_openvino(model, inputs, threads=threads, precision=precision)


def _profile(
    model: Path | str, inputs: Arrays, *, threads: int, precision: Precision, seconds: float
) -> tuple[NodeTime, ...]:
    counting = {"PERF_COUNT": "YES"}
    return open_openvino(model, inputs, threads=threads, precision=precision, properties=counting).node_times(
        seconds
    )


def _lacks(device: Device, precision: Precision) -> str:
    able = openvino_core().get_property(device.upper(), "OPTIMIZATION_CAPABILITIES")
    name = {"bf16": "BF16", "int8": "INT8", "fp32": "FP32"}[precision]
    return "" if name in able else f"OpenVINO lists {', '.join(sorted(able))} for this processor"


OPENVINO = Runtime(
    name="openvino",
    package="openvino",
    install="prunekit[openvino]",
    takes="file",
    precisions={"cpu": ("fp32", "bf16", "int8")},
    lacks=_lacks,
    open=_open,
    profile=_profile,
)
