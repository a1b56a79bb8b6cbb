"""Running a recipe: each stage that is not current, in order, into the run directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prunekit import __version__
from prunekit.errors import MeasurementError, PrunekitError, RecipeError, RunDirectoryError
from prunekit.measure import check_threads
from prunekit.recipe import Recipe, load_recipe
from prunekit.report import write_report
from prunekit.workflow.deciding import check_goal
from prunekit.workflow.determinism import deterministic, seeded, stage_seed
from prunekit.workflow.job import Job, Silent, Stage, Watcher
from prunekit.workflow.order import stages_of
from prunekit.workflow.outcome import Outcome, read_outcome
from prunekit.workflow.rundir import (
    RECIPE_FILE,
    Identity,
    RunDirectory,
    file_digest,
    open_run,
    read_run,
    value_digest,
    write_json,
)
from prunekit.workload import Workload, deciding, load_workload, source_digest

REPORT, FIRST_PLAN = "report", "cycle-01/plan"
REPORTED = frozenset({".json", ".parquet"})
"""The kinds of file that the report is made from."""


def run_recipe(recipe_path: Path, *, run_dir: Path | None = None, watcher: Watcher | None = None) -> Outcome:
    """Run a recipe, or what of it has not run yet or no longer holds.

    Args:
        recipe_path: the YAML file.
        run_dir: where its stages are kept; ``runs/<name>`` in the current directory if None.
        watcher: hears how it goes on.

    Raises:
        UsageError: the recipe, the workload or the run directory cannot be used.
        RunError: a stage failed; earlier stages are kept.
    """
    recipe = load_recipe(recipe_path)
    workload_path = existing(recipe_path, recipe.workload, "workload")
    if recipe.parent.checkpoint is not None:
        existing(recipe_path, recipe.parent.checkpoint, "parent.checkpoint")
    _check_threads(recipe_path, recipe)
    workload = load_workload(workload_path)
    path = run_dir if run_dir is not None else Path("runs") / recipe.name
    source = Source(workload, workload_path, _checkpoint(recipe_path, recipe, workload))
    content = recipe_path.read_bytes()
    identity = Identity(
        name=recipe.name,
        workload=os.path.relpath(workload_path.resolve(), path.resolve()),
        prunekit_version=__version__,
        recipe_digest=file_digest(recipe_path),
    )
    with open_run(path, identity, content) as directory:
        _run_stages(recipe, source, directory, watcher or Silent())
        return read_outcome(directory)


def make_report(run_dir: Path) -> Path:
    """Write the report of a run directory again, from what is in it.

    Raises:
        RunDirectoryError: it is not a run directory, it is not finished, or another process works in it.
        StorageError: the report cannot be written.
    """
    directory = read_run(run_dir)
    unfinished = _unfinished(directory)
    if unfinished:
        raise RunDirectoryError(
            f"The run is not finished: {unfinished}",
            where=str(run_dir),
            remedy="Finish it with `prunekit run` and its recipe",
        )
    with directory.locked():
        return _write_report(directory, Silent())


@dataclass(frozen=True)
class Source:
    """Where data and dense weights come from, and the digests of it all.

    Attributes:
        workload: as loaded.
        path: of its file.
        checkpoint: the parent's weights; None = it is trained.
    """

    workload: Workload
    path: Path
    checkpoint: Path | None
    _digests: dict[str, str] = field(default_factory=dict)

    def inputs(self, stage: Stage) -> dict[str, str]:
        """Digests of the workload's code and of the splits a stage uses."""
        if not stage.data:
            return {}
        found = {"workload": self._digest("workload")}
        found |= {f"data.{split}": self._digest(split) for split in stage.data}
        if stage.name == "baseline":
            found["checkpoint"] = self._digest("checkpoint")
        return found

    def _digest(self, what: str) -> str:
        if what not in self._digests:
            if what == "workload":
                self._digests[what] = source_digest(self.path)
            elif what == "checkpoint":
                self._digests[what] = file_digest(self.checkpoint) if self.checkpoint else "none"
            else:
                self._digests[what] = getattr(self.workload.splits, what).digest()
        return self._digests[what]


def _run_stages(recipe: Recipe, source: Source, directory: RunDirectory, watcher: Watcher) -> None:
    stages = stages_of(recipe)
    with deterministic(recipe.threads):
        plan = next(stage for stage in stages if stage.name == FIRST_PLAN)
        if directory.why_stale(plan.name, _inputs(plan, source, directory)):
            check_goal(recipe, deciding(source.workload))
        for name in directory.keep_only([*(stage.name for stage in stages), REPORT]):
            watcher.removed(name)
        for stage in stages:
            inputs = _inputs(stage, source, directory)
            why = directory.why_stale(stage.name, inputs)
            if not why:
                watcher.kept(stage.name)
                continue
            with _watched(watcher, stage.name, why, directory), directory.writing(stage.name, inputs) as out:
                job = _job(stage, recipe, source, directory, out, watcher)
                with seeded(job.seed):
                    write_json(out / "result.json", stage.run(job))
    _write_report(directory, watcher)


