"""A run directory as values that know where they stand; nothing is computed or formatted here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prunekit.errors import RunDirectoryError
from prunekit.files import content_digest

PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CYCLE = re.compile(r"cycle-(\d+)")
LARGEST = 1e30
"""Beyond this nothing is a measurement; sums and scales of smaller ones stay finite."""
NOT_READ = frozenset({"report"})
"""Stages that the report is not about: its own."""


@dataclass(frozen=True)
class Entry:
    """A value of the run directory and where it stands.

    Attributes:
        value: as read from JSON; None = not recorded.
        source: ``file#key.key.0``, relative to the run directory; a key that is not a plain word is written
            ``["key"]``.
    """

    value: Any
    source: str

    def at(self, *path: str | int) -> Entry:
        """Return what lies under these keys or indices; an entry of None where something is missing."""
        entry = self
        for step in path:
            entry = Entry(_step(entry.value, step), _joined(entry.source, step))
        return entry

    def first(self, *keys: str) -> Entry:
        """Return the first of these keys that is recorded; the first one named if none is."""
        return next((found for key in keys if (found := self.at(key)).known), self.at(keys[0]))

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Go through a JSON object; nothing where it is not one."""
        if isinstance(self.value, dict):
            yield from ((key, self.at(key)) for key in self.value)

    def elements(self) -> Iterator[Entry]:
        """Go through a JSON list; nothing where it is not one."""
        if isinstance(self.value, list):
            yield from (self.at(index) for index in range(len(self.value)))

    @property
    def known(self) -> bool:
        """Whether anything is recorded here."""
        return self.value is not None

    @property
    def number(self) -> float | None:
        """The value if it is a number that can be meant, below 10^30, else None."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            return None
        return self.value if abs(self.value) < LARGEST else None

    @property
    def flag(self) -> bool | None:
        """The value if it is true or false, else None."""
        return self.value if isinstance(self.value, bool) else None

    @property
    def text(self) -> str:
        """The value as text; "" where nothing is recorded, JSON where it has parts."""
        if self.value is None:
            return ""
        if isinstance(self.value, str):
            return self.value
        return json.dumps(self.value, ensure_ascii=False)


@dataclass(frozen=True)
class LatencyTimes:
    """The raw times of a paired latency measurement.

    Attributes:
        dense_ms: ``[pairs]`` float64, milliseconds, finite.
        pruned_ms: ``[pairs]`` float64, milliseconds, finite.
        source: the file, relative to the run directory.
    """

    dense_ms: npt.NDArray[np.float64]
    pruned_ms: npt.NDArray[np.float64]
    source: str


@dataclass(frozen=True)
class Cycle:
    """One score/target/plan/prune/recover cycle, numbered from 1; entries of None for what has not run."""

    number: int
    score: Entry
    target: Entry
    plan: Entry
    prune: Entry
    recover: Entry


@dataclass(frozen=True)
class RunRecord:
    """All that the report reads of a run directory.

    Attributes:
        run: ``run.json``.
        recipe: the recipe's text, or None.
        results: ``result.json`` by stage, such as ``baseline`` or ``cycle-01/plan``.
        stages: ``stage.json`` by stage, in the order of the workflow.
        latency: the raw times, or None.
        problems: what could not be read or does not fit its recorded digest, in sentences.
    """

    run: Entry
    recipe: str | None
    results: Mapping[str, Entry]
    stages: Mapping[str, Entry]
    latency: LatencyTimes | None
    problems: tuple[str, ...] = ()

    def result(self, stage: str) -> Entry:
        """Return a stage's ``result.json``; an entry of None if it has not run."""
        return self.results.get(stage, Entry(None, f"stages/{stage}/result.json"))

    @property
    def cycles(self) -> tuple[Cycle, ...]:
        """The cycles that have begun, in order."""
        names = {name.partition("/")[0] for name in self.results if CYCLE.match(name)}
        return tuple(
            Cycle(_cycle_number(name), *(self.result(f"{name}/{part}") for part in CYCLE_STAGES))
            for name in sorted(names, key=_cycle_number)
        )


CYCLE_STAGES = ("score", "target", "plan", "prune", "recover")
ORDER = ("baseline", "cycle", "export", "validate", "evaluate", "gate")


