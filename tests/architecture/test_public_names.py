"""What each room shows is what its ``__all__`` says; the package stays light and its papers complete."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

import prunekit

ROOT = Path(__file__).parents[2]
ROOMS = [
    "prunekit",
    *(part.name for part in pkgutil.walk_packages(prunekit.__path__, "prunekit.") if part.ispkg),
]
STABLE = {"allocate", "find_groups", "mask", "prune", "remove", "score", "trace", "verify"}
IMPORTED_FOR_TYPES = {"annotations", "Any", "TYPE_CHECKING"}


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_those_of_all(room):
    module = importlib.import_module(room)
    named = set(module.__all__)
    shown = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name not in IMPORTED_FOR_TYPES
    }
    assert shown <= named
    assert [name for name in named if not hasattr(module, name)] == []
    assert len(module.__all__) == len(named)


def test_the_stable_names_are_there():
    assert set(prunekit.__all__) >= STABLE


def test_the_stable_names_can_be_called_whatever_was_imported_before():
    """A room named like one of them would hide it once the room is imported."""
    code = (
        f"import {', '.join(ROOMS)}; import prunekit as pk; "
        f"print([name for name in {sorted(STABLE)} if not callable(getattr(pk, name))])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("room", ["prunekit", "prunekit.evaluate", "prunekit.files", "prunekit.report"])
def test_judging_and_reporting_start_without_torch(room):
    code = f"import sys, {room}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "False", run.stderr


def test_every_dependency_is_pinned_and_from_nowhere_special():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []
    pinned = {_normal(line.partition("==")[0]) for line in lines}
    names = {_normal(re.split(r"[\[<>=!~; ]", one)[0]) for one in wanted} - {"prunekit"}
    assert names - pinned == set()
    assert "torch==2.13.0" in lines


def test_scripts_can_be_run():
    scripts = [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]
    assert {path.name for path in scripts} >= {"setup-env", "demo", "test", "check", "run"}
    assert [path.name for path in scripts if not os.access(path, os.X_OK)] == []


def test_the_readme_has_a_line_for_every_folder():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = [*(path for path in (ROOT / "src" / "prunekit").iterdir()), *(path for path in ROOT.iterdir())]
    names = [path.name for path in folders if path.is_dir() and not path.name.startswith((".", "_"))]
    unlisted = [name for name in names if f"{name}/" not in readme and not _is_ignored(name)]
    assert unlisted == []


def test_the_readme_has_a_line_for_every_file_between_the_rooms():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in (ROOT / "src" / "prunekit").glob("[!_]*.py")]
    assert [
        name for name in files if not re.search(rf"^  {re.escape(name)} ", readme, flags=re.MULTILINE)
    ] == []


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_ignored(name: str) -> bool:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    return any(Path(name).match(pattern.rstrip("/")) for pattern in ignored)
