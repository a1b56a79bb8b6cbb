"""The machine's own counters of energy: Intel's and AMD's RAPL through powercap, NVIDIA's through NVML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

POWERCAP = Path("/sys/class/powercap")
LONGEST_READING_S = 30.0
"""Counters are read at least this often: the smallest range in use, 65.5 kJ, takes 30 s at 2.2 kW."""

Reading = int
"""The state of a counter, in its own unit."""

_PACKAGE = re.compile(r"intel-rapl:\d+")
"""Top-level domains, on AMD as well. Not ``intel-rapl-mmio:0``: it is the same counter a second time."""


class Meter(Protocol):
    """A counter of energy.

    Law: the joules between two readings no more than :data:`LONGEST_READING_S` apart are those that were
    spent, also when the counter began again from 0 in between.
    """

    @property
    def name(self) -> str:
        """What it counts."""
        ...

    def read(self) -> Reading:
        """The counter now."""
        ...

    def joules(self, before: Reading, after: Reading) -> float:
        """Energy between two readings."""
        ...


@dataclass(frozen=True)
class RaplPackage:
    """One package domain of RAPL.

    Attributes:
        name: as the kernel calls it, such as ``package-0``.
        path: its ``energy_uj``.
        range_uj: the counter begins again from 0 after this many microjoules.

    Source: Linux kernel documentation, Power Capping Framework, "energy_uj" and "max_energy_range_uj",
    https://docs.kernel.org/power/powercap/powercap.html.
    """

    name: str
    path: Path
    range_uj: int

    def read(self) -> Reading:
        """Microjoules; OSError or ValueError where it cannot be read."""
        return int(self.path.read_text(encoding="ascii"))

    def joules(self, before: Reading, after: Reading) -> float:
        """Joules, with one wrap-around at most."""
        spent = after - before
        return (spent if spent >= 0 else spent + self.range_uj) / 1e6


@dataclass(frozen=True)
class NvidiaDevice:
    """The energy counter of one NVIDIA device, since its driver was loaded.

    Attributes:
        name: of the device, with its number.
        nvml: the module ``pynvml``.
        handle: NVML's handle of the device.

    Source: NVIDIA, NVML API reference, ``nvmlDeviceGetTotalEnergyConsumption`` (millijoules, Volta or newer),
    https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html.
    """

    name: str
    nvml: Any
    handle: Any

    def read(self) -> Reading:
        """Millijoules; NVML's error where it cannot be read."""
        return int(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))

    def joules(self, before: Reading, after: Reading) -> float:
        """Joules; a counter of 64 bits does not wrap."""
        return (after - before) / 1e3


@dataclass(frozen=True)
class Meters:
    """The counters found.

    Attributes:
        meters: those that can be read; empty where there is none.
        reason: what was found, and why the rest is absent.
    """

    meters: tuple[Meter, ...]
    reason: str


def find_meters(kind: Literal["cpu", "gpu"] = "cpu", *, powercap: Path = POWERCAP) -> Meters:
    """The counters of this machine for a kind of device, each read once to see that it can be.

    Args:
        kind: ``cpu`` (all RAPL packages) or ``gpu`` (the NVIDIA devices that NVML shows).
        powercap: the folder of the kernel's powercap framework.
    """
    return rapl_packages(powercap) if kind == "cpu" else nvidia_devices()


def rapl_packages(powercap: Path = POWERCAP) -> Meters:
    """RAPL's package domains: all of them or none, since half of a machine's energy is not its energy."""
    try:
        zones = sorted(zone for zone in powercap.iterdir() if _PACKAGE.fullmatch(zone.name))
    except OSError as error:
        return Meters((), f"RAPL is absent: {powercap} cannot be listed ({error.strerror})")
    packages: list[RaplPackage] = []
    for zone in zones:
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
            if not name.startswith("package"):
                continue  # psys counts the packages again.
            range_uj = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
            package = RaplPackage(name, zone / "energy_uj", range_uj)
            package.read()
        except PermissionError:
            return Meters(
                (),
                f"RAPL is there and may not be read: {zone / 'energy_uj'} is only for root on this machine",
            )
        except (OSError, ValueError) as error:
            return Meters((), f"RAPL is there and cannot be read: {zone}: {error}")
        packages.append(package)
    if not packages:
        return Meters((), f"RAPL is absent: {powercap} has no package domain")
    return Meters(tuple(packages), "RAPL: " + ", ".join(package.name for package in packages))


def nvidia_devices() -> Meters:
    """The NVIDIA devices whose energy NVML counts: all that it shows, or none."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return Meters((), "NVML is absent: pynvml is not installed (pip install nvidia-ml-py)")
    try:
        pynvml.nvmlInit()
        devices: list[NvidiaDevice] = []
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            name = pynvml.nvmlDeviceGetName(handle)
            device = NvidiaDevice(f"{number}: {name}", pynvml, handle)
            device.read()
            devices.append(device)
    except pynvml.NVMLError as error:
        return Meters((), f"NVML cannot count energy here: {error}")
    if not devices:
        return Meters((), "NVML shows no device")
    return Meters(tuple(devices), "NVML: " + ", ".join(device.name for device in devices))
