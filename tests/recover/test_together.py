"""Several processes that train together make the run of one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.recover.together import run

SCRIPT = Path(__file__).with_name("together.py")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""float32: sums of gradients over two halves of a step are rounded otherwise than over the whole."""


def launch(out, form, *, processes=2, stop=0, die=0):
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    return subprocess.run(
        [*command, SCRIPT, out, form, str(stop), str(die)], capture_output=True, text=True, timeout=120
    )


def weights_of(out, processes=2):
    return [load_file(out / f"rank-{rank}.safetensors") for rank in range(processes)]


@pytest.fixture(scope="module")
def alone():
    # Oracle: one process.
    return run()[0]


@pytest.mark.parametrize("form", ["ddp", "fsdp"])
def test_two_processes_make_the_run_of_one(tmp_path, alone, form):
    done = launch(tmp_path, form)
    assert done.returncode == 0, done.stderr
    first, second = weights_of(tmp_path)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, **CLOSE)


@pytest.mark.parametrize(("form", "afterwards"), [("ddp", 2), ("fsdp", 2), ("fsdp", 3), ("ddp", 1)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, alone, form, afterwards):
    assert launch(tmp_path, form, stop=5).returncode == 0
    done = launch(tmp_path, form, processes=afterwards)
    assert done.returncode == 0, done.stderr
    for weights in weights_of(tmp_path, afterwards):
        assert weights["resumed"] == 3
        for name in alone.keys() - {"resumed"}:
            torch.testing.assert_close(weights[name], alone[name], **CLOSE)


def test_a_process_that_dies_is_named_and_the_checkpoint_stays(tmp_path, alone):
    done = launch(tmp_path, "ddp", die=5)
    assert done.returncode != 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000000003"]
    assert launch(tmp_path, "ddp").returncode == 0
    for name in alone.keys() - {"resumed"}:
        torch.testing.assert_close(weights_of(tmp_path)[0][name], alone[name], **CLOSE)
