"""The run directory: stages appear whole or not at all, and only what changed is run again."""

import contextlib
import errno
import fcntl
import hashlib
import json
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from prunekit.errors import RunDirectoryError, StorageError
from prunekit.files import found_digest
from prunekit.workflow.opening import Identity, claim, open_run, read_run
from prunekit.workflow.rundir import plain, value_digest

IDENTITY = Identity("digits", "../workload.py", "0.1.0", "abc", "fed")
RECIPE = b"name: digits\n"


@contextlib.contextmanager
def claimed(path, identity=IDENTITY, recipe=RECIPE):
    with open_run(path, identity) as directory:
        claim(directory, identity, recipe)
        yield directory


@pytest.fixture
def run(tmp_path):
    with claimed(tmp_path / "run") as directory:
        yield directory


def write(directory, stage, inputs, content="x"):
    with directory.writing(stage, inputs) as out:
        (out / "weights.bin").write_text(content)


def tree(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()
    }


def test_a_finished_stage_is_current_until_an_input_changes(run):
    assert run.why_stale("cycle-01/score", {"a": "1"}) == "it has not run yet"
    write(run, "cycle-01/score", {"a": "1", "b": "2"})
    assert run.why_stale("cycle-01/score", {"a": "1", "b": "2"}) == ""
    assert run.why_stale("cycle-01/score", {"a": "1", "b": "3"}) == "changed: b"
    assert run.why_stale("cycle-01/score", {"a": "1"}) == "changed: b"
    assert run.why_stale("cycle-01/score", {"a": "1", "b": "2", "c": "4"}) == "changed: c"


def test_the_record_names_what_was_read_and_the_sha256_of_what_was_written(run):
    write(run, "baseline", {"recipe.seed": "77"}, content="abc")
    record = run.record("baseline")
    # FIPS 180-2, appendix B.1: SHA-256 of "abc"
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record.outputs == {"weights.bin": digest}
    assert record.inputs == {"recipe.seed": "77"}
    assert run.output_digest("baseline/weights.bin") == digest
    assert run.output_digest("baseline/absent") == run.output_digest("absent/weights.bin") == ""


@pytest.mark.parametrize("harm", ["change", "remove"])
def test_a_damaged_output_makes_the_stage_stale_and_says_which(run, harm):
    write(run, "baseline", {})
    file = run.stage_path("baseline") / "weights.bin"
    if harm == "change":
        file.write_text("y")
    else:
        file.unlink()
    assert run.why_stale("baseline", {}) == "damaged: weights.bin"


@pytest.mark.parametrize("record", ["", "{", "[]", '{"stage": "baseline"}', '{"stage": 1, "inputs": 2}'])
def test_a_damaged_record_makes_the_stage_stale(run, record):
    write(run, "baseline", {})
    (run.stage_path("baseline") / "stage.json").write_text(record)
    assert run.why_stale("baseline", {}) == "its stage.json is damaged"


def test_a_stage_that_fails_leaves_nothing_and_keeps_the_earlier_result(run):
    write(run, "baseline", {"a": "1"}, content="first")
    before = tree(run.path)

    def fail():
        with run.writing("baseline", {"a": "2"}) as out:
            (out / "weights.bin").write_text("second")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert tree(run.path) == before
    assert sorted(entry.name for entry in (run.path / "stages").iterdir()) == ["baseline"]


def test_nothing_is_to_be_seen_of_a_stage_before_it_has_finished(run):
    with run.writing("cycle-01/plan", {}) as out:
        (out / "plan.json").write_text("{}")
        assert not run.stage_path("cycle-01/plan").exists()
        assert out.parent == run.stage_path("cycle-01/plan").parent
        assert run.stages() == []
    assert run.stages() == ["cycle-01/plan"]
    assert not out.exists()


