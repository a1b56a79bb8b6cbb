"""The run directory: each stage appears in it whole, with the digests of what it read and wrote.

Rules: (1) a stage writes into a hidden sibling of its directory, which is fsynced and renamed into place
together with ``stage.json``; (2) what a killed run left behind is removed at the next start; (3) one process
at a time works in a run directory; (4) a run directory belongs to one recipe name and one workload.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prunekit.errors import RunDirectoryError, StorageError

RUN_FILE, RECIPE_FILE, LOCK_FILE, RECORD_FILE = "run.json", "recipe.yaml", ".lock", "stage.json"
PARTIAL, OLD = ".partial", ".old"
STORAGE_TROUBLE = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.ENOTDIR,
    }
)


@dataclass(frozen=True)
class Identity:
    """What a run directory belongs to; ``run.json``.

    Attributes:
        name: of the recipe.
        workload: path of the workload file relative to the run directory.
        prunekit_version: that wrote last.
        recipe_digest: SHA-256 of the recipe file.
    """

    name: str
    workload: str
    prunekit_version: str
    recipe_digest: str


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage read and wrote; ``stage.json``.

    Attributes:
        stage: its name, such as ``cycle-01/score``.
        inputs: digest by name of everything its outputs follow from.
        outputs: SHA-256 by file name.
        started: UTC, ISO 8601.
        seconds: wall time.
    """

    stage: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    started: str
    seconds: float


