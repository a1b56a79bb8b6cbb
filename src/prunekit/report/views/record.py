"""What stands behind the numbers: parity, proof, frozen axes, environment, and how to reproduce the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prunekit.report.figures import (
    NARROW_SPACE,
    Figure,
    chosen,
    count,
    derived,
    measured,
    missing,
    percent,
    readable,
    significant,
)
from prunekit.report.reading import Entry, RunRecord

NAMED_AT_FIRST = 3
ENVIRONMENT_NAMES = {
    "cpu": "CPU",
    "isa": "instruction sets",
    "gpus": "GPUs",
    "os": "operating system",
    "load_1m": "load, last minute",
    "packages": "",
}


@dataclass(frozen=True)
class ParityRow:
    """One model in two runtimes; None for ``passed`` where it was not judged.

    Attributes:
        agreement: share of the examples with the same answer.
        reason: what went wrong; "" where it passed.
    """

    name: str
    passed: bool | None
    max_abs: Figure
    max_rel: Figure
    tolerance: Figure
    agreement: Figure
    reason: str


@dataclass(frozen=True)
class ParityChain:
    """All steps, why the tolerance is what it is, and how far the pruned model is from its parent.

    Attributes:
        quantization: how both were quantized afterwards; "" where they ship as exported.
    """

    rows: tuple[ParityRow, ...]
    tolerance_reason: str
    parent_to_pruned: Figure | None
    quantization: str


@dataclass(frozen=True)
class LawRow:
    """One law of one cycle's removal."""

    cycle: int
    law: str
    passed: bool | None
    groups: Figure
    error: Figure
    tolerance: Figure
    batch_sizes: str
    note: str


@dataclass(frozen=True)
class Form:
    """Whether a cycle gave the user's own class or a graph module, and why."""

    cycle: int
    form: str
    reason: str
    source: str


@dataclass(frozen=True)
class FrozenRow:
    """Axes that the same operator froze for the same reason on the same line."""

    operator: str
    reason: str
    line: str
    axes: tuple[tuple[str, Figure], ...]
    source: str

    @property
    def first(self) -> tuple[tuple[str, Figure], ...]:
        """The axes that are named at once."""
        return self.axes[:NAMED_AT_FIRST]

    @property
    def others(self) -> tuple[tuple[str, Figure], ...]:
        """The axes behind "and more"."""
        return self.axes[NAMED_AT_FIRST:]


@dataclass(frozen=True)
class StageRow:
    """One stage: when it ran, how long, and the digests of what it wrote."""

    name: str
    started: str
    seconds: Figure
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Reproduction:
    """What is needed to run it again."""

    command: str
    install: str
    recipe: str | None
    digests: tuple[tuple[str, str, str], ...]
    stages: tuple[StageRow, ...]
    seconds: Figure


def parity(run: RunRecord) -> ParityChain:
    """Show the parity chain, from each model in PyTorch to the same model in ONNX Runtime, in floats."""
    entry = run.result("validate").at("parity")
    parent = entry.at("parent_to_pruned", "max_rel")
    return ParityChain(
        rows=tuple(_parity_row(step) for step in entry.at("steps").elements()),
        tolerance_reason=entry.at("tolerance_reason").text,
        parent_to_pruned=measured(parent) if parent.known else None,
        quantization=run.result("export").at("quantization", "statement").text,
    )


def _parity_row(step: Entry) -> ParityRow:
    nested = step.at("difference")
    difference = nested if nested.known else step
    passed = step.at("passed").flag
    return ParityRow(
        name=step.at("name").text,
        passed=passed,
        max_abs=measured(difference.at("max_abs")),
        max_rel=measured(difference.at("max_rel")),
        tolerance=chosen(step.at("tolerance")),
        agreement=percent(difference.at("argmax_agreement")),
        reason="" if passed else step.at("reason").text,
    )


def laws(run: RunRecord) -> tuple[LawRow, ...]:
    """List every law that was checked, cycle by cycle."""
    return tuple(
        LawRow(
            cycle=cycle.number,
            law=law.at("law").text,
            passed=law.at("passed").flag,
            groups=_length(law.at("groups")),
            error=measured(law.at("max_relative_error")),
            tolerance=chosen(law.at("tolerance")),
            batch_sizes=", ".join(_plain(size) for size in law.at("batch_sizes").elements()),
            note=law.at("note").text,
        )
        for cycle in run.cycles
        for law in cycle.prune.at("proof", "laws").elements()
    )


