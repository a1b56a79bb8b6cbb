"""Fetched files are kept in a temporary directory, and asked for without a network."""

import os

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The directory for fetched files."""
    monkeypatch.setenv("PRUNEKIT_ASSETS", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def offline_pip(tmp_path, monkeypatch):
    """A directory that is all the registry pip knows; no configuration of this machine counts."""
    served = tmp_path / "served"
    served.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(served))
    return served
