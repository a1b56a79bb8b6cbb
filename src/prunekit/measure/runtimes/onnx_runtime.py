"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure.environment import check_threads
from prunekit.measure.runtimes.node_times import NodeKind, NodeTime, called, usual_ms
from prunekit.measure.runtimes.runner import Arrays, Device, Precision, Runtime, check_file, first_line
from prunekit.measure.session import Spinning, open_session, session_options

if TYPE_CHECKING:
    import onnxruntime as ort

DTYPES: Mapping[str, str] = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
}
"""ONNX Runtime's name of an input's type -> NumPy's."""


NODE_KINDS: Mapping[str, NodeKind] = {
    "Conv": "convolution",
    "FusedConv": "convolution",
    "FusedGemm": "linear",
    "FusedMatMul": "linear",
    "Gemm": "linear",
    "MatMul": "linear",
    "ReorderInput": "reads_layout",
    "ReorderOutput": "gives_layout",
}
"""ONNX Runtime's name of an operator -> what it computes."""


CONTAINERS = ("If", "Loop", "Scan")
"""Operators whose time is that of other operators, which are told too."""


class OnnxRunner:
    """An ONNX file in an ONNX Runtime session, with the inputs it is called on.

    Attributes:
        name: the file's name.
        path: the file.
        options: how the session was opened, plain JSON for the record.
        inputs: by input name; what a call runs on.
    """

    def __init__(self, path: Path, session: ort.InferenceSession, inputs: Arrays, options: dict) -> None:
        self.name = path.name
        self.path = path
        self.options = options
        self._session = session
        self._output_names = [value.name for value in session.get_outputs()]
        self.inputs = self._checked(inputs)
        self.outputs()

    def __call__(self) -> None:
        """Run once; the outputs are dropped."""
        self._session.run(None, self.inputs)

    def outputs(self, inputs: Arrays | None = None) -> dict[str, np.ndarray]:
        """Run once and keep the outputs, by name in the order of the graph.

        Args:
            inputs: other inputs than its own, such as another batch size.

        Raises:
            MeasurementError: the inputs do not fit the model, or it failed on them.
        """
        feed = self.inputs if inputs is None else self._checked(inputs)
        try:
            values = self._session.run(None, feed)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise MeasurementError(
                f"ONNX Runtime could not run the model: {first_line(error)}",
                where=str(self.path),
                remedy="Check that the inputs have the shapes that the model was exported for",
            ) from error
        names = self._output_names
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    def _checked(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The inputs as contiguous arrays, once their names, types and shapes are those of the model."""
        wanted = {value.name: value for value in self._session.get_inputs()}
        if set(inputs) != set(wanted):
            raise self._misfit(f"The inputs {sorted(inputs)} were given", f"the inputs {sorted(wanted)}")
        for name, value in wanted.items():
            array = inputs[name]
            dtype = DTYPES.get(value.type, array.dtype.name)
            if array.dtype.name != dtype:
                raise self._misfit(f"Input {name!r} has the type {array.dtype.name}", dtype)
            fits = len(array.shape) == len(value.shape) and all(
                not isinstance(size, int) or size == given
                for size, given in zip(value.shape, array.shape, strict=True)
            )
            if not fits:
                raise self._misfit(f"Input {name!r} has the shape {list(array.shape)}", str(value.shape))
        return {name: np.ascontiguousarray(inputs[name]) for name in wanted}

    def _misfit(self, given: str, expected: str) -> MeasurementError:
        return MeasurementError(
            given,
            expected=expected,
            where=str(self.path),
            remedy="Give the inputs that the model was exported with; only dimensions with a name may differ",
        )


def open_onnx(
    path: Path | str, inputs: Arrays, *, threads: int, spinning: Spinning = "within_run"
) -> OnnxRunner:
    """Open an ONNX file on the CPU and run it once.

    Args:
        path: the file.
        inputs: by input name; their shapes fit those of the model.
        threads: intra-op threads; operators run one after another.
        spinning: what idle worker threads do, see :data:`prunekit.measure.session.SPINNING`.

    Raises:
        MeasurementError: more threads than cores; the file is absent or damaged; the inputs do not fit.
    """
    path = Path(path)
    check_threads(threads)
    check_file(path)
    try:
        session = open_session(str(path), threads=threads, spinning=spinning)
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise _refused(path, error) from error
    options: dict[str, Any] = session_options(threads=threads, spinning=spinning)
    return OnnxRunner(path, session, inputs, options)


def profile_onnx(path: Path | str, inputs: Arrays, *, threads: int, seconds: float) -> tuple[NodeTime, ...]:
    """What the operators of a model take in it, in the order they run in.

    Args:
        path: an ONNX file.
        inputs: by input name; their shapes fit those of the model.
        threads: intra-op threads.
        seconds: to call the model for.

    Raises:
        MeasurementError: the file is absent or damaged; the inputs do not fit.
    """
    path = Path(path)
    check_file(path)
    with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
        try:
            session = open_session(str(path), threads=threads, profile_to=f"{folder}/profile")
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise _refused(path, error) from error
        runner = OnnxRunner(path, session, inputs, {})  # Which calls it once.
        calls = 1 + called(runner, seconds)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    return _node_times(events, calls)


def _node_times(events: list[dict[str, Any]], calls: int) -> tuple[NodeTime, ...]:
    """The nodes of a profile, in the order of their first runs."""
    found: dict[str, tuple[dict[str, Any], list[float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found.setdefault(event["name"], (event["args"], []))[1].append(event["dur"] / 1000)
    nodes = []
    for facts, taken in found.values():
        if facts["op_name"] not in CONTAINERS:
            data, weights, *_ = (*_shapes(facts["input_type_shape"]), (), ())
            output = next(iter(_shapes(facts["output_type_shape"])), ())
            kind = NODE_KINDS.get(facts["op_name"], "other")
            nodes.append(NodeTime(kind, data, weights, output, usual_ms(taken, calls)))
    return tuple(nodes)


def _shapes(values: list[dict[str, list[int]]]) -> list[tuple[int, ...]]:
    """Of ``[{type: shape}, ...]``."""
    return [tuple(shape) for value in values for shape in value.values()]


def _refused(path: Path, error: Exception) -> MeasurementError:
    return MeasurementError(
        f"ONNX Runtime could not open the model: {first_line(error)}",
        expected="a complete ONNX file that this version of ONNX Runtime knows",
        where=str(path),
        remedy="Export it again, or with a lower opset",
    )


def _open(
    model: Path | str, inputs: Arrays, *, threads: int, device: Device, precision: Precision
) -> OnnxRunner:
    del device, precision  # The file says what it computes in; the table offers the CPU alone.
    return open_onnx(model, inputs, threads=threads)


def _profile(
    model: Path | str, inputs: Arrays, *, threads: int, precision: Precision, seconds: float
) -> tuple[NodeTime, ...]:
    del precision
    return profile_onnx(model, inputs, threads=threads, seconds=seconds)


def _lacks(device: Device, precision: Precision) -> str:
    del device, precision
    return ""


ONNXRUNTIME = Runtime(
    name="onnxruntime",
    package="onnxruntime",
    install="prunekit",
    takes="file",
    precisions={"cpu": ("fp32", "int8")},
    lacks=_lacks,
    open=_open,
    profile=_profile,
)
