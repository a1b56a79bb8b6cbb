"""What a run starts from: the recipe file, and the workload and the checkpoint that it names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prunekit.errors import MeasurementError, RecipeError
from prunekit.files import found_digest
from prunekit.measure import Target, check_target, check_threads
from prunekit.recipe import Places, Recipe, load_recipe
from prunekit.workflow.blame import blaming
from prunekit.workflow.job import Stage
from prunekit.workflow.targets import target_of, validation_target
from prunekit.workload import Workload, load_workload, source_digest


@dataclass(frozen=True)
class Given:
    """A recipe file.

    Attributes:
        path: where it is.
        content: its bytes.
        recipe: what it says.
        places: of its keys.
    """

    path: Path
    content: bytes
    recipe: Recipe
    places: Places


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
    checkpoint: Path | None = None
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
                self._digests[what] = found_digest(self.checkpoint) if self.checkpoint else "none"
            else:
                self._digests[what] = getattr(self.workload.splits, what).digest()
        return self._digests[what]


def read_given(path: Path) -> Given:
    """Read a recipe file.

    Raises:
        RecipeError: it cannot be used.
    """
    return Given(path=path, recipe=load_recipe(path), content=path.read_bytes(), places=Places(path))


def open_source(given: Given) -> Source:
    """Load the workload that a recipe names, and find its checkpoint.

    Raises:
        RecipeError: a file that it names is missing, or it asks for what cannot be.
        WorkloadError: the workload cannot be used.
    """
    recipe, places = given.recipe, given.places
    path = workload_path(given)
    if recipe.parent.checkpoint is not None:
        _existing(given, recipe.parent.checkpoint, "parent.checkpoint")
    if recipe.by_target or recipe.target is not None:
        _check_target(target_of(recipe), "target", places)
    _check_target(validation_target(recipe), "validate", places)
    workload = open_workload(given)
    return Source(workload, path, _checkpoint(given, workload))


def _check_target(target: Target, section: str, places: Places) -> None:
    """Refuse a target that this machine does not have.

    Raises:
        RecipeError: it names the key.
    """
    key = f"{section}.threads"
    try:
        check_threads(target.threads)
        key = section
        check_target(target)
    except MeasurementError as error:
        raise RecipeError(
            error.given, expected=error.expected, where=places.of(key), remedy=error.remedy
        ) from error


def open_workload(given: Given) -> Workload:
    """Load the workload that a recipe names.

    Raises:
        RecipeError: there is no such file.
        WorkloadError: it cannot be used.
    """
    path = workload_path(given)
    with blaming(given.places, given.recipe):
        return load_workload(path)


def workload_path(given: Given) -> Path:
    """The workload file that a recipe names.

    Raises:
        RecipeError: there is no such file.
    """
    return _existing(given, given.recipe.workload, "workload")


def _checkpoint(given: Given, workload: Workload) -> Path | None:
    """Where the parent's weights are; a recipe that says how to train it comes before the workload."""
    recipe = given.recipe
    own = getattr(workload, "checkpoint", None)
    if recipe.parent.checkpoint is not None:
        return given.path.parent / recipe.parent.checkpoint
    if own is None or recipe.parent.model_fields_set:
        return None
    if recipe.recover.share_of_original is not None:
        raise RecipeError(
            "The workload loads the parent from a checkpoint, whose training budget is not known",
            expected="recover.epochs",
            where=given.places.of("recover.share_of_original"),
        )
    return Path(own)


def _existing(given: Given, name: str, key: str) -> Path:
    """A file that the recipe names, relative to the recipe."""
    path = given.path.parent / name
    if not path.is_file():
        raise RecipeError(
            f"There is no file {str(path)!r}",
            expected="the path of a file, relative to the recipe",
            where=given.places.of(key),
        )
    return path
