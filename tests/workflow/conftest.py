"""A tiny recipe, and one finished run of it that the tests copy."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from prunekit.workflow import run_recipe

WORKLOAD = Path(__file__).with_name("tiny_workload.py")
RECIPE = """\
name: tiny
workload: workload.py
seed: 3
goal: {kind: macs, remove: 0.5, tolerance: 0.05}
parent: {epochs: 3, batch_size: 16}
schedule: {cycles: 2}
importance: {criterion: taylor, batch_size: 16}
recover: {share_of_original: 0.5, batch_size: 16}
validate: {pairs: 20, warmup: 2}
evaluate: {resamples: 1000}
gates:
  - max_quality_drop: {limit: 0.9, by: point}
  - min_size_reduction: 0.1
"""
CYCLE = ("score", "plan", "prune", "recover")
STAGES = (
    "baseline",
    *(f"cycle-01/{stage}" for stage in CYCLE),
    *(f"cycle-02/{stage}" for stage in CYCLE),
    "export",
    "validate",
    "evaluate",
    "gate",
    "report",
)


@dataclass
class Log:
    """A watcher that remembers what it heard."""

    ran: dict[str, str] = field(default_factory=dict)
    kept_stages: list[str] = field(default_factory=list)
    removed_stages: list[str] = field(default_factory=list)
    steps: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)

    def begins(self, stage: str, why: str) -> None:
        self.ran[stage] = why

    def progress(self, stage: str, done: int, total: int) -> None:
        self.steps.setdefault(stage, []).append((done, total))

    def ends(self, stage: str, seconds: float) -> None:
        self.ended.append(stage)

    def kept(self, stage: str) -> None:
        self.kept_stages.append(stage)

    def removed(self, stage: str) -> None:
        self.removed_stages.append(stage)


@dataclass(frozen=True)
class Project:
    """A folder with a recipe, its workload, and a run directory."""

    path: Path
    recipe_in: str = "."
    run_in: str = "run"

    @property
    def recipe(self) -> Path:
        return self.path / self.recipe_in / "recipe.yaml"

    @property
    def run_dir(self) -> Path:
        return self.path / self.run_in

    def file(self, name: str) -> Path:
        return self.run_dir / "stages" / name

    def moved(self, recipe_to: str = "", run_to: str = "") -> "Project":
        """The recipe with its workload, or the run directory, at another place below the folder."""
        new = replace(self, recipe_in=recipe_to or self.recipe_in, run_in=run_to or self.run_in)
        for parent in (new.recipe.parent, new.run_dir.parent):
            parent.mkdir(parents=True, exist_ok=True)
        for name in ("recipe.yaml", "workload.py") if recipe_to else ():
            self.recipe.with_name(name).rename(new.recipe.with_name(name))
        if run_to:
            self.run_dir.rename(new.run_dir)
        return new

    def edit(self, old: str, new: str) -> None:
        text = self.recipe.read_text()
        assert old in text
        self.recipe.write_text(text.replace(old, new))

    def run(self) -> tuple[Log, object]:
        log = Log()
        return log, run_recipe(self.recipe, run_dir=self.run_dir, watcher=log)


def make_project(path: Path) -> Project:
    path.mkdir(parents=True, exist_ok=True)
    shutil.copy(WORKLOAD, path / "workload.py")
    (path / "recipe.yaml").write_text(RECIPE)
    return Project(path)


@pytest.fixture
def project(tmp_path) -> Project:
    """A recipe that has not run."""
    return make_project(tmp_path / "project")


@pytest.fixture(scope="session")
def _finished_once(tmp_path_factory):
    project = make_project(tmp_path_factory.mktemp("finished") / "project")
    log, outcome = project.run()
    return project, log, outcome


@pytest.fixture
def finished(_finished_once, tmp_path) -> Project:
    """A copy of a recipe that has run."""
    shutil.copytree(_finished_once[0].path, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture
def first_run(_finished_once):
    """The run that ``finished`` is a copy of: project, log, outcome. Only to be read."""
    return _finished_once
