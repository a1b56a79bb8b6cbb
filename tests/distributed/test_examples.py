"""The example scripts run as their README says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.distributed.launching import ROOT


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("replicated.py", ["10 batches on 2 processes", "5508 -> "]),
        (
            "sharded.py",
            ["permutation law: holds for 3 groups", "mask law: holds for 3 groups", "form law: holds"],
        ),
    ],
)
def test_an_example_runs(script, says):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, str(ROOT / "examples" / "distributed" / script)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert [each for each in says if each not in ended.stdout] == []
