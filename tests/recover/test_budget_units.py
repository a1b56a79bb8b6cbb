"""A run stops where its budget says, whatever it is counted in."""

import time

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from prunekit.errors import TrainingError, UsageError
from prunekit.recover import Task, TrainingSettings, train
from prunekit.workload import Split, build_parent


class Sentences(Dataset):
    """Four tokens each, of which as many count as the index says."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        real = index % 4 + 1
        return {
            "input_ids": torch.arange(4) + index,
            "attention_mask": (torch.arange(4) < real).long(),
            "labels": torch.tensor(float(real)),
        }


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(32, 1)

    def forward(self, input_ids, attention_mask=None):
        values = self.table(input_ids)[..., 0]
        return (values if attention_mask is None else values * attention_mask).sum(1)


def squared(outputs, batch):
    return (outputs - batch.target).square().mean()


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"steps": 7}, 7),
        ({"examples": 65}, 4),
        ({"examples": 200}, 12),
        ({"examples": 1}, 1),
        ({"epochs": 1.5}, 6),
    ],
)
def test_steps_and_examples_are_counted(workload, budget, steps):
    # Oracle: 65 examples in batches of 16 are 16, 16, 16 and 17, because none is left alone.
    record = train(build_parent(workload, seed=0), workload, TrainingSettings(**budget, batch_size=16))
    seen = sum(17 if step % 4 == 3 else 16 for step in range(steps))
    assert (record.steps, record.steps_planned, record.examples_seen) == (steps, steps, seen)
    assert record.tokens_seen is None


def test_tokens_are_those_that_the_mask_lets_through():
    # Oracle: 12 sentences of 1, 2, 3, 4, 1, ... tokens are 30 tokens an epoch.
    split = Split("train", Sentences())
    record = train(Bag(), Task(squared, split, split), TrainingSettings(tokens=75, batch_size=12))
    assert (record.steps, record.tokens_seen) == (3, 90)
    assert record.steps_planned == 3


def test_without_a_mask_all_elements_of_the_integer_input_count():
    tokens = TensorDataset(torch.arange(24).reshape(6, 4), torch.ones(6))
    split = Split("train", tokens)
    record = train(Bag(), Task(squared, split, split), TrainingSettings(tokens=48, batch_size=3))
    assert (record.steps, record.tokens_seen) == (4, 48)


def test_tokens_of_pictures_are_refused(workload):
    with pytest.raises(TrainingError, match="budget is in tokens"):
        train(build_parent(workload), workload, TrainingSettings(tokens=100))


def test_seconds_end_a_run_and_lead_the_learning_rate(workload):
    began = time.monotonic()
    settings = TrainingSettings(seconds=0.5, batch_size=16, learning_rate=0.01)
    record = train(build_parent(workload, seed=0), workload, settings)
    assert record.steps == record.steps_planned > 0
    assert record.seconds >= 0.5
    assert time.monotonic() - began >= 0.5
    assert not record.stopped_early
    assert 0 <= record.epochs[-1].learning_rate < 0.01


@pytest.mark.parametrize(
    "budget",
    [
        {"steps": 0},
        {"tokens": 0},
        {"seconds": 0.0},
        {"examples": -1},
        {"steps": 5, "epochs": 1},
        {"epochs": 0, "seconds": 3},
    ],
)
def test_a_budget_of_nothing_or_two_budgets_are_refused(budget):
    with pytest.raises(UsageError) as caught:
        TrainingSettings(**budget)
    assert all(unit in str(caught.value) for unit in budget)
    assert caught.value.expected


def test_validation_comes_as_often_as_asked(workload):
    settings = TrainingSettings(steps=7, batch_size=16, validate_every=3)
    record = train(build_parent(workload, seed=0), workload, settings)
    assert [line.step for line in record.epochs] == [0, 3, 6, 7]


def test_a_rewound_schedule_runs_through_its_end(workload):
    # Oracle: the last third of the rates of a run three times as long.
    rates = {}
    for steps, rewind_to in ((12, 0.0), (4, 2 / 3)):
        settings = TrainingSettings(steps=steps, batch_size=16, rewind_to=rewind_to, validate_every=1)
        record = train(build_parent(workload, seed=0), workload, settings)
        rates[steps] = [line.learning_rate for line in record.epochs[1:]]
    assert rates[4] == pytest.approx(rates[12][8:])
