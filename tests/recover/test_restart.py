"""What a recovery begins with: the parent's optimizer, and after AdamW a rate by how much was lost."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.recover import Trained, TrainingSettings, restart

SGD, ADAMW = Trained("sgd", 0.1, 0.5, 0.02), Trained("adamw", 1e-4, 0.5, 0.02)
LITTLE, MUCH = 0.5, 5.0


def never():
    raise AssertionError("the loss is measured where no rate depends on it")


@pytest.mark.parametrize("parent", [None, SGD, ADAMW])
@pytest.mark.parametrize("optimizer", [None, "sgd", "adamw"])
def test_what_is_given_stays(parent, optimizer):
    found = restart(parent, never, optimizer=optimizer, learning_rate=0.3)
    assert found["optimizer"] == (optimizer or (parent.optimizer if parent else "sgd"))
    assert (found["learning_rate"], found["schedule"]) == (0.3, "cosine")


@pytest.mark.parametrize("parent", [None, SGD, ADAMW])
@pytest.mark.parametrize("loss", [LITTLE, MUCH])
@pytest.mark.parametrize(
    "given",
    [
        {"schedule": "linear"},
        {"schedule": "constant"},
        {"weight_decay": 0.3},
        {"weight_decay": 0.0},
        {"warmup": 0.4},
        {"warmup": 0.0},
        {"schedule": "linear", "weight_decay": 0.0, "warmup": 0.0},
    ],
    ids=str,
)
def test_of_schedule_decay_and_warm_up_what_is_given_stays_and_the_rest_is_as_without_it(parent, loss, given):
    assert restart(parent, lambda: loss, **given) == {**restart(parent, lambda: loss), **given}


@pytest.mark.parametrize("loss", [LITTLE, MUCH])
def test_a_schedule_with_a_rise_of_its_own_gets_no_warm_up(loss):
    found = restart(ADAMW, lambda: loss, schedule="one_cycle")
    assert found["learning_rate"] == restart(ADAMW, lambda: loss)["learning_rate"]
    assert TrainingSettings(**found).rise == 0


@pytest.mark.parametrize("parent", [None, SGD, ADAMW])
@pytest.mark.parametrize("optimizer", [None, "sgd", "adamw"])
def test_the_decay_is_the_parents_for_adamw_after_adamw_only_also_where_the_rate_is_given(parent, optimizer):
    again = parent is ADAMW and optimizer != "sgd"
    expected = 0.02 if again else TrainingSettings().weight_decay
    for rate in (None, 0.3):
        found = restart(parent, lambda: MUCH, optimizer=optimizer, learning_rate=rate)
        assert found["weight_decay"] == expected


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
    assert TrainingSettings(**found) == TrainingSettings(optimizer=expected, learning_rate=0.01)


@pytest.mark.parametrize(
    ("before", "after", "much"),
    [
        (0.5, 0.4, False),  # Better than before.
        (0.5, 0.649, False),
        (0.5, 0.651, True),
        (-2.0, -1.41, False),  # A log density.
        (-2.0, -1.39, True),
        (0.0, 0.0, False),
        (0.0, 1e-9, True),
        (0.5, math.inf, True),
        (0.5, math.nan, True),
    ],
)
def test_the_rate_goes_back_up_where_the_loss_rose_by_more_than_three_tenths(before, after, much):
    rate, schedule, warmup = (1e-4, "cosine", 0.1) if much else (1e-5, "constant", None)
    expected = {
        "optimizer": "adamw",
        "learning_rate": pytest.approx(rate),
        "schedule": schedule,
        "weight_decay": 0.02,
        "warmup": warmup,
    }
    assert restart(Trained("adamw", 1e-4, before, 0.02), lambda: after) == expected


LOSSES = st.floats(-100, 100, allow_nan=False)


@given(before=LOSSES, after=st.tuples(LOSSES, LOSSES))
def test_more_lost_is_never_a_lower_rate_and_the_scale_of_the_loss_does_not_matter(before, after):
    def rates(scale):
        parent = Trained("adamw", 1e-4, scale * before, 0.02)
        return [restart(parent, lambda loss=loss: scale * loss)["learning_rate"] for loss in sorted(after)]

    assert rates(1)[0] <= rates(1)[1]
    assert rates(4) == rates(1)
