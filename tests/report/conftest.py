from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.report.rundirs import write_run
from tests.report.sample import ACCEPTED, HOSTILE, REFUSED


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> dict[str, Path]:
    """Three finished run directories, not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    samples = {"accepted": ACCEPTED, "refused": REFUSED, "hostile": HOSTILE}
    return {name: write_run(root / name, sample) for name, sample in samples.items()}


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    """A finished run directory that may be changed."""
    return Path(shutil.copytree(finished["accepted"], tmp_path / "run"))
