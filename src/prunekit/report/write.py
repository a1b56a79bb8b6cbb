"""From a run directory to one HTML file that needs nothing else."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined

from prunekit.errors import StorageError
from prunekit.files import write_atomically
from prunekit.report.reading import read_run
from prunekit.report.view import page

DEFAULT_PLACE = Path("stages", "report", "report.html")


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of a run directory: one file, without scripts and without anything to download.

    Stages that have not run and keys that are missing are shown as "not measured". The same run directory
    gives the same bytes. The file is complete under its name, or not there at all.

    Args:
        run_dir: a directory that ``prunekit run`` made; only its JSON, Parquet and recipe are read.
        out: the file; ``stages/report/report.html`` in the run directory if None.

    Returns:
        The path of the file.

    Raises:
        RunDirectoryError: ``run_dir`` is not a run directory.
        StorageError: the file could not be written.
    """
    run_dir = Path(run_dir)
    content = render(run_dir)
    target = Path(out) if out is not None else run_dir / DEFAULT_PLACE
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise StorageError(
            f"The report could not be written: {error.strerror or error}",
            where=str(target),
            remedy="Check that the directory is writable and has space, or give another place with out",
        ) from error
    return target


def render(run_dir: Path) -> str:
    """Return the report as HTML.

    Raises:
        RunDirectoryError: ``run_dir`` is not a run directory.
    """
    templates = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html").render(page=page(read_run(run_dir)))


def _template(name: str) -> str:
    return files("prunekit.report").joinpath(name).read_text(encoding="utf-8")
