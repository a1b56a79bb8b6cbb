"""From the record to the page that docs/ shows."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Iterable
from textwrap import fill
from typing import Any

from benchmarks.criteria.study import BASELINES, Contest, Study

HEAD = """# Criteria x models x sparsities

`python -m benchmarks.criteria`; every row, the environment and the dates are in `criteria.json`. One shot:
the same share of every group's units goes, and nothing is updated (but where recovery is named). A cell is
the middle of {seeds} seeds with their range; **bold** is better than both `random` and `l1` in every seed,
each seed compared with its own. With {seeds} seeds that happens by chance now and then, and there are many
cells: it is a hint, no test. Nothing was chosen on the test splits. All statistics of a model come from one
call of `pk.collect` per seed. CPU seconds are of one thread on a machine that did other work as well.
"""


def page(record: dict[str, Any]) -> str:
    """The whole page: a section per model that was measured, and how long scoring takes."""
    seeds = max(part["seeds"] for part in record.values())
    parts = [HEAD.format(seeds=seeds)]
    for name, part in record.items():
        if name == "resnet50":
            continue
        study: Study = importlib.import_module(f"benchmarks.criteria.{name}").STUDY
        parts.append(section(study, part))
    if "resnet50" in record:
        parts.append(timing(record["resnet50"]))
    return "\n".join(parts)


def section(study: Study, part: dict[str, Any]) -> str:
    """One model: what the figures are, what calibration took, a table per contest and figure."""
    prose = [study.about, calibration(part), proofs(part)]
    lines = [f"## {study.name}\n", *(fill(text, width=116) + "\n" for text in prose)]
    for contest in study.contests:
        for figure, form in study.figures.items():
            dense = spread([row[figure] for row in part["dense"]], form)
            lines.append(f"### {contest.title.capitalize()}: {figure} (dense {dense})\n")
            lines.append(table(study, contest, figure, part["rows"]))
    return "\n".join(lines)


def calibration(part: dict[str, Any]) -> str:
    """What the passes took, and the slowest score."""
    passes = part["calibrations"]
    taken = spread([one["cpu_seconds"] for one in passes], "{:.1f}")
    slowest = max(part["rows"], key=lambda row: row["score_cpu_seconds"])
    held = max(one["held_bytes"] for one in passes) / 1e6
    process = max(one["process_bytes"] for one in passes) / 1e9
    return (
        f"Calibration of all criteria together: {taken} CPU seconds a seed, {held:,.0f} MB held by `collect` "
        f"beside the model and the data ({process:.1f} GB the whole process, with model and libraries). "
        f"Slowest to score: `{slowest['criterion']}`, {slowest['score_cpu_seconds']:.2g} CPU seconds."
    )


def proofs(part: dict[str, Any]) -> str:
    """What the removal that was carried out and proven says."""
    lines = []
    for proof in part["proofs"]:
        largest = max(proof["apart"].values())
        same = f"those of the table within {largest:.1g} of their value" if largest else "exactly the table's"
        verdict = "passed" if proof["passed"] else "did not pass"
        lines.append(
            f"At {proof['sparsity']:.0%} of the {proof['contest']} by L1, `pk.remove` gave the "
            f"{proof['form']}, `pk.verify` {verdict}, and its figures are {same}."
        )
    return " ".join(lines)


def table(study: Study, contest: Contest, figure: str, rows: list[dict[str, Any]]) -> str:
    """Criteria x sparsities."""
    form = study.figures[figure]
    lines = [
        "| criterion | " + " | ".join(f"{sparsity:.0%} of the units" for sparsity in study.sparsities) + " |",
        "|---" * (1 + len(study.sparsities)) + "|",
    ]
    for criterion in contest.criteria:
        cells = []
        for sparsity in study.sparsities:
            found = by_seed(rows, contest, criterion, sparsity, figure)
            cell = spread(found.values(), form)
            lines_to_beat = [by_seed(rows, contest, name, sparsity, figure) for name in BASELINES]
            wins = criterion not in BASELINES and all(
                beats(found, line, lower=study.lower_is_better) for line in lines_to_beat
            )
            cells.append(f"**{cell}**" if wins else cell)
        lines.append(f"| `{criterion}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def by_seed(
    rows: list[dict[str, Any]], contest: Contest, criterion: str, sparsity: float, figure: str
) -> dict[int | None, float]:
    """The figure by seed, or under None alone where no seed changes it."""
    wanted = (contest.title, criterion, sparsity)
    return {
        row["seed"]: row[figure]
        for row in rows
        if (row["contest"], row["criterion"], row["sparsity"]) == wanted
    }


def beats(found: dict[int | None, float], line: dict[int | None, float], *, lower: bool) -> bool:
    """Whether a criterion is better than a baseline in every seed."""
    sign = -1 if lower else 1
    seeds = (found.keys() | line.keys()) - {None} or {None}
    return all(
        sign * found.get(seed, found.get(None, 0.0)) > sign * line.get(seed, line.get(None, 0.0))
        for seed in seeds
    )


def spread(values: Iterable[float], form: str) -> str:
    """The middle and the range, or the one value."""
    values = list(values)
    if len(values) == 1:
        return form.format(values[0])
    low, high = form.format(min(values)), form.format(max(values))
    return f"{form.format(statistics.median(values))} ({low} to {high})"


def timing(part: dict[str, Any]) -> str:
    """How long scoring takes on ResNet-50."""
    bare = part["bare"]
    prose = (
        f"Random weights, {part['units']:,} channels, {part['batches']} batches of {part['pictures']} "
        "pictures of 224 x 224, CPU seconds on one thread (`python -m benchmarks.criteria --model "
        f"resnet50`). The bare passes over the same batches take {bare['forward']:.1f} s forward and "
        f"{bare['both']:.1f} s forward and backward; all statistics of the table together, in one call of "
        f"`collect`, {part['together']:.1f} s with {part['held_bytes'] / 1e6:,.0f} MB held. `collect` in the "
        "table gathers the statistics of that criterion alone."
    )
    lines = [
        "## How long scoring takes: ResNet-50\n",
        fill(prose, width=116) + "\n",
        "| criterion | `collect` | of it beyond the bare passes | `score` |",
        "|---|---|---|---|",
    ]
    for row in part["rows"]:
        collected = f"{row['calibration']:.1f}" if row["passes"] else "-"
        beyond = f"{row['calibration'] - row['passes']:+.1f}" if row["passes"] else "-"
        lines.append(f"| `{row['criterion']}` | {collected} | {beyond} | {row['score']:.2f} |")
    return "\n".join(lines) + "\n"
