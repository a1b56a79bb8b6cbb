"""The operating system's own files are the oracle."""

from __future__ import annotations

import importlib
import json
import os
from datetime import UTC, datetime, timedelta

import numpy as np
import onnxruntime
import pytest

from prunekit.errors import MeasurementError
from prunekit.measure import available_cores, check_threads, environment

module = importlib.import_module("prunekit.measure.environment")

ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16 i8mm\nprocessor\t: 1\nFeatures\t: fp\n"


def test_the_record_is_that_of_this_machine():
    record = json.loads(json.dumps(environment(threads=2)))
    assert record["threads"] == 2
    assert record["cpu"]["cores"] == os.cpu_count()
    assert record["cpu"]["model"]
    assert record["packages"]["numpy"] == np.__version__
    assert record["packages"]["onnxruntime"] == onnxruntime.__version__
    age = datetime.now(UTC) - datetime.fromisoformat(record["date"])
    assert timedelta(seconds=-1) <= age < timedelta(minutes=1)


def test_the_first_core_of_another_machine_is_read(monkeypatch):
    monkeypatch.setattr(module, "_read", lambda path: ARM if path == "/proc/cpuinfo" else "")
    record = environment()
    assert record["cpu"]["isa"] == ["asimd", "bf16", "i8mm"]
    assert record["cpu"]["governor"] is None
    assert not record["cpu"]["virtual"]
    assert record["threads"] is None


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("", 8)]
)
def test_a_quota_limits_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(module, "_read", lambda path: quota if path.endswith("cpu.max") else "")
    assert available_cores() == cores
    check_threads(cores)
    with pytest.raises(MeasurementError, match=f"{cores + 1} threads were asked for, and {cores} cores"):
        check_threads(cores + 1)