@dataclass(frozen=True)
class RunDirectory:
    """A run directory that this process holds the lock of, or only reads.

    Attributes:
        path: where it is.
    """

    path: Path

    def stage_path(self, stage: str) -> Path:
        """Where a stage's files are, once it is finished."""
        return self.path / "stages" / stage

    def stages(self) -> list[str]:
        """The names of the stages that have a record, in the order of their names."""
        root = self.path / "stages"
        records = [*root.glob(f"*/{RECORD_FILE}"), *root.glob(f"*/*/{RECORD_FILE}")]
        return sorted(str(record.parent.relative_to(root)) for record in records)

    def record(self, stage: str) -> StageRecord | None:
        """Read the record of a finished stage; None if there is none that can be read."""
        try:
            content = json.loads((self.stage_path(stage) / RECORD_FILE).read_text())
            record = StageRecord(**content)
        except (OSError, ValueError, TypeError):
            return None
        maps = isinstance(record.inputs, dict) and isinstance(record.outputs, dict)
        return record if maps and record.stage == stage else None

    def output_digest(self, name: str) -> str:
        """The recorded digest of an output, given as ``stage/file``; "" if there is none."""
        stage, _, file = name.rpartition("/")
        record = self.record(stage)
        return record.outputs.get(file, "") if record else ""

    def why_stale(self, stage: str, inputs: Mapping[str, str]) -> str:
        """Say why a stage must run, or "" if it is current: same inputs, outputs as it left them."""
        if not self.stage_path(stage).exists():
            return "it has not run yet"
        record = self.record(stage)
        if record is None:
            return f"its {RECORD_FILE} is damaged"
        names = sorted({*inputs, *record.inputs})
        changed = [name for name in names if inputs.get(name) != record.inputs.get(name)]
        if changed:
            return f"changed: {', '.join(changed)}"
        damaged = self.damaged(stage, record)
        if damaged:
            return f"damaged: {', '.join(damaged)}"
        return ""

    def damaged(self, stage: str, record: StageRecord) -> list[str]:
        """The output files of a stage that are missing or not as it wrote them."""
        return [
            name
            for name, digest in record.outputs.items()
            if file_digest(self.stage_path(stage) / name) != digest
        ]

    @contextlib.contextmanager
    def writing(self, stage: str, inputs: Mapping[str, str]) -> Iterator[Path]:
        """Give an empty directory to write a stage's files into; at the end they appear all at once.

        After an exception nothing is left of it, and an earlier result of the stage stays as it was.

        Raises:
            StorageError: the disk is full, read-only or broken.
        """
        final = self.stage_path(stage)
        partial, old = _sibling(final, PARTIAL), _sibling(final, OLD)
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        try:
            with storage_errors(final, only=STORAGE_TROUBLE):
                _remove(partial)
                partial.mkdir(parents=True)
                yield partial
                outputs = {
                    str(file.relative_to(partial)): _settle(file)
                    for file in sorted(partial.rglob("*"))
                    if file.is_file()
                }
                seconds = round(time.monotonic() - clock, 3)
                record = StageRecord(stage, dict(inputs), outputs, started, seconds)
                write_json(partial / RECORD_FILE, asdict(record))
                _fsync(partial)
                if final.exists():
                    _remove(old)
                    final.rename(old)
                partial.rename(final)
                _fsync(final.parent)
                _remove(old)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory's lock; the operating system lets go of it when the process ends.

        Raises:
            RunDirectoryError: another process holds it.
            StorageError: the lock file cannot be written.
        """
        with storage_errors(self.path):
            file = (self.path / LOCK_FILE).open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise RunDirectoryError(
                    f"Another prunekit is at work in this run directory ({file.read(100).strip()})",
                    where=str(self.path),
                    remedy="Wait until it has finished, or choose another run directory with --run-dir",
                ) from error
            with storage_errors(self.path):
                file.truncate(0)
                file.write(f"process {os.getpid()}")
                file.flush()
            yield

    def keep_only(self, stages: Collection[str]) -> list[str]:
        """Remove the results of stages that no longer are part of the run; return their names."""
        gone = [stage for stage in self.stages() if stage not in stages]
        with storage_errors(self.path):
            for stage in gone:
                place = self.stage_path(stage)
                _remove(place)
                if "/" in stage and not any(place.parent.iterdir()):
                    place.parent.rmdir()
        return gone


@contextlib.contextmanager
def open_run(path: Path, identity: Identity, recipe: bytes) -> Iterator[RunDirectory]:
    """Open a run directory to work in, made if need be, and hold its lock.

    Args:
        path: the directory.
        identity: what it must belong to.
        recipe: the recipe file, which is kept as ``recipe.yaml``.

    Raises:
        RunDirectoryError: it belongs to another recipe, is something else, or another process works in it.
        StorageError: it cannot be written to.
    """
    with storage_errors(path):
        if path.exists() and not path.is_dir():
            raise RunDirectoryError(
                "It is a file",
                expected="a directory",
                where=str(path),
                remedy="Choose another with --run-dir",
            )
        _refuse_foreign(path, identity)
        path.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(path)
    with directory.locked():
        with storage_errors(path):
            _refuse_foreign(path, identity)
            _clean(path)
            write_atomically(path / RECIPE_FILE, recipe)
            write_atomically(path / RUN_FILE, _json(asdict(identity)).encode())
        yield directory


def read_run(path: Path) -> RunDirectory:
    """Open a run directory only to read it.

    Raises:
        RunDirectoryError: it is not a run directory.
    """
    if not (path / RUN_FILE).is_file():
        raise RunDirectoryError(
            f"There is no {RUN_FILE} in it" if path.is_dir() else "There is no such directory",
            expected="a run directory, as `prunekit run` makes it",
            where=str(path),
        )
    return RunDirectory(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def value_digest(value: object) -> str:
    """SHA-256 of a value made of plain JSON types."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON and fsync the file."""
    path.write_text(_json(value))
    _fsync(path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = _sibling(path, PARTIAL)
    try:
        temporary.write_bytes(content)
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def plain(value: Any) -> Any:
    """Return a value as plain JSON types; what is not a finite number becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str | Path):
        return str(value)
    return value


@contextlib.contextmanager
def storage_errors(path: Path, *, only: Collection[int] | None = None) -> Iterator[None]:
    """Turn an OSError, or only those of these error numbers, into a StorageError."""
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        raise StorageError(
            f"It cannot be written: {error.strerror or error}",
            where=str(error.filename or path),
            remedy="Make room or give write access there, or choose another place with --run-dir; finished "
            "stages are kept",
        ) from error


def _json(value: object) -> str:
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def _refuse_foreign(path: Path, identity: Identity) -> None:
    """Rule 4."""
    if not path.is_dir():
        return
    run_file = path / RUN_FILE
    if not run_file.exists():
        if any(not entry.name.startswith(".") for entry in path.iterdir() if entry.name != RECIPE_FILE):
            raise RunDirectoryError(
                f"The directory has files in it and no {RUN_FILE}",
                expected="a run directory, an empty directory or none",
                where=str(path),
                remedy="Choose another with --run-dir",
            )
        return
    try:
        content = json.loads(run_file.read_text())
        belongs = {"name": content["name"], "workload": content["workload"]}
    except (ValueError, TypeError, KeyError) as error:
        raise RunDirectoryError(
            f"Its {RUN_FILE} is damaged",
            where=str(path),
            remedy="Choose another run directory with --run-dir, or delete this one",
        ) from error
    for key, found in belongs.items():
        if found != getattr(identity, key):
            raise RunDirectoryError(
                f"It belongs to another recipe: its {key} is {found!r}",
                expected=f"the {key} {getattr(identity, key)!r}",
                where=str(path),
                remedy="Choose another run directory with --run-dir, or delete this one",
            )


def _clean(path: Path) -> None:
    """Rule 2."""
    leftovers = [entry for suffix in (PARTIAL, OLD) for entry in path.glob(f".*{suffix}")]
    leftovers += [entry for suffix in (PARTIAL, OLD) for entry in path.glob(f"stages/**/.*{suffix}")]
    for entry in leftovers:
        _remove(entry)


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _settle(path: Path) -> str:
    """Make sure a file is on the disk; return its digest."""
    _fsync(path)
    digest = file_digest(path)
    assert digest, path
    return digest


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
