"""Several processes agree on what they tell each other; expected values are written out."""

from __future__ import annotations

import pytest
import torch
from tests.distributed.launching import launch

from prunekit.errors import CalibrationError
from prunekit.ranks import ALONE, Ranks, all_ranks, is_parted, like, whole


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return launch("tests.distributed.talking:everything", 3, tmp_path_factory.mktemp("talking"))


def test_every_process_learns_what_the_others_gave(found):
    for each in found:
        assert each["gathered"] == [{"é": [rank, None, 0.1 * rank]} for rank in range(3)]
        assert each["first"] == "of 0"
    assert [each["who"] for each in found] == [[0, 3, True], [1, 3, False], [2, 3, False]]


def test_sums_are_added_from_rank_0_upwards(found):
    for each in found:
        # (1 + 1e16) + 1 loses both ones, and in any other order one of them is left.
        assert each["sum"].tolist() == [[(1 + 1e16) + 1, 3.0], [(1 - 1e16) + 1, 2.5]]
        assert each["counts"].tolist() == [6] * 7
        assert [part.tolist() for part in each["together"]] == [[[3.0, 3.0], [3.0, 3.0]], 3.0]
        assert each["empty"].shape == (0, 3)
        assert each["largest"].tolist() == [2, 0, 5]


def test_what_differs_is_an_error_with_the_ranks(found):
    for each in found:
        assert each["same"]["error"] == ""
        assert each["different"]["error"] == each["shapes"]["error"] == "RankError"
        assert "ranks 1, 2 differ from rank 0" in each["different"]["text"]
        assert "Shapes or dtypes differ" in each["shapes"]["text"]


def test_one_process_is_alone():
    assert all_ranks() == ALONE == Ranks()
    assert (ALONE.rank, ALONE.size, ALONE.is_first) == (0, 1, True)
    one = torch.ones(3)
    assert ALONE.gather(one, "anything")[0] is one
    assert ALONE.sum(one, "numbers").tolist() == [1, 1, 1]
    assert ALONE.first("this", "anything") == "this"
    ALONE.check_same("this", "anything")
    with pytest.raises(CalibrationError, match=r"^calibration: bad"), ALONE.together("anything"):
        raise CalibrationError("bad", where="calibration")


def test_a_tensor_that_is_not_parted_stays_as_it_is():
    tensor = torch.ones(3)
    assert whole(tensor) is tensor
    assert like(tensor, torch.zeros(3)) is tensor
    assert not is_parted(tensor)
