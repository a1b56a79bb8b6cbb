"""The sessions that are measured, of ONNX Runtime and OpenVINO; run as a program, the memory one takes.

It imports nothing of prunekit and nothing heavy: :mod:`prunekit.measure.memory` runs this very file in a
fresh process, so that the memory it reports is the memory of serving.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import onnxruntime as ort
    import openvino

Spinning = Literal["within_run", "off", "always"]

SPINNING: Mapping[Spinning, Mapping[str, str]] = {
    "within_run": {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"},
    "off": {"session.intra_op.allow_spinning": "0"},
    "always": {"session.intra_op.allow_spinning": "1"},
}
"""What idle worker threads do, as ONNX Runtime's session configuration.

By default (``always``) workers go on spinning for a while after a run has ended, and then those of one
open session take the cores of the other. Measured on an AMD EPYC with 2 cores and 2 threads, residual net,
batch 1, median of 400 pairs: the speed-up is 4.0 when each model is alone in its process, 2.1 in pairs
with ``always`` (99th percentile 7 times the median), 3.7 with ``within_run`` (3.8 alone) and 2.6 with
``off`` (2.5 alone: sleeping workers wake up late in every operator). So ``within_run`` keeps the kernels
as fast as they are when serving and takes the neighbour away. With one thread all three agree.
"""


def open_session(
    path: str, *, threads: int, spinning: Spinning = "within_run", profile_to: str | None = None
) -> ort.InferenceSession:
    """Open an ONNX file on the CPU: ``threads`` intra-op threads, operators one by one, all optimisations.

    With ``profile_to``, the beginning of a file's path, it times its operators and writes them there.
    """
    import onnxruntime as ort  # Loaded by whoever measures latency, and by nobody who prunes.

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # Errors only: its warnings go past Python, straight to the terminal.
    if profile_to is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile_to
    for key, value in SPINNING[spinning].items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def session_options(*, threads: int, spinning: Spinning) -> dict[str, Any]:
    """The options of :func:`open_session` for the record, as plain JSON."""
    import onnxruntime as ort

    return {
        "runtime": "onnxruntime",
        "version": ort.__version__,
        "provider": "CPUExecutionProvider",
        "intra_op_num_threads": threads,
        "inter_op_num_threads": 1,
        "execution_mode": "sequential",
        "graph_optimization_level": "all",
        "spinning": spinning,
        **SPINNING[spinning],
    }


def compiled_options(*, threads: int, precision: str) -> dict[str, str]:
    """The properties that :func:`open_compiled` sets, as OpenVINO spells them.

    ``INFERENCE_PRECISION_HINT`` is always set: without it OpenVINO computes an fp32 file in bf16 wherever
    the processor can.

    ``CPU_DENORMALS_OPTIMIZATION`` is off: on, the calling thread computes with tiny numbers as zeros ever
    after, whatever it computes.

    ``ENABLE_CPU_PINNING`` is off. On, the second worker of every model that is open is bound to the same
    core, and waits there for whoever else has it. Measured on an AMD EPYC with 2 cores, 2 threads and other
    work on the machine, residual nets of 32 and 16 channels, fastest fifth of 1000 calls: unpinned the
    small one takes 0.44 ms alone, 0.45 ms in turns with itself opened twice, 0.48 to 0.51 ms alone with
    1.5 ms of other work between calls, and 0.51 to 0.55 ms in turns with the large one, so little is left
    that the neighbour does and waiting does not; pinned it takes 0.32 to 0.47 ms, 0.49 to 0.56, 0.6 to 2.3,
    and 0.54 to 0.65. With one thread, alone and in turns agree within a tenth, pinned or not.
    """
    return {
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "ENABLE_CPU_PINNING": "NO",
        "CPU_DENORMALS_OPTIMIZATION": "NO",
    }


@functools.cache
def openvino_core() -> openvino.Core:
    """The one core of this process, which stays.

    Each puts an alternate signal stack of its own in the place of the one before and frees it at its end
    (OpenVINO 2026.4, CPU plugin). Where two live at once and the older one ends first, what is left is a
    stack that is gone, and the next signal, such as Ctrl-C or a child's end, kills the process.
    """
    import openvino

    return openvino.Core()


def open_compiled(
    path: str, inputs: Mapping[str, np.ndarray], options: Mapping[str, str]
) -> openvino.CompiledModel:
    """Compile a model file for the CPU of OpenVINO, its shapes made those of the inputs."""
    core = openvino_core()
    model = core.read_model(path)
    model.reshape({name: list(array.shape) for name, array in inputs.items()})
    return core.compile_model(model, "CPU", dict(options))


def _resident_bytes(field: str) -> int | None:
    """``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process; None where there is no ``/proc``."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _most_so_far() -> int:
    """Peak resident memory in bytes.

    Not ``ru_maxrss`` on Linux: it survives exec, so it would be that of the process that started this one.
    """
    peak = _resident_bytes("VmHWM")
    if peak is not None:
        return peak
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _forget_the_peak() -> None:
    """Let ``VmHWM`` start again from now; without that (no ``/proc``) importing counts where it took more."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _opened_onnxruntime(request: dict[str, Any], inputs: dict[str, np.ndarray]) -> Callable[[], Any]:
    session = open_session(request["path"], threads=request["threads"], spinning=request["spinning"])
    return lambda: session.run(None, inputs)


def _opened_openvino(request: dict[str, Any], inputs: dict[str, np.ndarray]) -> Callable[[], Any]:
    options = compiled_options(threads=request["threads"], precision=request["precision"])
    serving = open_compiled(request["path"], inputs, options).create_infer_request()
    return lambda: serving.infer(inputs, share_inputs=True, share_outputs=True)


OPENED = {"onnxruntime": _opened_onnxruntime, "openvino": _opened_openvino}
"""What opens a model for serving, by the package, which is part of the baseline."""


def _main() -> None:
    request = json.loads(sys.argv[1])
    importlib.import_module(request["runtime"])
    with np.load(request["inputs"], allow_pickle=False) as stored:
        inputs = {name: stored[f"arr_{place}"] for place, name in enumerate(request["names"])}
    _forget_the_peak()
    baseline = _resident_bytes("VmRSS") or _most_so_far()
    serve = OPENED[request["runtime"]](request, inputs)
    for _ in range(request["runs"]):
        serve()
    print(json.dumps({"baseline_bytes": baseline, "peak_bytes": _most_so_far()}))


if __name__ == "__main__":
    _main()
