"""Two exported models, or one, under the LoadGen protocol: on one target, in one scenario or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from prunekit.errors import UsageError
from prunekit.measure import (
    RUNTIMES,
    SCENARIOS,
    Cost,
    EnergyReading,
    LoadComparison,
    LoadResult,
    LoadSettings,
    Made,
    Runner,
    Scenario,
    Target,
    Throughput,
    ThroughputComparison,
    compare_scenarios,
    compare_throughput,
    cost_per_million,
    environment,
    load_loadgen,
    make_inputs,
    max_throughput,
    measure_energy,
    open_target,
    read_inputs,
    run_load,
)
from prunekit.measure.target import RuntimeName
from prunekit.measure.throughput import PRECISION
from prunekit.types import Speedup
from prunekit.workflow.outcome import Row

Say = Callable[[str], None]
WITHOUT_A_BOUND: tuple[Scenario, ...] = ("single_stream", "offline")
"""What is measured where nothing is said: how long one takes, and how many go through."""

PROTOCOL = "Measured under the LoadGen protocol; this is not an audited benchmark result."
PERCENTILES = ("p50_ms", "p90_ms", "p95_ms", "p97_ms", "p99_ms", "p99_9_ms")
Found = LoadResult | LoadComparison | Throughput | ThroughputComparison


@dataclass(frozen=True)
class LoadRequest:
    """What to put under load, and how.

    Attributes:
        dense: an ONNX file.
        pruned: another one to compare it with; None = the first alone.
        scenarios: some of :data:`prunekit.measure.SCENARIOS`, with ``-`` or ``_``, one after another. Where
            none is named, the Server scenario if there is a bound, else :data:`WITHOUT_A_BOUND`.
        runtime: one that takes files: ``onnxruntime`` or ``openvino``.
        threads: of the runtime.
        settings: durations, counts, batching and seed; the rate, too, for a Server test at one rate.
        p99_ms: the Server scenario's bound, > 0; only with that scenario.
        precision: of the search for the highest rate.
        rounds: tests of each model where two are compared at one load.
        made: how inputs are made.
        inputs: an ``.npz`` file with inputs instead.
        price_per_hour: of the machine, in any currency; None = no cost.
        energy: read the machine's counters of energy for both models.
    """

    dense: Path
    pruned: Path | None = None
    scenarios: tuple[str, ...] = ()
    runtime: str = "onnxruntime"
    threads: int = 1
    settings: LoadSettings = field(default_factory=lambda: LoadSettings("server"))
    p99_ms: float | None = None
    precision: float = PRECISION
    rounds: int = 5
    made: Made = field(default_factory=Made)
    inputs: Path | None = None
    price_per_hour: float | None = None
    energy: bool = False


@dataclass(frozen=True)
class Load:
    """What was found in one scenario.

    Attributes:
        scenario: our name of it.
        rows: dense against pruned; the column of the pruned model is empty where there is none.
        notes: sentences the reader of the rows must know.
        found: the figures behind the rows.
        costs: of the dense model and the pruned one; empty without a price.
    """

    scenario: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    found: Found
    costs: tuple[Cost, ...]

    def values(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "scenario": self.scenario,
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "found": asdict(self.found),
            "costs": [asdict(cost) for cost in self.costs],
        }


@dataclass(frozen=True)
class LoadReport:
    """What was found.

    Attributes:
        target: where.
        loads: by scenario, in the order in which they were asked.
        rows: what does not belong to one scenario: energy, where it was asked for and is counted.
        notes: sentences the reader of all rows must know.
        energy: where it was asked for.
        environment: the machine.
    """

    target: Target
    loads: tuple[Load, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    energy: EnergyReading | None
    environment: dict[str, Any]

    def values(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "protocol": "LoadGen",
            "target": asdict(self.target),
            "loads": [load.values() for load in self.loads],
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "energy": asdict(self.energy) if self.energy else None,
            "environment": self.environment,
        }


def measure_load(request: LoadRequest, say: Say | None = None) -> LoadReport:
    """Open the models on the same inputs and measure them.

    The Server scenario with a bound and no rate searches for the highest rate that keeps the bound; every
    other load is given, and measured as it is.

    Args:
        request: what to measure.
        say: called with one line about each test.

    Raises:
        UsageError: a scenario or a runtime that does not exist, a bound or a rate that is lacking, of no use
            or out of range.
        MeasurementError: a file, inputs or settings that cannot be used, LoadGen or the runtime is not
            installed, or a model that fails.
    """
    planned = _planned(request)
    load_loadgen()
    inputs = read_inputs(request.inputs) if request.inputs else make_inputs(request.dense, request.made)
    target = _target(request, inputs)
    paths = [path for path in (request.dense, request.pruned) if path]
    runners = [open_target(target, path, inputs) for path in paths]
    loads = [_load(_measure(request, settings, runners, say), settings, request) for settings in planned]
    energy = None
    if request.energy and len(runners) == 2:
        energy = measure_energy(*runners)
    notes = [PROTOCOL, *([f"Energy: {energy.reason}."] if energy else [])]
    if request.energy and energy is None:
        notes.append("Energy is measured for two models, in turns, and there is one.")
    return LoadReport(
        target=target,
        loads=tuple(loads),
        rows=tuple(_energy_rows(energy)),
        notes=tuple(notes),
        energy=energy,
        environment=environment(request.threads),
    )


def _planned(request: LoadRequest) -> list[LoadSettings]:
    """The loads that are asked for, in order."""
    bound, rate = request.p99_ms, request.settings.target_qps
    usual = WITHOUT_A_BOUND if bound is None and rate is None else ("server",)
    named = [name.replace("-", "_") for name in request.scenarios or usual]
    for name, given in zip(named, request.scenarios, strict=False):
        if name not in SCENARIOS:
            known = ", ".join(map(_words, SCENARIOS))
            raise UsageError(f"The scenario {given!r} was asked for", expected=f"one of {known}")
    if "server" in named and bound is None:
        raise UsageError(
            "The server scenario was asked for without a bound on the latency",
            remedy="Give the 99th percentile that the answers must keep, in milliseconds: --p99-ms 20",
        )
    for option, value in (("p99-ms", bound), ("qps", rate)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{option} is {value:g}", expected="a number above 0")
        if value is not None and "server" not in named:
            raise UsageError(
                f"--{option} is given, and {' and '.join(request.scenarios)} has none",
                expected="the server scenario, the only one with a rate and a bound",
                remedy=f"Leave --{option} out, or ask for --scenario server",
            )
    if request.price_per_hour is not None and request.price_per_hour < 0:
        raise UsageError(f"The price per hour is {request.price_per_hour}", expected="a number of 0 or more")
    return [_of_scenario(cast(Scenario, name), request) for name in dict.fromkeys(named)]


def _of_scenario(scenario: Scenario, request: LoadRequest) -> LoadSettings:
    if scenario == "server":
        return replace(request.settings, scenario=scenario, bound_ms=request.p99_ms)
    return replace(request.settings, scenario=scenario, target_qps=None)


def _target(request: LoadRequest, inputs: Mapping[str, np.ndarray]) -> Target:
    """Where the models run, on as many samples as the inputs have."""
    runtimes = [name for name, runtime in RUNTIMES.items() if runtime.takes == "file"]
    if request.runtime not in runtimes:
        raise UsageError(
            f"The runtime {request.runtime!r} was asked for",
            expected=f"one that takes ONNX files: {' or '.join(runtimes)}",
        )
    rows = next((len(array) for array in inputs.values() if array.ndim), 1)
    return Target(cast(RuntimeName, request.runtime), threads=request.threads, batch=rows)


def _load(found: Found, settings: LoadSettings, request: LoadRequest) -> Load:
    sides = _sides(found)
    costs = _costs(sides, request.price_per_hour)
    return Load(settings.scenario, tuple(_rows(found, sides, costs)), tuple(_notes(found)), found, costs)


def _measure(
    request: LoadRequest, settings: LoadSettings, runners: Sequence[Runner], say: Say | None
) -> Found:
    dense, *others = runners

    def told(result: LoadResult) -> None:
        if say is not None:
            say(_line(result))

    if settings.scenario == "server" and settings.target_qps is None and request.p99_ms is not None:
        search = compare_throughput if others else max_throughput
        return search(
            *runners, p99_ms=request.p99_ms, precision=request.precision, settings=settings, progress=told
        )
    if others:
        return compare_scenarios(dense, others[0], settings, rounds=request.rounds, progress=told)
    result = run_load(dense, settings)
    told(result)
    return result


def _line(result: LoadResult) -> str:
    at = f" at {result.settings.target_qps:.4g} requests/s" if result.settings.target_qps else ""
    verdict = "valid" if result.valid else "not valid"
    figure = (
        f"{result.per_second:.4g} samples/s"
        if result.settings.scenario == "offline"
        else f"p99 {result.latency.p99_ms:.3g} ms"
    )
    if result.cut_short:
        figure = f"ended early, {result.late} of {result.served} answers late"
    return f"{_words(result.settings.scenario)}, {result.model}{at}: {verdict}, {figure}"


def _words(scenario: str) -> str:
    """A scenario as the command line spells it."""
    return scenario.replace("_", "-")


@dataclass(frozen=True)
class _Side:
    """One model's figures: its test that stands for the others, samples per second with their interval."""

    result: LoadResult
    per_second: float
    interval: tuple[float, float] | None
    searched: Throughput | None = None


