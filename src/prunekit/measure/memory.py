"""How much memory serving a model takes, measured in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure import session
from prunekit.measure.runtimes import Precision, check_file
from prunekit.measure.session import Spinning
from prunekit.measure.target import Target, check_target

ServingRuntime = Literal["onnxruntime", "openvino"]


@dataclass(frozen=True)
class MemoryUse:
    """Resident memory of a serving process.

    Attributes:
        baseline_bytes: with the runtime and the inputs loaded, before the model was opened.
        peak_bytes: the most while the model was opened and run.
        added_bytes: peak above baseline: what the model itself needs.
        runs: number of inferences.
        threads: intra-op threads.
    """

    baseline_bytes: int
    peak_bytes: int
    added_bytes: int
    runs: int
    threads: int


def peak_memory(
    path: Path | str,
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int,
    runs: int = 10,
    runtime: ServingRuntime = "onnxruntime",
    precision: Precision = "fp32",
    spinning: Spinning = "within_run",
    timeout_s: float = 600.0,
) -> MemoryUse:
    """Open an ONNX file in a fresh process that imports only the runtime and NumPy, and run it.

    Args:
        path: the file.
        inputs: by input name.
        threads: intra-op threads.
        runs: number of inferences, >= 1; the memory arena of ONNX Runtime grows in the first ones.
        runtime: ``onnxruntime`` or ``openvino``, on the CPU.
        precision: as for :func:`prunekit.measure.open_openvino`; ONNX Runtime takes it from the file.
        spinning: as for :func:`prunekit.measure.open_onnx`; of no meaning to OpenVINO.
        timeout_s: after which the process is ended.

    Raises:
        MeasurementError: a runtime that is not installed, more threads than cores, an absent file, an
            input of Python objects, or the process failed; its last words are quoted.
    """
    path = Path(path)
    check_target(Target(runtime, threads=threads, precision=precision))
    check_file(path)
    if runs < 1:
        raise MeasurementError(f"{runs} runs were asked for", expected="at least one")
    objects = [name for name, array in inputs.items() if array.dtype.hasobject]
    if objects:
        raise MeasurementError(f"The inputs {objects} hold Python objects", expected="arrays of numbers")
    with tempfile.TemporaryDirectory(prefix="prunekit-") as directory:
        stored = Path(directory) / "inputs.npz"
        # By position, because an ONNX input may have a name that np.savez takes for its own argument.
        np.savez(stored, *inputs.values())
        request = {
            "path": str(path.resolve()),
            "inputs": str(stored),
            "names": list(inputs),
            "threads": threads,
            "runtime": runtime,
            "precision": precision,
            "spinning": spinning,
            "runs": runs,
        }
        reported = _serve(request, path, timeout_s)
    baseline, peak = int(reported["baseline_bytes"]), int(reported["peak_bytes"])
    return MemoryUse(baseline, peak, max(0, peak - baseline), runs, threads)


def _serve(request: dict, path: Path, timeout_s: float) -> dict[str, int]:
    # -P: the folder of that file is not searched for imports, or its neighbours would hide other modules.
    command = [sys.executable, "-P", str(Path(session.__file__)), json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failure(path, str(error)) from error
    if done.returncode != 0:
        last = done.stderr.rpartition("Traceback (most recent call last):")[2]
        words = " ".join(line for line in last.splitlines() if line[:1].strip())  # Frames are indented.
        raise _failure(path, words or f"it ended with {done.returncode} and said nothing")
    return json.loads(done.stdout.splitlines()[-1])


def _failure(path: Path, said: str) -> MeasurementError:
    return MeasurementError(
        f"The process that measures memory failed: {said}",
        expected="a model that the runtime can open and run on these inputs",
        where=str(path),
        remedy="Open the model with prunekit.measure.open_target to see whether it runs at all; a process "
        "that was killed (a negative code) usually ran out of memory",
    )
