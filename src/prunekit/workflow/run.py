"""Running a recipe: each stage that is not current, in order, into the run directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunekit import __version__
from prunekit.errors import PrunekitError, RunDirectoryError
from prunekit.files import content_digest
from prunekit.recipe import Recipe, load_recipe
from prunekit.report import write_report
from prunekit.workflow.blame import blaming
from prunekit.workflow.deciding import check_goal
from prunekit.workflow.determinism import deterministic, seeded, stage_seed
from prunekit.workflow.job import Job, Silent, Stage, Watcher
from prunekit.workflow.opening import RECIPE_FILE, Identity, claim, open_run, read_run
from prunekit.workflow.order import stages_of
from prunekit.workflow.outcome import Outcome, read_outcome
from prunekit.workflow.rundir import RECORD_FILE, RunDirectory, found_digest, value_digest, write_json
from prunekit.workflow.source import Given, Source, open_source, read_given
from prunekit.workload import deciding

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
    given = read_given(recipe_path)
    source = open_source(given)
    path = run_dir if run_dir is not None else Path("runs") / given.recipe.name
    identity = Identity(
        name=given.recipe.name,
        workload=os.path.relpath(os.path.realpath(source.path), os.path.realpath(path)),
        prunekit_version=__version__,
        recipe_digest=content_digest(given.content),
        workload_digest=found_digest(source.path),
    )
    with open_run(path, identity) as directory:
        _run_stages(given, source, directory, identity, watcher or Silent())
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


def _run_stages(
    given: Given, source: Source, directory: RunDirectory, identity: Identity, watcher: Watcher
) -> None:
    recipe = given.recipe
    stages = stages_of(recipe)
    with deterministic(recipe.threads):
        plan = next(stage for stage in stages if stage.name == FIRST_PLAN)
        if directory.why_stale(plan.name, _inputs(plan, source, directory)):
            with blaming(given.places, recipe):
                check_goal(recipe, deciding(source.workload))
        claim(directory, identity, given.content)
        for name in directory.keep_only([*(stage.name for stage in stages), REPORT]):
            watcher.removed(name)
        for stage in stages:
            inputs = _inputs(stage, source, directory)
            why = directory.why_stale(stage.name, inputs)
            if not why:
                watcher.kept(stage.name)
                continue
            with (
                blaming(given.places, recipe, stage.name),
                _watched(watcher, stage.name, why, directory),
                directory.writing(stage.name, inputs) as out,
            ):
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
    inputs = {"prunekit": __version__, "recipe": found_digest(directory.path / RECIPE_FILE)}
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
    """Which stage has not run, has changed, or is older than what it depends on; "" if there is none."""
    for stage in stages_of(load_recipe(directory.path / RECIPE_FILE)):
        record = directory.record(stage.name)
        if record is None:
            damaged = (directory.stage_path(stage.name) / RECORD_FILE).exists()
            return f"the stage {stage.name} {f'has a damaged {RECORD_FILE}' if damaged else 'has not run'}"
        changed = directory.damaged(stage.name, record, REPORTED)
        if changed:
            return f"{changed[0]} of the stage {stage.name} is not as the stage wrote it"
        now = {**_settings(stage), **{name: directory.output_digest(name) for name in stage.reads}}
        older = [name for name, digest in now.items() if record.inputs.get(name) != digest]
        if older:
            return f"the stage {stage.name} is older than {older[0]}, which it depends on"
    return ""


def _settings(stage: Stage) -> dict[str, str]:
    return {f"recipe.{place}": value_digest(value) for place, value in stage.settings.items()}
