"""Two exported models, or one, under the LoadGen protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from prunekit.errors import UsageError
from prunekit.measure import (
    SCENARIOS,
    Cost,
    EnergyReading,
    LoadComparison,
    LoadResult,
    LoadSettings,
    Made,
    Runner,
    Scenario,
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
    open_onnx,
    read_inputs,
    run_load,
)
from prunekit.measure.throughput import PRECISION
from prunekit.types import Speedup
from prunekit.workflow.outcome import Row

Say = Callable[[str], None]
PERCENTILES = ("p50_ms", "p90_ms", "p95_ms", "p97_ms", "p99_ms", "p99_9_ms")
Found = LoadResult | LoadComparison | Throughput | ThroughputComparison


@dataclass(frozen=True)
class LoadRequest:
    """What to put under load, and how.

    Attributes:
        dense: an ONNX file.
        pruned: another one to compare it with; None = the first alone.
        scenario: one of :data:`prunekit.measure.SCENARIOS`, with ``-`` or ``_``.
        threads: of the runtime.
        settings: durations, counts, batching and seed; the rate, too, for a Server test at one rate.
        p99_ms: the Server scenario's bound.
        precision: of the search for the highest rate.
        rounds: tests of each model where two are compared at one load.
        made: how inputs are made.
        inputs: an ``.npz`` file with inputs instead.
        price_per_hour: of the machine, in any currency; None = no cost.
        energy: read the machine's counters of energy for both models.
    """

    dense: Path
    pruned: Path | None = None
    scenario: str = "server"
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
class LoadReport:
    """What was found.

    Attributes:
        scenario: our name of it.
        rows: dense against pruned; the column of the pruned model is empty where there is none.
        notes: sentences the reader of the rows must know.
        found: the figures behind the rows.
        costs: of the dense model and the pruned one; empty without a price.
        energy: where it was asked for.
        environment: the machine.
    """

    scenario: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    found: Found
    costs: tuple[Cost, ...]
    energy: EnergyReading | None
    environment: dict[str, Any]

    def values(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "protocol": "LoadGen",
            "scenario": self.scenario,
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "found": asdict(self.found),
            "costs": [asdict(cost) for cost in self.costs],
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
        UsageError: a scenario that does not exist, a bound that is lacking or of no use.
        MeasurementError: a file, inputs or settings that cannot be used, LoadGen is not installed, or a
            model that fails.
    """
    settings = _settings(request)
    load_loadgen()
    inputs = read_inputs(request.inputs) if request.inputs else make_inputs(request.dense, request.made)
    paths = [path for path in (request.dense, request.pruned) if path]
    runners = [open_onnx(path, inputs, threads=request.threads) for path in paths]
    found = _measure(request, settings, runners, say)
    energy = None
    if request.energy and len(runners) == 2:
        energy = measure_energy(*runners)
    sides = _sides(found)
    costs = _costs(sides, request.price_per_hour)
    rows = [*_rows(found, sides, costs), *_energy_rows(energy)]
    notes = [*_notes(found), *([f"Energy: {energy.reason}."] if energy else [])]
    if request.energy and energy is None:
        notes.append("Energy is measured for two models, in turns, and there is one.")
    return LoadReport(
        scenario=settings.scenario,
        rows=tuple(rows),
        notes=tuple(notes),
        found=found,
        costs=costs,
        energy=energy,
        environment=environment(request.threads),
    )


def _settings(request: LoadRequest) -> LoadSettings:
    scenario = request.scenario.replace("-", "_")
    if scenario not in SCENARIOS:
        known = ", ".join(name.replace("_", "-") for name in SCENARIOS)
        raise UsageError(f"The scenario {request.scenario!r} was asked for", expected=f"one of {known}")
    if scenario == "server" and request.p99_ms is None:
        raise UsageError(
            "The server scenario was asked for without a bound on the latency",
            remedy="Give the 99th percentile that the answers must keep, in milliseconds: --p99-ms 20",
        )
    if request.price_per_hour is not None and request.price_per_hour < 0:
        raise UsageError(f"The price per hour is {request.price_per_hour}", expected="a number of 0 or more")
    return replace(request.settings, scenario=cast(Scenario, scenario), bound_ms=request.p99_ms)


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
    return f"{result.model}{at}: {verdict}, {figure}"


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
    notes = ["Measured under the LoadGen protocol; this is not an audited benchmark result."]
    results: tuple[LoadResult, ...] = ()
    if isinstance(found, LoadResult):
        results = (found,)
    elif isinstance(found, LoadComparison):
        results = found.dense + found.pruned
    bad = [result for result in results if not result.valid]
    if bad:
        notes.append(
            f"LoadGen calls {len(bad)} of {len(results)} tests not valid: {' '.join(bad[0].reasons)}"
        )
    return notes
