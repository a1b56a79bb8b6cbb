"""What a recovery begins with: the parent's optimizer, and a rate by how much was lost."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.recover import Trained, TrainingSettings, restart, restart_rate

SGD, ADAMW = Trained("sgd", 0.1, 0.5), Trained("adamw", 1e-4, 0.5)


def never():
    raise AssertionError("the loss is measured where no rate depends on it")


@pytest.mark.parametrize("parent", [None, SGD, ADAMW])
@pytest.mark.parametrize("optimizer", [None, "sgd", "adamw"])
def test_what_is_given_stays(parent, optimizer):
    found = restart(parent, never, optimizer=optimizer, learning_rate=0.3, schedule="linear")
    assert (found["learning_rate"], found["schedule"]) == (0.3, "linear")
    assert restart(ADAMW, lambda: 1.0, schedule="linear")["schedule"] == "linear"
    assert found["optimizer"] == (optimizer or (parent.optimizer if parent else "sgd"))


@pytest.mark.parametrize(
    ("parent", "optimizer", "expected"),
    [
        (None, None, ("sgd", 0.01)),
        (SGD, None, ("sgd", 0.01)),
        (ADAMW, "sgd", ("sgd", 0.01)),
        (SGD, "adamw", ("adamw", 0.01)),
        (None, "adamw", ("adamw", 0.01)),
    ],
)
def test_only_adamw_after_adamw_depends_on_what_was_lost(parent, optimizer, expected):
    found = restart(parent, never, optimizer=optimizer)
    assert (found["optimizer"], found["learning_rate"]) == expected
    assert found["schedule"] == "cosine"
    assert TrainingSettings(**found).learning_rate == 0.01


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        (0.5, 0.4, 0.1),  # Better than before.
        (0.5, 0.5, 0.1),
        (0.5, 0.54, 0.1),  # A rise of 8 %.
        (0.5, 0.6, 0.2),
        (0.5, 0.75, 0.5),
        (0.5, 1.0, 1.0),
        (0.5, 50.0, 1.0),
        (-2.0, -1.0, 0.5),  # A log density.
        (0.0, 0.0, 0.1),
        (0.0, 1e-9, 1.0),
        (0.0, -1.0, 0.1),
        (0.5, math.inf, 1.0),
        (0.5, math.nan, 1.0),
    ],
)
def test_the_rate_is_the_relative_rise_of_the_loss(before, after, share):
    assert restart_rate(1e-4, before=before, after=after) == pytest.approx(1e-4 * share)
    parent = Trained("adamw", 1e-4, before)
    rate = pytest.approx(1e-4 * share)
    assert restart(parent, lambda: after) == {
        "optimizer": "adamw",
        "learning_rate": rate,
        "schedule": "constant",
    }


LOSSES = st.floats(-100, 100, allow_nan=False)


@given(before=LOSSES, after=st.lists(LOSSES, min_size=2), highest=st.floats(1e-6, 1))
def test_more_lost_is_never_a_lower_rate_and_scales_do_not_matter(before, after, highest):
    rates = [restart_rate(highest, before=before, after=each) for each in sorted(after)]
    assert all(a <= b for a, b in itertools.pairwise(rates))
    assert all(0.1 * highest <= rate <= highest for rate in rates)
    scaled = [restart_rate(highest, before=4 * before, after=4 * each) for each in sorted(after)]
    assert scaled == rates
