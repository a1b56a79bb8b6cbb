"""The whole page as values: what the templates show and nothing they would have to work out."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.report.figures import Metric, metric_of, readable
from prunekit.report.reading import Entry, RunRecord
from prunekit.report.views import decision, groups, path, quality, record, sides, speed, target


@dataclass(frozen=True)
class Page:
    """Everything on the page, in its order."""

    name: str
    workload: str
    version: str
    date: str
    problems: tuple[str, ...]
    metric: Metric
    verdict: decision.Verdict
    goal: decision.Goal | None
    target: target.TargetView | None
    sides: tuple[sides.Side, ...]
    setting: str
    cycles: path.Cycles
    training: tuple[path.Plot, ...]
    widths: tuple[path.WidthRow, ...]
    slices: quality.Slices
    flips: quality.FlipCounts | None
    latency: speed.Latency | None
    parity: record.ParityChain
    laws: tuple[record.LawRow, ...]
    forms: tuple[record.Form, ...]
    groups: groups.Matrix | None
    frozen: tuple[record.FrozenRow, ...] | None
    environment: tuple[tuple[str, str, str], ...]
    reproduction: record.Reproduction


def page(run: RunRecord) -> Page:
    """Work out the page of a run."""
    metric = metric_of(run.result("evaluate"), run.result("baseline"))
    has_frozen = isinstance(run.result("baseline").at("frozen").value, list)
    return Page(
        name=run.run.at("name").text or "unnamed run",
        workload=run.run.at("workload").text,
        version=run.run.at("prunekit_version").text,
        date=readable(_date(run).text),
        problems=run.problems,
        metric=metric,
        verdict=decision.verdict(run, metric),
        goal=decision.goal(run),
        target=target.target(run),
        sides=sides.sides(run, metric),
        setting=speed.setting(run),
        cycles=path.cycles(run, metric),
        training=path.training(run, metric),
        widths=path.widths(run),
        slices=quality.slices(run, metric),
        flips=quality.flips(run),
        latency=speed.latency(run),
        parity=record.parity(run),
        laws=record.laws(run),
        forms=record.forms(run),
        groups=groups.matrix(run),
        frozen=record.frozen(run) if has_frozen else None,
        environment=record.environment(run),
        reproduction=record.reproduction(run),
    )


def _date(run: RunRecord) -> Entry:
    """When the latency was measured, or else when the last stage began."""
    measured = run.result("validate").at("environment").first("date", "time")
    started = [entry.at("started") for entry in run.stages.values() if entry.at("started").known]
    return measured if measured.known or not started else started[-1]