def test_leftovers_of_a_killed_run_are_removed_at_the_next_start(tmp_path):
    with claimed(tmp_path) as run:
        write(run, "cycle-01/score", {})
    for leftover in ("stages/.export.partial", "stages/cycle-01/.plan.partial", "stages/.gate.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "half").write_text("half")
    (tmp_path / ".run.json.partial").write_text("{")
    with claimed(tmp_path) as run:
        names = {str(entry.relative_to(tmp_path)) for entry in tmp_path.rglob("*")}
        assert not {name for name in names if name.endswith((".partial", ".old"))}
        assert run.why_stale("cycle-01/score", {}) == ""


def test_stages_that_are_no_longer_part_of_the_run_go(run):
    for stage in ("baseline", "cycle-01/score", "cycle-02/score"):
        write(run, stage, {})
    assert run.keep_only(["baseline", "cycle-01/score", "gate"]) == ["cycle-02/score"]
    assert run.stages() == ["baseline", "cycle-01/score"]
    assert not (run.path / "stages" / "cycle-02").exists()


ELSEWHERE = "../../other/place/workload.py"
FOREIGN = {
    "another name": {"name": "letters"},
    "another name, the same content elsewhere": {"name": "letters", "workload": ELSEWHERE},
    "another recipe": {"workload": ELSEWHERE, "recipe_digest": "def"},
    "another workload": {"workload": ELSEWHERE, "workload_digest": "def"},
    "another of both": {"workload": ELSEWHERE, "recipe_digest": "def", "workload_digest": "def"},
}
SAME = {
    "nothing changed": {},
    "moved": {"workload": ELSEWHERE},
    "written by another version": {"prunekit_version": "0.2.0"},
    "the recipe edited in its place": {"recipe_digest": "def"},
    "the workload edited in its place": {"workload_digest": "def"},
    "both edited in their places": {"recipe_digest": "def", "workload_digest": "def"},
}


@pytest.mark.parametrize("other", FOREIGN.values(), ids=FOREIGN)
def test_a_run_directory_of_another_recipe_is_refused_and_left_alone(tmp_path, other):
    with claimed(tmp_path) as run:
        write(run, "baseline", {})
    before = tree(tmp_path)
    key = "name" if "name" in other else "workload"
    with (
        pytest.raises(
            RunDirectoryError, match=f"its {key} is '{getattr(IDENTITY, key)}'.*--run-dir"
        ) as caught,
        open_run(tmp_path, replace(IDENTITY, **other)),
    ):
        pass
    assert caught.value.exit_code == 2
    assert tree(tmp_path) == before


@pytest.mark.parametrize("same", SAME.values(), ids=SAME)
def test_a_run_directory_of_the_same_recipe_is_taken_up(tmp_path, same):
    with claimed(tmp_path) as run:
        write(run, "baseline", {})
    mine = replace(IDENTITY, **same)
    with claimed(tmp_path, mine) as run:
        assert run.why_stale("baseline", {}) == ""
    assert json.loads((tmp_path / "run.json").read_text()) == asdict(mine)


def test_a_newer_recipe_of_the_same_name_is_accepted_and_kept(tmp_path):
    with claimed(tmp_path):
        pass
    with claimed(tmp_path, replace(IDENTITY, recipe_digest="def"), b"name: digits # more\n"):
        pass
    assert (tmp_path / "recipe.yaml").read_bytes() == b"name: digits # more\n"
    assert json.loads((tmp_path / "run.json").read_text())["recipe_digest"] == "def"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "run.json is damaged"),
        ('{"name": 1}', "run.json is damaged"),
        ("[]", "run.json is damaged"),
        ("null", "run.json is damaged"),
        ("[" * 100_000, "run.json is damaged"),
    ],
)
def test_a_damaged_run_file_is_refused(tmp_path, content, says):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=says), open_run(tmp_path, IDENTITY):
        pass
    with pytest.raises(RunDirectoryError, match=says):
        read_run(tmp_path)


def test_a_directory_with_other_files_and_a_file_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match=r"no run\.json"), open_run(tmp_path, IDENTITY):
        pass
    with (
        pytest.raises(RunDirectoryError, match="It is a file"),
        open_run(tmp_path / "thesis.tex", IDENTITY),
    ):
        pass
    assert tree(tmp_path) == {"thesis.tex": b"x"}


def test_reading_something_that_is_not_a_run_directory(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"no run\.json in it"):
        read_run(tmp_path)
    with pytest.raises(RunDirectoryError, match="no such directory"):
        read_run(tmp_path / "absent")


