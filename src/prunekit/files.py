"""Files that are there whole or not at all, and digests of their content; needs nothing but Python."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""How the name of a file or directory ends while it is being written; it begins with a dot."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def found_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, or "" where it cannot be read."""
    try:
        return file_digest(path)
    except OSError:
        return ""


def content_digest(content: bytes | memoryview) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole, or as it was before.

    Raises:
        OSError: the disk or the directory refused; nothing is left of the attempt.
    """
    with written_atomically(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write a file to; at the end it is put in place.

    After an exception nothing is left of it, and ``path`` stays as it was.

    Raises:
        OSError: the disk or the directory refused.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(written: Path, path: Path) -> None:
    """Flush a finished file to the disk and give it its name, in place of what has that name.

    Args:
        written: on the same file system as ``path``.
        path: the name.

    Raises:
        OSError: the disk or the directory refused.
    """
    flush(written)
    written.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Make sure that a file, or the list of names in a directory, is on the disk.

    Raises:
        OSError: the disk refused.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