def _inputs(stage: Stage, source: Source, directory: RunDirectory) -> dict[str, str]:
    """Everything the outputs of a stage follow from, as digests."""
    return {
        "prunekit": __version__,
        **_settings(stage),
        **source.inputs(stage),
        **{name: directory.output_digest(name) for name in stage.reads},
    }


def _job(
    stage: Stage, recipe: Recipe, source: Source, directory: RunDirectory, out: Path, watcher: Watcher
) -> Job:
    return Job(
        recipe=recipe,
        workload=deciding(source.workload),
        files={name: directory.path / "stages" / name for name in stage.reads},
        out=out,
        seed=stage_seed(recipe.seed, stage.name),
        progress=lambda done, total: watcher.progress(stage.name, done, total),
        checkpoint=source.checkpoint if stage.name == "baseline" else None,
        open_test=source.workload.splits.open_test if "test" in stage.data else None,
    )


def _write_report(directory: RunDirectory, watcher: Watcher) -> Path:
    """The report depends on everything that other stages found out, timings included."""
    page = directory.stage_path(REPORT) / "report.html"
    inputs = {"prunekit": __version__, "recipe": file_digest(directory.path / RECIPE_FILE)}
    for name in directory.stages():
        record = directory.record(name)
        if name != REPORT and record is not None:
            named = {f"{name}/{file}": digest for file, digest in record.outputs.items()}
            inputs |= {file: digest for file, digest in named.items() if Path(file).suffix in REPORTED}
    why = directory.why_stale(REPORT, inputs)
    if not why:
        watcher.kept(REPORT)
        return page
    with _watched(watcher, REPORT, why, directory), directory.writing(REPORT, inputs) as out:
        write_report(directory.path, out / page.name)
        write_json(out / "result.json", {"report": page.name})
    return page


@contextmanager
def _watched(watcher: Watcher, stage: str, why: str, directory: RunDirectory) -> Iterator[None]:
    """Tell the watcher, and tell the user of an error in which stage it came up."""
    watcher.begins(stage, why)
    try:
        yield
    except PrunekitError as error:
        error.add_note(f"In the stage {stage}.")
        raise
    record = directory.record(stage)
    watcher.ends(stage, record.seconds if record else 0.0)


def _unfinished(directory: RunDirectory) -> str:
    """Which stage has not run, or is older than what it depends on; "" if there is none."""
    for stage in stages_of(load_recipe(directory.path / RECIPE_FILE)):
        record = directory.record(stage.name)
        if record is None:
            return f"the stage {stage.name} has not run"
        now = {**_settings(stage), **{name: directory.output_digest(name) for name in stage.reads}}
        older = [name for name, digest in now.items() if record.inputs.get(name) != digest]
        if older:
            return f"the stage {stage.name} is older than {older[0]}, which it depends on"
    return ""


def _settings(stage: Stage) -> dict[str, str]:
    return {f"recipe.{place}": value_digest(value) for place, value in stage.settings.items()}


def _checkpoint(recipe_path: Path, recipe: Recipe, workload: Workload) -> Path | None:
    """Where the parent's weights are; a recipe that says how to train it comes before the workload."""
    own = getattr(workload, "checkpoint", None)
    if recipe.parent.checkpoint is not None:
        return recipe_path.parent / recipe.parent.checkpoint
    if own is None or recipe.parent.model_fields_set:
        return None
    if recipe.recover.share_of_original is not None:
        raise RecipeError(
            "The workload loads the parent from a checkpoint, whose training budget is not known",
            expected="recover.epochs",
            where=f"{recipe_path}, recover.share_of_original",
        )
    return Path(own)


def _check_threads(recipe_path: Path, recipe: Recipe) -> None:
    try:
        check_threads(recipe.validate_.threads)
    except MeasurementError as error:
        raise RecipeError(
            error.given,
            expected=error.expected,
            where=f"{recipe_path}, validate.threads",
            remedy=error.remedy,
        ) from error


def existing(recipe_path: Path, name: str, place: str) -> Path:
    """A file that the recipe names, relative to the recipe."""
    path = recipe_path.parent / name
    if not path.is_file():
        raise RecipeError(
            f"There is no file {str(path)!r}",
            expected="the path of a file, relative to the recipe",
            where=f"{recipe_path}, {place}",
        )
    return path
