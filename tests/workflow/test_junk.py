"""Directories that are not what they should be: one paragraph, exit code 2 or 3, and nothing is touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunekit.cli import app

JUNK = {}
"""By name: how a run directory is spoilt, exit codes of run (None: it may run) and report, what both say."""
DAMAGE = {}
"""By name: how one stage is spoilt, what report says."""


def junk(run, report, says):
    return lambda make: JUNK.setdefault(make.__name__, (make, run, report, says))


def damage(report_says):
    return lambda make: DAMAGE.setdefault(make.__name__, (make, report_says))


@junk(None, 2, "no run.json in it")
def an_empty_directory(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


@junk(2, 2, "no run.json")
def unrelated_files(path: Path) -> None:
    (path / "run.json").unlink()


@junk(2, 2, "It is a file")
def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


@junk(3, 2, "")
def a_link_to_itself(path: Path) -> None:
    shutil.rmtree(path)
    path.with_name("loop").symlink_to("loop")
    path.symlink_to("loop")


@junk(2, 2, "run.json is damaged")
def binary_run_json(path: Path) -> None:
    (path / "run.json").write_bytes(bytes(range(256)))


@junk(3, 2, "run.json")
def a_directory_called_run_json(path: Path) -> None:
    (path / "run.json").unlink()
    (path / "run.json").mkdir()


@junk(3, 3, "run.json: It cannot be read or written: Permission denied")
def a_run_json_without_permission(path: Path) -> None:
    (path / "run.json").chmod(0)


@junk(3, 3, "Permission denied")
def a_directory_without_permission_to_write(path: Path) -> None:
    (path / ".lock").unlink()
    path.chmod(0o555)


@junk(3, 2, "")
def a_file_called_stages(path: Path) -> None:
    shutil.rmtree(path / "stages")
    (path / "stages").write_text("x")


@damage("latency.parquet of the stage validate is not as the stage wrote it")
def a_truncated_table(path: Path) -> None:
    os.truncate(path / "stages/validate/latency.parquet", 100)


@damage("result.json of the stage evaluate is not as the stage wrote it")
def a_missing_result(path: Path) -> None:
    (path / "stages/evaluate/result.json").unlink()


@damage("the stage gate has not run")
def a_missing_stage(path: Path) -> None:
    shutil.rmtree(path / "stages/gate")


@damage("the stage gate has not run")
def a_file_in_place_of_a_stage(path: Path) -> None:
    shutil.rmtree(path / "stages/gate")
    (path / "stages/gate").write_text("x")


@damage("the stage gate has a damaged stage.json")
def a_record_that_is_a_list(path: Path) -> None:
    (path / "stages/gate/stage.json").write_text("[]")


@damage("The recipe cannot be read")
def a_missing_recipe(path: Path) -> None:
    (path / "recipe.yaml").unlink()


def arguments(command, project):
    given = [project.recipe, "--run-dir", project.run_dir] if command == "run" else [project.run_dir]
    return [command, *map(str, given)]


def outcome_of(command: str, project, *, as_process: bool) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; as a process, without root's right to read and write everything."""
    if not as_process:
        done = CliRunner().invoke(app, arguments(command, project))
        return done.exit_code, done.stdout, done.stderr
    unprivileged = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    call = [*unprivileged, sys.executable, "-m", "prunekit.cli", *arguments(command, project)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def assert_one_paragraph(said: str, *, with_lines: bool = False) -> None:
    lines = [line for line in said.splitlines() if not (with_lines and line.startswith("baseline: "))]
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert "unexpected" not in lines[0]


@pytest.mark.parametrize("name", JUNK)
def test_junk_ends_with_one_paragraph(finished, name):
    make, run, report, says = JUNK[name]
    as_process = "without_permission" in name or name == "a_file"
    if as_process and os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may read and write anything")
    make(finished.run_dir)
    try:
        for command, code in (("run", run), ("report", report)):
            if code is not None:
                found, out, said = outcome_of(command, finished, as_process=as_process)
                assert (found, out) == (code, "")
                assert says in said
                assert_one_paragraph(said, with_lines=command == "run")
    finally:
        if finished.run_dir.is_dir():
            finished.run_dir.chmod(0o755)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_report_and_repaired_by_run(finished, name):
    make, says = DAMAGE[name]
    make(finished.run_dir)
    refused = CliRunner().invoke(app, arguments("report", finished))
    assert refused.exit_code == 2
    assert says in refused.stderr
    assert_one_paragraph(refused.stderr)
    assert CliRunner().invoke(app, arguments("run", finished)).exit_code == 0
    assert CliRunner().invoke(app, arguments("report", finished)).exit_code == 0
