"""Opening a run directory: whose it is, and that nothing is left of a run in which no stage finished.

Rules: (1) a run directory belongs to one recipe: the same name, and either the recipe and the workload file
have the content they had when the directory was written last (then it does not matter where they stand now),
or the workload file stands where it stood as seen from the directory (then both may have been edited);
(2) what a killed run left behind is removed at the next start; (3) an error before any stage has finished
leaves the disk as it was.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import RunDirectoryError
from prunekit.files import PARTIAL, write_atomically
from prunekit.workflow.rundir import (
    LOCK_FILE,
    OLD,
    UNFINISHED,
    RunDirectory,
    as_json,
    remove,
    storage_errors,
)

RUN_FILE, RECIPE_FILE, STAGES = "run.json", "recipe.yaml", "stages"


@dataclass(frozen=True)
class Identity:
    """What a run directory belongs to; ``run.json``.

    Attributes:
        name: of the recipe.
        workload: path of the workload file relative to the run directory.
        prunekit_version: that wrote last.
        recipe_digest: SHA-256 of the recipe file.
        workload_digest: SHA-256 of the workload file.
    """

    name: str
    workload: str
    prunekit_version: str
    recipe_digest: str
    workload_digest: str


@contextlib.contextmanager
def open_run(path: Path, identity: Identity) -> Iterator[RunDirectory]:
    """Open a run directory to work in, made if need be, and hold its lock.

    It stays as it is until :func:`claim` or a stage writes to it. After an exception before any stage has
    finished, a directory that was not there before is gone again, and so are its parents.

    Args:
        path: the directory.
        identity: what it must belong to.

    Raises:
        RunDirectoryError: it belongs to another recipe, is something else, or another process works in it.
        StorageError: it cannot be read or written.
    """
    made: list[Path] = []
    directory = RunDirectory(path)
    try:
        with storage_errors(path):
            _refuse_foreign(path, identity)
            _make(path, made)
        with directory.locked():
            with storage_errors(path):
                _refuse_foreign(path, identity)
                _clean(path)
                fresh = not (path / RUN_FILE).exists()
            try:
                yield directory
            except BaseException:
                if fresh and not directory.stages() and not directory.has_unfinished():
                    _take_back(path)
                raise
    except BaseException:
        for place in reversed(made):
            with contextlib.suppress(OSError):  # it is not empty: something has been finished in it
                place.rmdir()
        raise


def claim(directory: RunDirectory, identity: Identity, recipe: bytes) -> None:
    """Write down whose the directory is from now on.

    Args:
        directory: as :func:`open_run` gave it.
        identity: what it belongs to.
        recipe: the recipe file, which is kept as ``recipe.yaml``.

    Raises:
        StorageError: it cannot be written to.
    """
    with storage_errors(directory.path):
        write_atomically(directory.path / RECIPE_FILE, recipe)
        write_atomically(directory.path / RUN_FILE, as_json(asdict(identity)).encode())


def read_run(path: Path) -> RunDirectory:
    """Open a run directory only to read it.

    Raises:
        RunDirectoryError: it is not a run directory, or its ``run.json`` is damaged.
        StorageError: it cannot be read.
    """
    with storage_errors(path):
        if not (path / RUN_FILE).is_file():
            found = f"There is no {RUN_FILE} in it" if path.is_dir() else "There is no such directory"
            raise RunDirectoryError(
                "It is a file" if path.is_file() else found,
                expected="a run directory, as `prunekit run` makes it",
                where=str(path),
            )
        _belongs(path)
    return RunDirectory(path)


def _make(path: Path, made: list[Path]) -> None:
    """Make a directory with its parents; ``made`` gets those that were not there, the outermost first."""
    for place in (*reversed(path.absolute().parents), path.absolute()):
        if not place.exists():
            place.mkdir(exist_ok=True)
            made.append(place)


def _take_back(path: Path) -> None:
    """Rule 3, for what is inside the directory."""
    with contextlib.suppress(OSError):  # the error that led here is what the user must hear of
        for name in (STAGES, UNFINISHED, RECIPE_FILE, RUN_FILE, LOCK_FILE):
            remove(path / name)


def _refuse_foreign(path: Path, identity: Identity) -> None:
    """Rule 1."""
    if not path.exists():
        return
    if not path.is_dir():
        raise RunDirectoryError(
            "It is a file",
            expected="a directory",
            where=str(path),
            remedy="Choose another with --run-dir",
        )
    if not (path / RUN_FILE).exists():
        if any(not entry.name.startswith(".") for entry in path.iterdir() if entry.name != RECIPE_FILE):
            raise RunDirectoryError(
                f"The directory has files in it and no {RUN_FILE}",
                expected="a run directory, an empty directory or none",
                where=str(path),
                remedy="Choose another with --run-dir",
            )
        return
    found = _belongs(path)
    mine = asdict(identity)
    if found["name"] != mine["name"]:
        raise _foreign(path, f"its name is {found['name']!r}", f"the name {mine['name']!r}")
    same_place = found["workload"] == mine["workload"]
    same_content = all(found[key] == mine[key] for key in ("recipe_digest", "workload_digest"))
    if not (same_place or same_content):
        raise _foreign(
            path,
            f"its workload is {found['workload']!r}",
            f"the workload {mine['workload']!r}, or the recipe and the workload file unchanged",
        )


def _foreign(path: Path, found: str, expected: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"It belongs to another recipe: {found}",
        expected=expected,
        where=str(path),
        remedy="Choose another run directory with --run-dir, or delete this one",
    )


def _belongs(path: Path) -> dict[str, Any]:
    """What ``run.json`` says.

    Raises:
        RunDirectoryError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        content = json.loads((path / RUN_FILE).read_text())
        return asdict(Identity(**content))
    except (ValueError, TypeError, RecursionError) as error:
        raise RunDirectoryError(
            f"Its {RUN_FILE} is damaged",
            where=str(path),
            remedy="Choose another run directory with --run-dir, or delete this one",
        ) from error


def _clean(path: Path) -> None:
    """Rule 2."""
    leftovers = [entry for suffix in (PARTIAL, OLD) for entry in path.glob(f".*{suffix}")]
    leftovers += [entry for suffix in (PARTIAL, OLD) for entry in path.glob(f"{STAGES}/**/.*{suffix}")]
    for entry in leftovers:
        remove(entry)
