"""What a recovery begins with: the parent's optimizer, and after AdamW a rate by how much was lost."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.recover import Trained, TrainingSettings, restart

SGD, ADAMW = Trained("sgd", 0.1, 0.5), Trained("adamw", 1e-4, 0.5)


def never():
    raise AssertionError("the loss is measured where no rate depends on it")


@pytest.mark.parametrize("parent", [None, SGD, ADAMW])
@pytest.mark.parametrize("optimizer", [None, "sgd", "adamw"])
def test_what_is_given_stays(parent, optimizer):
    found = restart(parent, never, optimizer=optimizer, learning_rate=0.3)
    assert found["optimizer"] == (optimizer or (parent.optimizer if parent else "sgd"))
    assert (found["learning_rate"], found["schedule"]) == (0.3, "cosine")


@pytest.mark.parametrize("loss", [0.5, 5.0])
def test_a_schedule_that_is_given_stays_and_the_rate_is_as_without_it(loss):
    found = restart(ADAMW, lambda: loss, schedule="linear")
    assert found == {**restart(ADAMW, lambda: loss), "schedule": "linear"}


@pytest.mark.parametrize(
    ("parent", "optimizer", "expected"),
    [
        (None, None, "sgd"),
        (SGD, None, "sgd"),
        (ADAMW, "sgd", "sgd"),
        (SGD, "adamw", "adamw"),
        (None, "adamw", "adamw"),
    ],
)
def test_only_adamw_after_adamw_depends_on_what_was_lost(parent, optimizer, expected):
    found = restart(parent, never, optimizer=optimizer)
    assert found == {"optimizer": expected, "learning_rate": 0.01, "schedule": "cosine"}
    assert TrainingSettings(**found).learning_rate == 0.01


@pytest.mark.parametrize(
    ("before", "after", "much"),
    [
        (0.5, 0.4, False),  # Better than before.
        (0.5, 0.75, False),
        (0.5, 0.751, True),
        (-2.0, -1.0, False),  # A log density.
        (-2.0, -0.9, True),
        (0.0, 0.0, False),
        (0.0, 1e-9, True),
        (0.5, math.inf, True),
        (0.5, math.nan, True),
    ],
)
def test_the_rate_goes_back_up_where_the_loss_rose_by_more_than_half(before, after, much):
    rate, schedule = (1e-4, "cosine") if much else (1e-5, "constant")
    expected = {"optimizer": "adamw", "learning_rate": pytest.approx(rate), "schedule": schedule}
    assert restart(Trained("adamw", 1e-4, before), lambda: after) == expected


LOSSES = st.floats(-100, 100, allow_nan=False)


@given(before=LOSSES, after=st.tuples(LOSSES, LOSSES))
def test_more_lost_is_never_a_lower_rate_and_the_scale_of_the_loss_does_not_matter(before, after):
    def rates(scale):
        parent = Trained("adamw", 1e-4, scale * before)
        return [restart(parent, lambda loss=loss: scale * loss)["learning_rate"] for loss in sorted(after)]

    assert rates(1)[0] <= rates(1)[1]
    assert rates(4) == rates(1)
