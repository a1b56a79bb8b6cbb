"""Running a recipe: each stage that is not current, in order, into the run directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from prunekit import __version__
from prunekit.errors import PrunekitError, RunDirectoryError
from prunekit.files import content_digest, found_digest
from prunekit.ranks import ALONE, Ranks
from prunekit.recipe import load_recipe
from prunekit.report import write_report
from prunekit.workflow.blame import blaming
from prunekit.workflow.deciding import check_goal
from prunekit.workflow.determinism import deterministic, seeded, stage_seed
from prunekit.workflow.job import Job, Result, Silent, Stage, Watcher
from prunekit.workflow.opening import RECIPE_FILE, Identity, claim, open_run, read_run
from prunekit.workflow.order import stages_of
from prunekit.workflow.outcome import Outcome, read_outcome
from prunekit.workflow.reaching import check_targeted
from prunekit.workflow.rundir import RECORD_FILE, RunDirectory, value_digest, write_json
from prunekit.workflow.shipping import check_int8
from prunekit.workflow.source import Given, Source, open_source, read_given
from prunekit.workload import deciding

REPORT, FIRST_PLAN = "report", "cycle-01/plan"
REPORTED = frozenset({".json", ".parquet"})
"""The kinds of file that the report is made from."""


def run_recipe(
    recipe_path: Path,
    *,
    run_dir: Path | None = None,
    watcher: Watcher | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Run a recipe, or what of it has not run yet or no longer holds.

    With several processes, calibration and training are shared between all of them; the first does the rest
    and is the only one that writes into the run directory, which all of them can read.

    Args:
        recipe_path: the YAML file.
        run_dir: where its stages are kept; ``runs/<name>`` in the current directory if None.
        watcher: hears how it goes on.
        ranks: the processes that run it together; all call this with the same recipe.

    Raises:
        UsageError: the recipe, the workload or the run directory cannot be used.
        RunError: a stage failed; earlier stages are kept.
    """
    with ranks.together("reading the recipe"):
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
    ranks.check_same([identity.recipe_digest, identity.workload_digest], "the recipe and its workload")
    with ExitStack() as stack:
        with ranks.together("opening the run directory"):
            opened = open_run(path, identity) if ranks.is_first else nullcontext(RunDirectory(path))
            directory = stack.enter_context(opened)
        run = _Run(given, source, directory, watcher or Silent(), ranks)
        with deterministic(given.recipe.threads):
            run.prepare(identity)
            for stage in run.stages:
                run.stage(stage)
        with ranks.together("the report"):
            if ranks.is_first:
                directory.forget_unfinished()
                _write_report(directory, run.watcher)
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


class _Run:
    """A recipe that runs in its directory."""

    def __init__(
        self, given: Given, source: Source, directory: RunDirectory, watcher: Watcher, ranks: Ranks
    ) -> None:
        self.given, self.source, self.directory = given, source, directory
        self.watcher, self.ranks = watcher, ranks
        self.stages = stages_of(given.recipe)

    def prepare(self, identity: Identity) -> None:
        """Find out what cannot work before anything is trained, and take hold of the directory."""
        with self.ranks.together("checking the goal"):
            if not self.ranks.is_first:
                return
            recipe = self.given.recipe
            checks = {FIRST_PLAN: check_targeted if recipe.by_target else check_goal}
            if recipe.ships_int8:
                checks["export"] = check_int8
            for stage in self.stages:
                if stage.name in checks and self.directory.why_stale(
                    stage.name, _inputs(stage, self.source, self.directory)
                ):
                    with blaming(self.given.places, recipe):
                        checks[stage.name](recipe, deciding(self.source.workload))
            claim(self.directory, identity, self.given.content)
            for name in self.directory.keep_only([*(stage.name for stage in self.stages), REPORT]):
                self.watcher.removed(name)

    def stage(self, stage: Stage) -> None:
        """Run a stage unless it is current."""
        with self.ranks.together(f"looking at the stage {stage.name}"):
            inputs = _inputs(stage, self.source, self.directory) if self.ranks.is_first else {}
            why = self.directory.why_stale(stage.name, inputs) if self.ranks.is_first else ""
            why, inputs = self.ranks.first([why, inputs], "what a stage depends on")
        if not why:
            self.watcher.kept(stage.name)
            return
        with self.ranks.together(f"the stage {stage.name}"):
            if self.ranks.is_first:
                self._lead(stage, inputs, why)
            elif stage.by_all:
                with TemporaryDirectory() as out:
                    self._work(stage, inputs, Path(out))

    def _lead(self, stage: Stage, inputs: dict[str, str], why: str) -> None:
        with (
            blaming(self.given.places, self.given.recipe, stage.name),
            _watched(self.watcher, stage.name, why, self.directory),
            self.directory.writing(stage.name, inputs) as out,
        ):
            write_json(out / "result.json", self._work(stage, inputs, out))

    def _work(self, stage: Stage, inputs: dict[str, str], out: Path) -> Result:
        job = self._job(stage, inputs, out)
        with seeded(job.seed):
            return stage.run(job)

    def _job(self, stage: Stage, inputs: dict[str, str], out: Path) -> Job:
        recipe, source, directory = self.given.recipe, self.source, self.directory
        return Job(
            recipe=recipe,
            workload=deciding(source.workload),
            files={name: directory.path / "stages" / name for name in stage.reads},
            out=out,
            seed=stage_seed(recipe.seed, stage.name),
            progress=lambda done, total: self.watcher.progress(stage.name, done, total),
            checkpoint=source.checkpoint if stage.name == "baseline" else None,
            open_test=source.workload.splits.open_test if "test" in stage.data else None,
            unfinished=directory.unfinished(stage.name, inputs),
            kept=directory.kept,
            ranks=self.ranks,
        )


def _inputs(stage: Stage, source: Source, directory: RunDirectory) -> dict[str, str]:
    """Everything the outputs of a stage follow from, as digests."""
    return {
        "prunekit": __version__,
        **_settings(stage),
        **source.inputs(stage),
        **{name: directory.output_digest(name) for name in stage.reads},
    }


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
