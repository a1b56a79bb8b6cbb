"""What one process does wrong is an error on all of them, with its rank, within the time they wait."""

from __future__ import annotations

import pytest
import torch
from tests.distributed.launching import launch, start

WAITING_S = 3

EXPECTED = {
    "nan": ("CalibrationError", "rank 1, ", "NaN or infinity"),
    "no batch": ("CalibrationError", "rank 1, calibration batch 1: ", "It is a int"),
    "no batches": ("CalibrationError", "rank 0, calibration: ", "There are no calibration batches"),
    "arguments": ("SelectionError", "rank 1: ", "There is no statistic ['nonsense']"),
    "user": ("RankError", "rank 1: ", "It stopped with ValueError: the user's own"),
    "other call": ("RankError", "The processes are not about to do the same", "rank 1: something else"),
    "plans": ("RankError", "the plan: ", "rank 1 differs from rank 0"),
    "weights": ("RankError", "the smaller model: ", "rank 1 differs from rank 0"),
    "parts, nan": ("CalibrationError", "rank 1, ", "NaN or infinity"),
    "parts, gradient": ("CalibrationError", "rank 1, loss of calibration batch 1: ", "It is nan"),
    "parts, user": ("RankError", "rank 1: ", "It stopped with ValueError: the user's own"),
    "parts, shape": ("CalibrationError", "rank 1, calibration: ", "cannot be traced again"),
    "parts, alone": ("CalibrationError", "", "2 processes hold parts of it, and ranks= has 1"),
    "parts, other call": (
        "RankError",
        "The processes are not about to do the same",
        "tensors of the sharded",
    ),
    "right": ("", "", ""),
}
"""By mistake: the error, how its text begins, and what it says."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return launch("tests.distributed.failing:mistakes", 2, tmp_path_factory.mktemp("mistakes"))


@pytest.mark.parametrize("mistake", EXPECTED)
def test_a_mistake_of_one_process_is_an_error_on_all(found, mistake):
    kind, begins, says = EXPECTED[mistake]
    for each in found:
        assert each[mistake]["error"] == kind
        assert each[mistake]["text"].startswith(begins)
        assert says in each[mistake]["text"]
    assert found[0][mistake]["text"] == found[1][mistake]["text"]


@pytest.mark.parametrize(("way", "code"), [("dies", 9), ("hangs", None)])
def test_a_lost_process_is_an_error_on_the_others_in_time(tmp_path, way, code):
    first, last = start(f"tests.distributed.failing:{way}", 2, tmp_path, timeout_s=WAITING_S)
    assert code is None or last.returncode == code
    told = torch.load(tmp_path / "0.pt", weights_only=True)
    assert told["error"] == "RankError"
    assert told["text"].startswith("Rank 0 of 2 lost touch with the others")
    assert told["s"] < 60, first.stderr
