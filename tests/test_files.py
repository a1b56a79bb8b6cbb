"""Files are there whole or not at all, and digests are those of the standard."""

import hashlib
import os

import pytest

from prunekit.files import (
    content_digest,
    file_digest,
    flush,
    put_in_place,
    write_atomically,
    written_atomically,
)

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""FIPS 180-2, appendix B.1: SHA-256 of "abc"."""


@pytest.fixture
def flushed(monkeypatch):
    """The inodes that were flushed, in order."""
    inodes = []
    monkeypatch.setattr("prunekit.files.os.fsync", lambda file: inodes.append(os.fstat(file).st_ino))
    return inodes


def test_digests_are_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "large").write_bytes(bytes(3_000_000))
    assert file_digest(tmp_path / "abc") == content_digest(b"abc") == ABC
    assert file_digest(tmp_path / "large") == hashlib.sha256(bytes(3_000_000)).hexdigest()


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        file_digest(tmp_path)


def test_a_file_is_flushed_before_it_has_its_name_and_its_directory_afterwards(tmp_path, flushed):
    write_atomically(tmp_path / "file", b"new")
    assert flushed == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_while_a_file_is_written_the_old_one_is_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with written_atomically(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail():
        with written_atomically(path) as temporary:
            temporary.write_bytes(b"ne")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_finished_file_is_put_in_the_place_of_another(tmp_path, flushed):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_bytes(b"new")
    (tmp_path / "file").write_bytes(b"old")
    put_in_place(tmp_path / "made" / "file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert flushed == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


def test_a_directory_can_be_flushed(tmp_path, flushed):
    flush(tmp_path)
    assert flushed == [tmp_path.stat().st_ino]
