"""The stages of a run directory: each appears in it whole, with the digests of what it read and wrote.

Rules: (1) a stage writes into a hidden sibling of its directory, which is flushed to the disk and renamed
into place together with ``stage.json``; (2) one process at a time works in a run directory; (3) nothing that
has changed since its stage wrote it is used, ``stage.json`` itself included.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prunekit.errors import RunDirectoryError, StorageError
from prunekit.files import PARTIAL, content_digest, file_digest, flush, found_digest

LOCK_FILE, RECORD_FILE = ".lock", "stage.json"
OLD = ".old"
UNFINISHED = "unfinished"
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
class StageRecord:
    """What a finished stage read and wrote; ``stage.json``.

    Attributes:
        stage: its name, such as ``cycle-01/score``.
        inputs: digest by name of everything its outputs follow from.
        outputs: SHA-256 by file name.
        started: UTC, ISO 8601.
        seconds: wall time.
        digest: SHA-256 of all of the above.
    """

    stage: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    started: str
    seconds: float
    digest: str = ""

    def sealed(self) -> StageRecord:
        """The same with its digest."""
        content = {**asdict(self), "digest": ""}
        return replace(self, digest=value_digest(content))


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

    @property
    def kept(self) -> Path:
        """Where the stages of a run keep what is costly to make again, until the run ends."""
        return self.path / UNFINISHED / "kept"

    def unfinished(self, stage: str, inputs: Mapping[str, str]) -> Path:
        """Where a stage that follows from these inputs keeps what it can go on from, until it ends."""
        return self.path / UNFINISHED / stage.replace("/", "-") / value_digest(dict(inputs))[:16]

    def has_unfinished(self) -> bool:
        """A stage was begun and can be gone on with."""
        return any((self.path / UNFINISHED).glob("*/*/*/*"))

    def forget_unfinished(self) -> None:
        """The run has ended: nothing is to be gone on with."""
        with storage_errors(self.path):
            remove(self.path / UNFINISHED)

    def stages(self) -> list[str]:
        """The names of the stages that have a record, in the order of their names."""
        root = self.path / "stages"
        records = [*root.glob(f"*/{RECORD_FILE}"), *root.glob(f"*/*/{RECORD_FILE}")]
        return sorted(str(record.parent.relative_to(root)) for record in records)

    def record(self, stage: str) -> StageRecord | None:
        """Read the record of a finished stage; None if there is none, or it is not as the stage wrote it."""
        try:
            content = json.loads((self.stage_path(stage) / RECORD_FILE).read_text())
            record = StageRecord(**content)
            intact = record == record.sealed()
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return record if intact and record.stage == stage else None

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

    def damaged(self, stage: str, record: StageRecord, kinds: Collection[str] | None = None) -> list[str]:
        """The output files of a stage that are missing or not as it wrote them.

        Args:
            stage: its name.
            record: its record.
            kinds: only files with these suffixes; None = all.
        """
        return [
            name
            for name, digest in record.outputs.items()
            if (kinds is None or Path(name).suffix in kinds)
            and found_digest(self.stage_path(stage) / name) != digest
        ]

    @contextlib.contextmanager
    def writing(self, stage: str, inputs: Mapping[str, str]) -> Iterator[Path]:
        """Give an empty directory to write a stage's files into; at the end they appear all at once.

        After an exception nothing is left of it, and an earlier result of the stage stays as it was.

        Raises:
            StorageError: the disk is full, read-only or broken.
        """
        final = self.stage_path(stage)
        partial, old = sibling(final, PARTIAL), sibling(final, OLD)
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        try:
            with storage_errors(final, only=STORAGE_TROUBLE):
                remove(partial)
                partial.mkdir(parents=True)
                yield partial
                outputs = {
                    str(file.relative_to(partial)): _settle(file)
                    for file in sorted(partial.rglob("*"))
                    if file.is_file()
                }
                seconds = round(time.monotonic() - clock, 3)
                record = StageRecord(stage, dict(inputs), outputs, started, seconds)
                write_json(partial / RECORD_FILE, asdict(record.sealed()))
                flush(partial)
                if final.exists():
                    remove(old)
                    final.rename(old)
                partial.rename(final)
                flush(final.parent)
                remove(old)
                remove(self.unfinished(stage, inputs).parent)
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
        lock = self.path / LOCK_FILE
        with storage_errors(self.path):
            file = lock.open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise self._in_use(file.read(100).strip()) from error
            if not _is_at(
                file.fileno(), lock
            ):  # whoever held the lock has just taken back the directory that it had made
                raise self._in_use("which is just ending")
            with storage_errors(self.path):
                file.truncate(0)
                file.write(f"process {os.getpid()}")
                file.flush()
            yield

    def _in_use(self, who: str) -> RunDirectoryError:
        return RunDirectoryError(
            f"Another prunekit is at work in this run directory ({who})",
            where=str(self.path),
            remedy="Wait until it has finished, or choose another run directory with --run-dir",
        )

    def keep_only(self, stages: Collection[str]) -> list[str]:
        """Remove the results of stages that no longer are part of the run; return their names."""
        gone = [stage for stage in self.stages() if stage not in stages]
        with storage_errors(self.path):
            for stage in gone:
                place = self.stage_path(stage)
                remove(place)
                if "/" in stage and not any(place.parent.iterdir()):
                    place.parent.rmdir()
        return gone


def value_digest(value: object) -> str:
    """SHA-256 of a value made of plain JSON types."""
    return content_digest(json.dumps(plain(value), sort_keys=True).encode())


def as_json(value: object) -> str:
    """A value as indented JSON; what is not a finite number becomes null."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON and flush the file to the disk."""
    path.write_text(as_json(value))
    flush(path)


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
            f"It cannot be read or written: {error.strerror or error}",
            where=str(error.filename or path),
            remedy="Make room or give access there, or choose another place with --run-dir; finished stages "
            "are kept",
        ) from error


def sibling(path: Path, suffix: str) -> Path:
    """The hidden name beside ``path`` of what is not in place yet, or no longer."""
    return path.with_name(f".{path.name}{suffix}")


def remove(path: Path) -> None:
    """Remove a file or a directory with all in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _settle(path: Path) -> str:
    """Make sure a file is on the disk; return its digest."""
    flush(path)
    return file_digest(path)
