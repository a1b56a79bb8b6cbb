"""Several processes that train together make the run of one process."""

import signal

import pytest
import torch
from tests.distributed.launching import launch, start
from tests.recover.together import run

from prunekit.ranks import ALONE
from prunekit.recover import Checkpoints

RUN = "tests.recover.together:run"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""float32: sums of gradients over two halves of a step are rounded otherwise than over the whole."""


@pytest.fixture(scope="module")
def alone():
    # Oracle: one process.
    return run(ALONE)


def rounds(tmp_path):
    """A directory for each launch."""
    for number in range(9):
        path = tmp_path / str(number)
        path.mkdir()
        yield path


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_two_processes_make_the_run_of_one(tmp_path, alone, form):
    first, second = launch(RUN, 2, tmp_path, form)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, **CLOSE)


@pytest.mark.parametrize(
    ("form", "afterwards"),
    [
        ("sharded", 3),
        pytest.param("whole", 1, marks=pytest.mark.slow),
        pytest.param("whole", 2, marks=pytest.mark.slow),
        pytest.param("sharded", 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, alone, form, afterwards):
    before, later = rounds(tmp_path), tmp_path / "checkpoints"
    launch(RUN, 2, next(before), form, str(later), "stop", "5")
    for found in launch(RUN, afterwards, next(before), form, str(later)):
        assert found["resumed"] == 3
        for name in alone.keys() - {"resumed"}:
            torch.testing.assert_close(found[name], alone[name], **CLOSE)


@pytest.mark.parametrize("who", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_is_an_error_of_the_others_and_the_checkpoint_stays(tmp_path, alone, who):
    places, checkpoints = rounds(tmp_path), tmp_path / "checkpoints"
    ended = start(RUN, 2, next(places), "whole", str(checkpoints), "die", "5", str(who))
    other = 1 - who
    assert ended[who].returncode == -signal.SIGKILL
    assert ended[other].returncode == 1
    assert f"RankError: Rank {other} of 2 lost touch with the others" in ended[other].stderr
    assert_goes_on_as(alone, checkpoints, next(places), "whole")


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_full_disk_of_one_process_is_an_error_of_all_and_the_checkpoint_stays(tmp_path, alone, who):
    # Each process writes its part of a sharded model; the checkpoint after step 6 is the second.
    places, checkpoints = rounds(tmp_path), tmp_path / "checkpoints"
    told = "[Errno 27] File too large" if who == 0 else "rank 1: [Errno 27] File too large"
    for ended in start(RUN, 2, next(places), "sharded", str(checkpoints), "fill disk", "5", str(who)):
        assert ended.returncode == 1
        assert "StorageError: rank 0, " in ended.stderr
        assert f"A checkpoint could not be written or read ({told})" in ended.stderr
    assert_goes_on_as(alone, checkpoints, next(places), "sharded")


def assert_goes_on_as(alone, checkpoints, place, form):
    """From the only checkpoint, that of step 3, two processes come to what one process gave."""
    assert [path.name for path in Checkpoints(checkpoints).whole()] == ["step-000000003"]
    for found in launch(RUN, 2, place, form, str(checkpoints)):
        assert found["resumed"] == 3
        for name in alone.keys() - {"resumed"}:
            torch.testing.assert_close(found[name], alone[name], **CLOSE)


def test_a_failure_of_one_process_is_an_error_of_all_before_they_wait_for_gradients(tmp_path):
    # 61 examples in steps of 29, 29 and 3: two for the first process, and one for the second.
    for ended in start("tests.recover.together:fails_alone", 2, tmp_path):
        assert ended.returncode == 1
        assert "rank 1: It stopped with ValueError: Expected more than 1 value per channel" in ended.stderr