def forms(run: RunRecord) -> tuple[Form, ...]:
    """Say for every cycle which form the model has, and why; equal ones in a row are said once."""
    found: list[Form] = []
    for cycle in run.cycles:
        form = cycle.prune.at("form")
        reason = cycle.prune.first("form_reason", "reason").text
        repeated = found and (found[-1].form, found[-1].reason) == (form.text, reason)
        if form.known and not repeated:
            found.append(Form(cycle.number, form.text, reason, form.source))
    return tuple(found)


def frozen(run: RunRecord) -> tuple[FrozenRow, ...]:
    """List the frozen axes, those with the same operator, reason and line together, most axes first."""
    together: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in run.result("baseline").at("frozen").elements():
        key = (entry.at("operator").text, entry.at("reason").text, entry.at("source").text)
        together.setdefault(key, []).append(entry)
    rows = [
        FrozenRow(
            operator=operator,
            reason=reason,
            line=line,
            axes=tuple((entry.at("name").text, count(entry.at("size"))) for entry in entries),
            source=entries[0].source,
        )
        for (operator, reason, line), entries in together.items()
    ]
    return tuple(sorted(rows, key=lambda row: -len(row.axes)))


def environment(run: RunRecord) -> tuple[tuple[str, str, str], ...]:
    """List what was recorded about the machine: (name, value, source)."""
    entry = run.result("validate").at("environment")
    return tuple((name, value.strip(), source) for name, value, source in _flat(entry, ""))


def reproduction(run: RunRecord) -> Reproduction:
    """Gather command, recipe, digests and times of the stages."""
    version = run.run.at("prunekit_version").text
    stages = tuple(_stage(name, entry) for name, entry in run.stages.items())
    every = Entry(None, "stages/*/stage.json#seconds")
    seconds = [value for entry in run.stages.values() if (value := entry.at("seconds").number) is not None]
    total = sum(seconds)
    return Reproduction(
        command="prunekit run recipe.yaml",
        install=f"pip install prunekit=={version}" if version else "",
        recipe=run.recipe,
        digests=tuple(_digests(run)),
        stages=stages,
        seconds=derived(total, f"{significant(total)}{NARROW_SPACE}s", every) if seconds else missing(every),
    )


def _digests(run: RunRecord) -> Iterator[tuple[str, str, str]]:
    recipe = run.run.at("recipe_digest")
    if recipe.known:
        yield "recipe", recipe.text, recipe.source
    for side in ("dense", "pruned", "dense.int8", "pruned.int8"):
        digest = run.result("export").at(side, "sha256")
        if digest.known:
            yield f"{side} ONNX file", digest.text, digest.source
    plans = [name for name in run.stages if name.endswith("/plan")]
    for name in plans[-1:]:
        digest = run.stages[name].at("outputs", "plan.json")
        if digest.known:
            yield "plan", digest.text, digest.source


def _stage(name: str, entry: Entry) -> StageRow:
    return StageRow(
        name=name,
        started=readable(entry.at("started").text),
        seconds=measured(entry.at("seconds"), "s"),
        outputs=tuple((file, digest.text) for file, digest in entry.at("outputs").items()),
    )


def _flat(entry: Entry, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Names and values of nested objects; the inner ones carry the outer's name."""
    for key, value in entry.items():
        name = f"{prefix} {ENVIRONMENT_NAMES.get(key, key.replace('_', ' '))}".strip()
        if isinstance(value.value, dict):
            yield from _flat(value, name)
        else:
            yield name, _plain(value), value.source


def _plain(entry: Entry) -> str:
    """A recorded value as people write it."""
    if isinstance(entry.value, bool):
        return "yes" if entry.value else "no"
    if isinstance(entry.value, list):
        return ", ".join(_plain(part) for part in entry.elements()) or "none"
    if isinstance(entry.value, float):
        return measured(entry).text
    if isinstance(entry.value, int) and abs(entry.value) >= 10_000:
        return f"{entry.value:,}"
    return entry.text or "not recorded"


def _length(entry: Entry) -> Figure:
    """The length of a recorded list."""
    if not isinstance(entry.value, list):
        return count(entry)
    return Figure(f"{len(entry.value):,}", str(len(entry.value)), f"number of entries in {entry.source}")
