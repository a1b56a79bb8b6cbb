"""Packages made here, in the place of those that a registry would serve."""

import hashlib
import zipfile

from benchmarks.assets.source import Source


def make_wheel(path, members, package="tiny_asset", version="1.0"):
    """A wheel that pip takes, with ``members`` in it."""
    info = f"{package}-{version}.dist-info"
    described = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in {**members, **described}.items():
            wheel.writestr(name, content)
    return path


def source_of(path, **changes):
    """The source whose file is at ``path``: package and version as in its name."""
    package, version = path.name.removesuffix(".tar.gz").split("-")[:2]
    content = path.read_bytes()
    fields = {
        "client": "pip",
        "package": package,
        "version": version,
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "licence": "none",
    }
    return Source(**{**fields, **changes})
