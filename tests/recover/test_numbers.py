"""What counts as a number, and which states a companion takes up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prunekit.errors import UsageError
from prunekit.recover.companion import step_of
from prunekit.recover.numbers import check_count, check_share, is_number, is_whole

VALUES = [  # value, finite number, whole number, count, share; written down by hand
    (0, True, True, False, True),
    (1, True, True, True, True),
    (7, True, True, True, False),
    (-1, True, True, False, False),
    (0.5, True, False, False, True),
    (1.0, True, False, False, True),
    (np.float64(0.5), True, False, False, True),
    (True, False, False, False, False),
    (math.nan, False, False, False, False),
    (math.inf, False, False, False, False),
    ("1", False, False, False, False),
    (None, False, False, False, False),
]


@pytest.mark.parametrize(("value", "number", "whole", "count", "share"), VALUES, ids=str)
def test_each_kind_of_number_is_told_from_the_others(value, number, whole, count, share):
    assert (is_number(value), is_whole(value)) == (number, whole)
    for check, right in ((check_count, count), (check_share, share)):
        if right:
            check("amount", value, where="here")
        else:
            with pytest.raises(UsageError, match="here: amount is"):
                check("amount", value, where="here")


@pytest.mark.parametrize(
    ("state", "differs"),
    [
        ({"step": 3, "steps": 9, "lift": None, "more": 1}, ""),
        ({"step": 0, "steps": 9, "lift": None}, ""),
        ({"step": 3, "steps": 8, "lift": None}, "steps"),
        ({"step": 3, "steps": 9}, "lift"),
        ({"step": 3}, "lift, steps"),
        ({"step": -1, "steps": 9, "lift": None}, "step"),
        ({"step": True, "steps": 9, "lift": None}, "step"),
        ({"steps": 8, "lift": None}, "steps, step"),
    ],
    ids=str,
)
def test_a_state_is_taken_up_where_all_arguments_are_the_same(state, differs):
    made_by = {"steps": 9, "lift": None}
    if not differs:
        assert step_of(state, made_by, where="Thing") == state["step"]
        return
    with pytest.raises(UsageError, match=rf"it differs in {differs}\. "):
        step_of(state, made_by, where="Thing")
