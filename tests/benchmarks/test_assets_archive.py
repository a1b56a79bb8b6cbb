"""Members of all kinds of archives come out as they went in."""

import io
import tarfile

import pytest
from benchmarks.assets.archive import AR_MAGIC, member, members
from benchmarks.assets.source import AssetError
from tests.benchmarks.packages import make_wheel

CONTENT = {"a/one.bin": b"1", "a/two.bin": b"\x00" * 1000, "b/three.txt": b""}


def make_tar(mode):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=mode) as tar:
        directory = tarfile.TarInfo("a")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for name, content in reversed(CONTENT.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return whole.getvalue()


def make_deb(control, data):
    """Headers as ar(5) says: name 16, time 12, owner 6, group 6, mode 8, size 10, two bytes at the end."""
    whole = AR_MAGIC
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", control), ("data.tar.xz", data)):
        whole += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        whole += content + b"\n" * (len(content) % 2)
    return whole


@pytest.fixture(params=["whl", "tar.gz", "deb", "deb, odd"])
def archive(request, tmp_path):
    if request.param == "whl":
        return make_wheel(tmp_path / "tiny-1.0-py3-none-any.whl", CONTENT)
    path = tmp_path / f"tiny.{request.param.split(',')[0]}"
    control = b"odd" if "odd" in request.param else b"even"
    path.write_bytes(make_tar("w:gz") if path.suffix == ".gz" else make_deb(control, make_tar("w:xz")))
    return path


def test_members_come_out_as_they_went_in(archive):
    assert members(archive, "[ab]/*") == CONTENT
    assert list(members(archive, "a/*")) == ["a/one.bin", "a/two.bin"]
    assert member(archive, "*/two.bin") == CONTENT["a/two.bin"]


@pytest.mark.parametrize(("pattern", "found"), [("a/*", "a/one.bin, a/two.bin"), ("c/*", "none")])
def test_one_member_is_one(archive, pattern, found):
    with pytest.raises(AssetError, match=f"{found} of its members match"):
        member(archive, pattern)


def test_a_damaged_archive_is_an_error_of_ours(archive):
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AssetError, match="cannot be read as an archive"):
        members(archive, "*")
    archive.write_bytes(b"something else")
    with pytest.raises(AssetError, match="cannot be read as an archive"):
        members(archive, "*")