def _sides(found: Found) -> list[_Side]:
    match found:
        case LoadResult():
            return [_Side(found, found.per_second, None)]
        case Throughput():
            return [_searched(found)]
        case ThroughputComparison():
            return [_searched(found.dense), _searched(found.pruned)]
        case LoadComparison():
            return [_middle(found.dense), _middle(found.pruned)]


def _searched(found: Throughput) -> _Side:
    """The test that passed at the highest rate."""
    passed = [one for one in found.probes if one.valid and one.settings.target_qps == found.passing_qps]
    return _Side(passed[-1], found.passing_qps, (found.passing_qps, found.failing_qps), found)


def _middle(results: tuple[LoadResult, ...]) -> _Side:
    """The middle one of the rounds, and their range."""
    ordered = sorted(results, key=lambda one: one.per_second)
    middle = ordered[len(ordered) // 2]
    return _Side(middle, middle.per_second, (ordered[0].per_second, ordered[-1].per_second))


def _costs(sides: list[_Side], price_per_hour: float | None) -> tuple[Cost, ...]:
    if price_per_hour is None:
        return ()
    return tuple(cost_per_million(price_per_hour, side.per_second, side.interval) for side in sides)


def _rows(found: Found, sides: list[_Side], costs: tuple[Cost, ...]) -> list[Row]:
    def row(quantity: str, unit: str, figures: list[float]) -> Row:
        return Row(quantity, unit, figures[0], figures[1] if figures[1:] else None, None)

    rows: list[Row] = []
    searched = [side.searched for side in sides if side.searched]
    if searched:
        bound = f"p99 <= {searched[0].p99_ms:g} ms"
        rows.append(row(f"requests per second, {bound}", "", [one.passing_qps for one in searched]))
        rows.append(row("first rate that failed", "", [one.failing_qps for one in searched]))
        rows.append(row("one sample alone", "ms", [one.call_ms for one in searched]))
    else:
        rows.append(row("samples per second", "", [side.per_second for side in sides]))
    latencies = [asdict(side.result.latency) for side in sides]
    for name in PERCENTILES if sides[0].result.settings.scenario != "offline" else ():
        quantity = f"latency, {name.removesuffix('_ms').replace('_', '.')}"
        rows.append(row(quantity, "ms", [latency[name] for latency in latencies]))
    if costs:
        rows.append(row("cost per million inferences", "", [cost.per_million for cost in costs]))
    return rows + _gains(found)


def _gains(found: Found) -> list[Row]:
    if isinstance(found, ThroughputComparison):
        return [Row("more requests per second", "x", None, None, found.gain, found.low, found.high)]
    if not isinstance(found, LoadComparison):
        return []
    if found.tail is None:
        return [_speedup_row("more samples per second", found.speedup)]
    return [
        _speedup_row("speed-up, median latency", found.speedup),
        _speedup_row("speed-up, p99 latency", found.tail),
    ]


def _energy_rows(reading: EnergyReading | None) -> list[Row]:
    if reading is None or reading.energy is None:
        return []
    energy = reading.energy
    return [
        Row("joules per sample", "", energy.dense_joules, energy.pruned_joules, None),
        _speedup_row("less energy", energy.saving),
    ]


def _speedup_row(quantity: str, speedup: Speedup) -> Row:
    return Row(quantity, "x", None, None, speedup.median, speedup.low, speedup.high)


def _notes(found: Found) -> list[str]:
    results: tuple[LoadResult, ...] = ()
    if isinstance(found, LoadResult):
        results = (found,)
    elif isinstance(found, LoadComparison):
        results = found.dense + found.pruned
    bad = [result for result in results if not result.valid]
    if not bad:
        return []
    return [f"LoadGen calls {len(bad)} of {len(results)} tests not valid: {' '.join(bad[0].reasons)}"]