@dataclass
class _Reader:
    """Reads files under ``root`` and notes what is wrong with them."""

    root: Path
    problems: list[str] = field(default_factory=list)

    def json(self, place: str, *, digest: str | None = None) -> Entry:
        content = self.content(place, digest=digest)
        if content is None:
            return Entry(None, place)
        try:
            return Entry(json.loads(content.decode("utf-8")), place)
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{place} is not readable JSON ({error}); it is shown as not measured.")
            return Entry(None, place)

    def content(self, place: str, *, digest: str | None = None) -> bytes | None:
        path = self.root / place
        if not path.is_file():
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            self.problems.append(f"{place} could not be read ({error.strerror}).")
            return None
        if digest and content_digest(content) != digest.removeprefix("sha256:"):
            self.problems.append(f"{place} has changed since its stage wrote it: its digest does not fit.")
        return content


def read_run(run_dir: Path) -> RunRecord:
    """Read the JSON, Parquet and recipe of a run directory.

    Stages that have not run are simply absent. Files that are damaged, or that changed after their stage
    wrote them, are named in ``problems``.

    Args:
        run_dir: a directory that ``prunekit run`` made.

    Raises:
        RunDirectoryError: it is no directory, or has no readable ``run.json``.
    """
    reader = _Reader(run_dir)
    run = reader.json("run.json")
    if not isinstance(run.value, dict):
        missing = "no run.json" if run_dir.is_dir() else "no directory of this name"
        raise RunDirectoryError(
            f"There is {missing}" if not reader.problems else reader.problems[0],
            expected="a run directory, which prunekit run makes and which holds run.json and stages/",
            where=str(run_dir),
            remedy="Give the directory that prunekit run was told to write to",
        )
    stages: dict[str, Entry] = {}
    results: dict[str, Entry] = {}
    for name in _stage_names(run_dir / "stages"):
        stage = reader.json(f"stages/{name}/stage.json")
        digest = stage.at("outputs", "result.json").value
        result = reader.json(f"stages/{name}/result.json", digest=digest if isinstance(digest, str) else None)
        if stage.known:
            stages[name] = stage
        if result.known:
            results[name] = result
    recipe = reader.content("recipe.yaml")
    return RunRecord(
        run=run,
        recipe=recipe.decode("utf-8", errors="replace") if recipe is not None else None,
        results=results,
        stages=stages,
        latency=_latency(reader, stages.get("validate")),
        problems=tuple(reader.problems),
    )


def _stage_names(stages: Path) -> list[str]:
    """Names of the stage directories, in the order of the workflow; cycles hold several each."""
    if not stages.is_dir():
        return []
    names = [
        path.name
        for path in stages.iterdir()
        if path.is_dir() and path.name not in NOT_READ and not path.name.startswith(".")
    ]
    found: list[str] = []
    for name in names:
        if CYCLE.fullmatch(name):
            found += [f"{name}/{part}" for part in CYCLE_STAGES if (stages / name / part).is_dir()]
        else:
            found.append(name)
    return sorted(found, key=_place_in_order)


def _place_in_order(name: str) -> tuple[int, int, int, str]:
    top, _, part = name.partition("/")
    kind = "cycle" if part else top
    within = CYCLE_STAGES.index(part) if part else 0
    number = _cycle_number(top) if part else 0
    return ORDER.index(kind) if kind in ORDER else len(ORDER), number, within, name


def _cycle_number(name: str) -> int:
    found = CYCLE.match(name)
    return int(found[1]) if found else 0


def _latency(reader: _Reader, stage: Entry | None) -> LatencyTimes | None:
    place = "stages/validate/latency.parquet"
    digest = stage.at("outputs", "latency.parquet").value if stage else None
    content = reader.content(place, digest=digest if isinstance(digest, str) else None)
    if content is None:
        return None
    try:
        table = pq.read_table(pa.BufferReader(content), columns=["dense_ms", "pruned_ms"])
        dense, pruned = (
            np.asarray(table[name].to_numpy(), dtype=np.float64) for name in ("dense_ms", "pruned_ms")
        )
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reader.problems.append(f"{place} is not a table of dense_ms and pruned_ms ({error}).")
        return None
    usable = np.isfinite(dense) & np.isfinite(pruned)
    if not usable.all():
        reader.problems.append(f"{place} holds {int((~usable).sum())} pairs that are not finite; left out.")
    return LatencyTimes(dense[usable], pruned[usable], place) if usable.any() else None


def _step(value: Any, step: str | int) -> Any:
    if isinstance(value, dict) and isinstance(step, str):
        return value.get(step)
    if isinstance(value, list) and isinstance(step, int) and 0 <= step < len(value):
        return value[step]
    return None


def _joined(source: str, step: str | int) -> str:
    if isinstance(step, str) and not PLAIN_KEY.fullmatch(step):
        part, joint = f"[{json.dumps(step, ensure_ascii=False)}]", ""
    else:
        part, joint = str(step), "."
    return source + (f"#{part}" if "#" not in source else f"{joint}{part}")
