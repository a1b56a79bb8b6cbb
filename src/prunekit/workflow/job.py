"""What a stage is given, and what a stage is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prunekit.ranks import ALONE, Ranks
from prunekit.recipe import Recipe
from prunekit.workload import DecidingWorkload, Split

Result = dict[str, Any]
"""What a stage found out, plain JSON; it becomes ``result.json``."""


class Watcher(Protocol):
    """Hears how a run goes on."""

    def begins(self, stage: str, why: str) -> None:
        """A stage begins, because of ``why``."""
        ...

    def progress(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a stage are made."""
        ...

    def ends(self, stage: str, seconds: float) -> None:
        """A stage has finished."""
        ...

    def kept(self, stage: str) -> None:
        """A stage is current and is not repeated."""
        ...

    def removed(self, stage: str) -> None:
        """The result of a stage that is no longer part of the run was removed."""
        ...


class Silent:
    """A watcher that says nothing."""

    def begins(self, stage: str, why: str) -> None:
        """Say nothing."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say nothing."""

    def ends(self, stage: str, seconds: float) -> None:
        """Say nothing."""

    def kept(self, stage: str) -> None:
        """Say nothing."""

    def removed(self, stage: str) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Job:
    """What a stage may use: nothing else decides its outputs.

    Attributes:
        recipe: the settings.
        workload: the deciding view; there is no way from it to test data.
        files: the outputs of earlier stages that the stage declared, by ``stage/file``.
        out: where its files go.
        seed: of this stage.
        progress: called with (steps done, steps in all).
        checkpoint: where the parent's weights are; None = it is trained.
        open_test: gives the test split; None for every stage but ``evaluate``.
        unfinished: where it may keep what a killed run of this very stage goes on from; gone when it ends.
        kept: where all stages may keep what is costly to make again; gone when the run ends.
        ranks: the processes that run the stage.
    """

    recipe: Recipe
    workload: DecidingWorkload
    files: Mapping[str, Path]
    out: Path
    seed: int
    progress: Callable[[int, int], None]
    checkpoint: Path | None = None
    open_test: Callable[[], Split] | None = None
    unfinished: Path = Path()
    kept: Path = Path()
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class Stage:
    """One stage of the workflow and everything its outputs follow from.

    Attributes:
        name: such as ``cycle-01/score``; also its directory.
        run: writes its files into ``job.out`` and returns its result.
        settings: the parts of the recipe that it depends on, by their path in it.
        reads: the outputs of earlier stages it depends on, as ``stage/file``.
        data: the splits whose content it depends on; with any of them it depends on the workload file.
        by_all: where several processes run a recipe, all of them run it; else the first, and the others wait.
    """

    name: str
    run: Callable[[Job], Result]
    settings: Mapping[str, object] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    by_all: bool = False
