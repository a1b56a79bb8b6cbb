import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import UsageError
from prunekit.recover import budget_in_epochs, budget_in_steps, steps_per_epoch, training_batches


@given(examples=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 99))
def test_an_epoch_sees_every_example_once_in_the_announced_steps(toy_split, examples, batch_size, seed):
    sizes, seen = [], []
    for batch in training_batches(toy_split(examples), batch_size, shuffle_seed=seed):
        sizes.append(len(batch))
        seen.extend(batch.ids)
    assert len(sizes) == steps_per_epoch(examples, batch_size)
    assert sorted(seen) == sorted(f"train/{index}" for index in range(examples))
    if batch_size > 1 and examples > 1:
        assert min(sizes) > 1


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (0.001, 1), (0.5, 2), (1, 4), (2.5, 10), (3, 12)])
def test_epochs_become_steps(epochs, steps):
    assert budget_in_steps(epochs, train_examples=100, batch_size=25) == steps


def test_a_share_counts_examples_so_that_the_batch_size_does_not_matter():
    epochs = budget_in_epochs(train_examples=100, share_of_original=0.3, original_examples_seen=4000)
    assert epochs == pytest.approx(12.0)
    small, large = (budget_in_steps(epochs, train_examples=100, batch_size=size) for size in (10, 50))
    assert small * 10 == large * 50 == 0.3 * 4000


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "exactly one"),
        ({"epochs": 1, "share_of_original": 0.1}, "exactly one"),
        ({"epochs": -1}, "not negative"),
        ({"epochs": math.inf}, "finite"),
        ({"share_of_original": math.nan, "original_examples_seen": 5}, "finite"),
        ({"share_of_original": 0.1}, "came from a checkpoint"),
    ],
)
def test_a_budget_that_says_nothing_is_refused(budget, message):
    with pytest.raises(UsageError, match=message):
        budget_in_epochs(train_examples=10, **budget)
