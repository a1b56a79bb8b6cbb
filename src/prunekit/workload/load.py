"""Loading a workload from the user's own Python file."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from prunekit.errors import WorkloadError
from prunekit.files import content_digest, file_digest
from prunekit.workload.checks import check_workload
from prunekit.workload.protocol import Workload

_MODULE_PREFIX = "prunekit_workload_"


def load_workload(path: Path | str, name: str = "workload") -> Workload:
    """Import the file at ``path``, call its function ``name`` and check the workload that it returns.

    The file runs: it is the user's own Python. Its folder is importable for its siblings, which are read
    afresh at every load; one workload's folder is importable at a time.

    Args:
        path: a Python file.
        name: its function without required arguments that returns a workload.

    Raises:
        WorkloadError: the file is missing or fails (with the line where it did), has no such function, or
            what the function returns is not a workload with usable data.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise WorkloadError(
            "there is no such file", expected="a Python file that defines a workload", where=str(path)
        )
    try:
        module = _import_file(path)
        make = getattr(module, name, None)
        if not callable(make):
            raise WorkloadError(
                f"it has no function {name}()",
                expected=f"`def {name}():` that returns a Workload",
                where=str(path),
            )
        made: Any = make()
    except (Exception, SystemExit) as error:
        raise _located(error, path) from error
    try:
        return check_workload(made)
    except WorkloadError as error:
        raise _located(error, path) from error


def source_digest(path: Path | str) -> str:
    """SHA-256 over the workload file and every other ``.py`` file of its folder, by name and content."""
    path = Path(path).resolve()
    files = [path, *sorted(path.parent.glob("*.py"))]
    return content_digest("".join(f"{file.name} {file_digest(file)};" for file in files).encode())


def _import_file(path: Path) -> ModuleType:
    _forget_earlier_workloads()
    name = _MODULE_PREFIX + content_digest(str(path).encode())[:12]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    # Compiled here and not by the loader: a cached .pyc is taken for current when a file of the same size
    # is rewritten within the same second.
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def _forget_earlier_workloads() -> None:
    """Drop the modules and folders of earlier workloads: siblings of equal names must not be mixed up."""
    folders = {
        Path(module.__file__).parent
        for name, module in sys.modules.items()
        if name.startswith(_MODULE_PREFIX) and module.__file__
    }
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).parent in folders:
            del sys.modules[name]
    for folder in folders:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _located(error: BaseException, path: Path) -> WorkloadError:
    """The user's error as one sentence with the file and line where the user's code was."""
    where = str(path)
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    else:
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent == path.parent
        ]
        if frames:
            where = f"{frames[-1].filename}:{frames[-1].lineno}"
    if isinstance(error, WorkloadError):
        inner = f": {error.where}" if error.where and error.where != where else ""
        return WorkloadError(error.given, expected=error.expected, where=where + inner, remedy=error.remedy)
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return WorkloadError(
        f"the workload file failed with {type(error).__name__}: {message}".rstrip(": "),
        where=where,
        remedy="It is your own Python: make it run with `python -i` first",
    )
