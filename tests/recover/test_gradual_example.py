"""The command in the example's README runs and prints what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_five_ways_of_the_example_reach_their_sparsity():
    readme = (ROOT / "examples" / "gradual" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```sh\npython (.*)\n```", readme)
    run = subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    zeros = [float(share) for share in re.findall(r"([\d.]+)% of the weights are zero", run.stdout)]
    right = [float(share) for share in re.findall(r"([\d.]+)% of the test images", run.stdout)]
    assert [round(share) for share in zeros[:4]] == [0, 95, 95, 95]
    assert zeros[4] < 50
    assert len(right) == 5
    assert min(right) > 90