def test_a_second_process_is_refused_and_says_which_is_at_work(tmp_path):
    code = (
        "import sys; from pathlib import Path; from prunekit.workflow.opening import Identity, open_run\n"
        "with open_run(Path(sys.argv[1]), Identity('digits', '../workload.py', '0.1.0', 'abc', 'fed')):\n"
        "    print('open', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "open\n"
        with (
            pytest.raises(RunDirectoryError, match=rf"at work .*process {other.pid}\)"),
            open_run(tmp_path, IDENTITY),
        ):
            pass
    finally:
        other.kill()
        other.communicate()
    with open_run(tmp_path, IDENTITY) as run:  # the lock of a killed process does not outlive it
        assert run.path == tmp_path


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (Path("/proc/prunekit"), tmp_path / "file" / "run"):
        with (
            pytest.raises((StorageError, RunDirectoryError), match="--run-dir"),
            open_run(place, IDENTITY),
        ):
            pass


def test_a_full_disk_is_a_paragraph_and_leaves_nothing_half_written(run):
    write(run, "baseline", {}, content="kept")
    before = tree(run.path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the kernel then says EFBIG, as a quota does
    try:
        with pytest.raises(StorageError, match="Make room") as caught:
            write(run, "export", {}, content="x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 3
    assert caught.value.__cause__.errno == errno.EFBIG
    assert tree(run.path) == before


def test_an_os_error_that_is_not_about_the_disk_stays_what_it_is(run):
    with pytest.raises(FileNotFoundError), run.writing("baseline", {}):
        (run.path / "absent").read_text()


def test_plain_values():
    value = {"a": (1, 2.5), "b": float("nan"), "c": {"x"}, 3: Path("p"), "d": None, "e": True}
    assert plain(value) == {"a": [1, 2.5], "b": None, "c": ["x"], "3": "p", "d": None, "e": True}
    assert value_digest({"a": 1, "b": (2,)}) == value_digest({"b": [2], "a": 1})
    assert value_digest({"a": 1}) != value_digest({"a": 2})


def test_files_are_named_by_content(tmp_path):
    (tmp_path / "a").write_text("same")
    (tmp_path / "b").write_text("same")
    assert found_digest(tmp_path / "a") == found_digest(tmp_path / "b") != ""
    assert found_digest(tmp_path / "absent") == ""


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_before_any_stage_has_finished_leaves_the_disk_as_it_was(tmp_path, error):
    def fail():
        with (
            claimed(tmp_path / "runs" / "deep" / "digits") as run,
            run.writing("cycle-01/score", {}) as out,
        ):
            (out / "half").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "deep" / "digits").mkdir(parents=True)
    with pytest.raises(error):
        fail()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "runs",
        "runs/deep",
        "runs/deep/digits",
    ]


def test_an_error_after_a_stage_has_finished_leaves_what_is_finished(tmp_path):
    def fail():
        with claimed(tmp_path / "runs" / "digits") as run:
            write(run, "baseline", {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with claimed(tmp_path / "runs" / "digits") as run:
        assert run.why_stale("baseline", {}) == ""


def test_an_error_before_the_directory_is_claimed_leaves_the_earlier_recipe_in_it(tmp_path):
    with claimed(tmp_path) as run:
        write(run, "baseline", {})
    before = tree(tmp_path)

    def fail():
        with open_run(tmp_path, replace(IDENTITY, recipe_digest="def")):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert tree(tmp_path) == before


def test_a_lock_file_that_was_taken_back_locks_nothing(tmp_path, monkeypatch):
    """Another process may have opened the lock file just before its directory was taken back."""
    flock = fcntl.flock

    def late(*arguments):
        flock(*arguments)
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr("prunekit.workflow.rundir.fcntl.flock", late)
    with pytest.raises(RunDirectoryError, match="just ending"), open_run(tmp_path, IDENTITY):
        pass


@pytest.mark.parametrize("key", ["inputs", "outputs", "started", "seconds", "digest"])
def test_a_record_that_was_edited_is_damaged(run, key):
    write(run, "baseline", {"a": "1"})
    record = run.stage_path("baseline") / "stage.json"
    content = json.loads(record.read_text())
    edited = {"inputs": {"a": "2"}, "outputs": {}, "started": "", "seconds": 0.5, "digest": "0"}[key]
    record.write_text(json.dumps({**content, key: edited}))
    assert run.record("baseline") is None
    assert run.why_stale("baseline", {"a": "1"}) == "its stage.json is damaged"


def test_the_digest_of_a_record_is_that_of_the_rest_of_it(run):
    write(run, "baseline", {"a": "1"})
    content = json.loads((run.stage_path("baseline") / "stage.json").read_text())
    rest = json.dumps({**content, "digest": ""}, sort_keys=True).encode()
    assert content["digest"] == hashlib.sha256(rest).hexdigest()
