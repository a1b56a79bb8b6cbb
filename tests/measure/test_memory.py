"""Real processes; the oracle is the number of bytes that the weights are known to have."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from prunekit.errors import MeasurementError
from prunekit.measure import available_cores, peak_memory, session


@pytest.mark.parametrize("runtime", sorted(session.OPENED))
def test_a_model_takes_at_least_its_weights(tmp_path, x, save_perceptron, runtime):
    small = peak_memory(save_perceptron(tmp_path / "small.onnx", 64), x, threads=1, runtime=runtime)
    width = 2_000_000
    path = save_perceptron(tmp_path / "large.onnx", width)
    large = peak_memory(path, x, threads=1, runs=2, runtime=runtime)
    weights = width * (8 + 4) * 4
    assert large.added_bytes - small.added_bytes > 0.95 * weights
    assert small.added_bytes < 60_000_000
    assert large.peak_bytes == large.baseline_bytes + large.added_bytes
    # The runtime alone; torch, which this process has loaded, would take more.
    assert 10_000_000 < small.baseline_bytes < 150_000_000
    assert json.loads(json.dumps(asdict(large)))["runs"] == 2


@pytest.mark.parametrize("runtime", sorted(session.OPENED))
def test_the_serving_process_imports_neither_torch_nor_prunekit(tmp_path, perceptron, x, runtime):
    np.savez(tmp_path / "x.npz", *x.values())
    request = {
        "path": str(perceptron),
        "inputs": str(tmp_path / "x.npz"),
        "names": list(x),
        "threads": 1,
        "runtime": runtime,
        "precision": "fp32",
        "spinning": "off",
        "runs": 1,
    }
    code = (
        "import runpy, sys; sys.argv[:] = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "print([name for name in ('torch', 'prunekit', 'onnx') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(Path(session.__file__)), json.dumps(request)],
        capture_output=True,
        text=True,
        check=True,
    )
    report, imported = run.stdout.splitlines()
    assert json.loads(report)["peak_bytes"] >= json.loads(report)["baseline_bytes"]
    assert imported == "[]"


def test_inputs_may_have_any_name(tmp_path, x, save_perceptron):
    path = save_perceptron(tmp_path / "file.onnx", 16, input_name="file")
    assert peak_memory(path, {"file": x["x"]}, threads=1, runs=1).peak_bytes > 0


def test_what_cannot_be_measured_is_refused(tmp_path, perceptron, x):
    with pytest.raises(MeasurementError, match="no such file"):
        peak_memory(tmp_path / "absent.onnx", x, threads=1)
    with pytest.raises(MeasurementError, match="threads"):
        peak_memory(perceptron, x, threads=available_cores() + 1)
    with pytest.raises(MeasurementError, match="Python objects"):
        peak_memory(perceptron, {"x": np.array([None])}, threads=1)
    with pytest.raises(MeasurementError, match="0 runs"):
        peak_memory(perceptron, x, threads=1, runs=0)
    with pytest.raises(MeasurementError, match="timed out"):
        peak_memory(perceptron, x, threads=1, timeout_s=0.01)
    with pytest.raises(MeasurementError, match=r"(?s)process .* failed: .*(Got|Invalid|dimension)"):
        peak_memory(perceptron, {"x": x["x"][:, :7]}, threads=1)
