"""The machine and the versions a measurement was made on; without them it is not a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prunekit.errors import MeasurementError

ISA_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
"""The instruction sets that decide how fast kernels are, as ``/proc/cpuinfo`` spells them."""

PACKAGES = ("prunekit", "torch", "onnxruntime", "openvino", "onnx", "onnxscript", "numpy")
"""Whose versions are recorded."""


def environment(threads: int | None = None) -> dict[str, Any]:
    """What a reader needs to repeat or to distrust a measurement.

    Args:
        threads: of the runtime that was measured; None where it does not apply.

    Returns:
        Plain JSON: ``cpu`` (model, ISA flags that matter, cores of the machine, cores this process may
        use, governor, whether a hypervisor lies between), ``gpus`` (their names, as the NVIDIA driver gives
        them), ``memory_bytes``, ``load_1m`` (run queue over the last minute), ``os``, ``python``,
        ``packages`` (None = not installed), ``threads``, ``date`` (UTC, ISO 8601).
    """
    cpu = _cpu_fields()
    return {
        "cpu": {
            "model": cpu.get("model name") or platform.processor() or platform.machine(),
            "isa": instruction_sets(),
            "cores": os.cpu_count() or 1,
            "available_cores": available_cores(),
            "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
            "virtual": "hypervisor" in _cpu_flags(),
        },
        "gpus": _gpus(),
        "memory_bytes": _memory_bytes(),
        "load_1m": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "threads": threads,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def instruction_sets() -> list[str]:
    """Those of :data:`ISA_FLAGS` that the processor has."""
    flags = _cpu_flags()
    return [flag for flag in ISA_FLAGS if flag in flags]


def available_cores() -> int:
    """Cores this process may use: its affinity, and the CPU quota of its control group."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


def check_threads(threads: int) -> None:
    """Refuse a number of threads that the machine cannot run at once.

    Raises:
        MeasurementError: fewer than one, or more than :func:`available_cores`.
    """
    cores = available_cores()
    if not 1 <= threads <= cores:
        raise MeasurementError(
            f"{threads} threads were asked for, and {cores} cores are available to this process",
            expected=f"a number of threads from 1 to {cores}",
            remedy="More threads than cores would time the scheduler: ask for fewer, or measure on the "
            "machine that will serve the model",
        )


def _cpu_flags() -> list[str]:
    cpu = _cpu_fields()
    return cpu.get("flags", cpu.get("Features", "")).split()


def _cpu_fields() -> dict[str, str]:
    """The fields of the first core in ``/proc/cpuinfo``; empty where there is none."""
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _gpus() -> list[str]:
    """The models of the NVIDIA GPUs, from the driver's own files: that needs no CUDA."""
    found = []
    for card in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        fields = (line.partition(":") for line in _read(str(card)).splitlines())
        found += [value.strip() for key, _, value in fields if key.strip() == "Model"]
    return found


def _memory_bytes() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
