"""Several processes that train together make the run of one process."""

import pytest
import torch
from tests.distributed.launching import launch, start
from tests.recover.together import run

from prunekit.ranks import ALONE

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
    launch(RUN, 2, next(before), form, str(later), "5")
    for found in launch(RUN, afterwards, next(before), form, str(later)):
        assert found["resumed"] == 3
        for name in alone.keys() - {"resumed"}:
            torch.testing.assert_close(found[name], alone[name], **CLOSE)


def test_a_process_that_dies_is_an_error_of_the_others_and_the_checkpoint_stays(tmp_path, alone):
    places, checkpoints = rounds(tmp_path), tmp_path / "checkpoints"
    first, second = start(RUN, 2, next(places), "whole", str(checkpoints), "", "5")
    assert second.returncode == 9
    assert first.returncode == 1
    assert "RankError: Rank 0 of 2 lost touch with the others" in first.stderr
    assert [path.name for path in checkpoints.iterdir()] == ["step-000000003"]
    for found in launch(RUN, 2, next(places), "whole", str(checkpoints)):
        for name in alone.keys() - {"resumed"}:
            torch.testing.assert_close(found[name], alone[name], **CLOSE)


def test_a_failure_of_one_process_is_an_error_of_all_before_they_wait_for_gradients(tmp_path):
    # 61 examples in steps of 29, 29 and 3: two for the first process, and one for the second.
    for ended in start("tests.recover.together:fails_alone", 2, tmp_path):
        assert ended.returncode == 1
        assert "rank 1: It stopped with ValueError: Expected more than 1 value per channel" in ended.stderr
