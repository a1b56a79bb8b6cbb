"""Counters in a folder of the kernel's own form; how many joules were spent is known."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.measure.sleeper import Sleeper

from prunekit.errors import MeasurementError
from prunekit.measure import find_meters, measure_energy
from prunekit.measure.meters import RaplPackage

RANGE_UJ = 262_143_328_850


def zone(root, folder, name, energy_uj=1000, range_uj=RANGE_UJ):
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path / "energy_uj"


@pytest.fixture
def powercap(tmp_path):
    """Two packages, their parts, the platform, and the first package a second time."""
    root = tmp_path / "powercap"
    (root / "intel-rapl").mkdir(parents=True)
    for folder, name in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:0:1", "dram"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
    ):
        zone(root, folder, name)
    return root


class Burning(Sleeper):
    """Adds joules to a counter on every call, as the kernel would."""

    def __init__(self, counter, joules, range_uj=RANGE_UJ):
        super().__init__(0.0005)
        self.counter, self.microjoules, self.range_uj = counter, round(joules * 1e6), range_uj

    def __call__(self):
        super().__call__()
        spent = int(self.counter.read_text()) + self.microjoules
        self.counter.write_text(f"{spent % self.range_uj}\n")


def test_packages_are_counted_once_and_their_parts_not_at_all(powercap):
    found = find_meters("cpu", powercap=powercap)
    assert [meter.name for meter in found.meters] == ["package-0", "package-1"]
    assert found.reason == "RAPL: package-0, package-1"
    assert [meter.read() for meter in found.meters] == [1000, 1000]


@pytest.mark.parametrize(
    ("before", "after", "joules"),
    [
        (0, 0, 0.0),
        (1_000_000, 3_500_000, 2.5),
        (RANGE_UJ - 1_000_000, 2_000_000, 3.0),
        (RANGE_UJ - 1, 0, 1e-6),
    ],
)
def test_a_counter_that_began_again_counts_on(tmp_path, before, after, joules):
    path = zone(tmp_path, "intel-rapl:0", "package-0", before)
    meter = RaplPackage("package-0", path, RANGE_UJ)
    first = meter.read()
    path.write_text(f"{after}\n")
    assert meter.joules(first, meter.read()) == pytest.approx(joules, abs=1e-12)


@pytest.mark.parametrize("range_uj", [RANGE_UJ, 20_000_000_000])
def test_joules_per_sample_are_those_that_were_spent(tmp_path, range_uj):
    """The smaller range wraps around several times in the whole and at most once in a block."""
    root = tmp_path / "powercap"
    counter = zone(root, "intel-rapl:0", "package-0", range_uj - 5_000_000, range_uj)
    meters = find_meters("cpu", powercap=root).meters
    dense, pruned = Burning(counter, 300.0, range_uj), Burning(counter, 100.0, range_uj)
    found = measure_energy(dense, pruned, blocks=4, block_seconds=0.02, meters=meters)
    assert found.energy is not None
    assert found.energy.domains == ("package-0",)
    assert found.energy.dense_joules == pytest.approx(300)
    assert found.energy.pruned_joules == pytest.approx(100)
    assert found.energy.saving.median == pytest.approx(3)
    assert (found.energy.blocks, found.energy.saving.pairs) == (4, 4)
    assert found.energy.dense_watts > 0


def test_absent_counters_are_absent_with_the_reason(tmp_path, powercap, monkeypatch):
    absent = tmp_path / "absent"
    assert find_meters("cpu", powercap=absent).reason.startswith(f"RAPL is absent: {absent} cannot be listed")
    empty = tmp_path / "empty"
    zone(empty, "intel-rapl:0", "psys")
    assert find_meters("cpu", powercap=empty).reason == f"RAPL is absent: {empty} has no package domain"
    (powercap / "intel-rapl:1" / "energy_uj").write_text("junk\n")
    found = find_meters("cpu", powercap=powercap)
    assert found.meters == ()
    assert "cannot be read" in found.reason
    read_text = Path.read_text

    def refused(path, *arguments, **options):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    assert "only for root" in find_meters("cpu", powercap=powercap).reason


def test_nothing_is_estimated(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = measure_energy(Sleeper(), Sleeper(), blocks=2, block_seconds=0.01, kind="gpu")
    assert (found.energy, found.reason[:15]) == (None, "NVML is absent:")
    counter = zone(tmp_path, "intel-rapl:0", "package-0")
    still = find_meters("cpu", powercap=tmp_path).meters
    found = measure_energy(Sleeper(), Sleeper(), blocks=2, block_seconds=0.01, meters=still)
    assert found.energy is None
    assert "did not move" in found.reason
    counter.unlink()
    found = measure_energy(Sleeper(), Sleeper(), blocks=2, block_seconds=0.01, meters=still)
    assert found.energy is None
    assert "could not be read any more" in found.reason


def test_an_nvidia_device_counts_in_millijoules(monkeypatch):
    counted = iter(range(0, 10**9, 2500))

    class NVMLError(Exception):
        pass

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetName=lambda handle: "H",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counted),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = find_meters("gpu")
    assert found.reason == "NVML: 0: H"
    (meter,) = found.meters
    assert meter.joules(meter.read(), meter.read()) == 2.5

    def refused(handle):
        raise NVMLError("Not Supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = refused
    assert find_meters("gpu").reason == "NVML cannot count energy here: Not Supported"


def test_bad_requests_and_broken_models(tmp_path):
    meters = [RaplPackage("package-0", zone(tmp_path, "intel-rapl:0", "package-0"), RANGE_UJ)]
    for request in ({"blocks": 1}, {"block_seconds": 0.0}, {"block_seconds": 31.0}):
        with pytest.raises(MeasurementError, match="blocks of"):
            measure_energy(Sleeper(), Sleeper(), **request)
    with pytest.raises(MeasurementError, match="the model broke"):
        measure_energy(Sleeper(fails_at=3), Sleeper(), blocks=2, block_seconds=0.05, meters=meters)
