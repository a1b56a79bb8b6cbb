import copy
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from prunekit.errors import TrainingError
from prunekit.recover import Task, TrainingSettings, task_of, train, validate
from prunekit.workload import Batch, Split, Splits, build_parent, predict

SETTINGS = TrainingSettings(epochs=3, batch_size=16, learning_rate=0.05)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def on_tensors(inputs, targets, model_loss, **changed):
    split = Split("train", TensorDataset(inputs, targets))
    return Task(loss=model_loss, train=split, validation=split, **changed)


def squared_error(outputs, batch):
    return F.mse_loss(outputs, batch.target)


def test_training_learns_and_reports_what_it_did(workload):
    model = build_parent(workload, seed=0)
    record = train(model, workload, dataclasses.replace(SETTINGS, epochs=8))
    table = predict(model, workload.splits.validation, workload)
    best = record.epochs[record.best]
    assert best.validation_metric == table["correct"].mean() > 0.8
    assert best.validation_loss == pytest.approx(table["loss"].mean(), rel=1e-5)
    assert [line.epoch for line in record.epochs] == [float(epoch) for epoch in range(9)]
    assert (record.steps, record.steps_planned, record.examples_seen) == (32, 32, 8 * 65)
    assert (record.metric, record.stopped_early) == ("correct", False)
    assert json.loads(json.dumps(dataclasses.asdict(record)))["steps"] == 32


def test_a_step_is_that_of_torch_sgd():
    # Oracle: torch.optim.SGD by hand, one full batch per epoch, constant rate; decay spares the bias.
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator)
    model = nn.Linear(3, 2)
    expected = copy.deepcopy(model)
    optimizer = torch.optim.SGD(
        [
            {"params": [expected.weight], "weight_decay": 0.1},
            {"params": [expected.bias], "weight_decay": 0.0},
        ],
        lr=0.05,
        momentum=0.9,
        nesterov=True,
    )
    for _ in range(4):
        optimizer.zero_grad()
        F.mse_loss(expected(inputs), targets).backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
        optimizer.step()
    train(
        model,
        on_tensors(inputs, targets, squared_error),
        TrainingSettings(
            epochs=4,
            batch_size=6,
            learning_rate=0.05,
            weight_decay=0.1,
            schedule="constant",
            warmup=0.0,
            clip_norm=0.5,
        ),
    )
    torch.testing.assert_close(model.weight, expected.weight)
    torch.testing.assert_close(model.bias, expected.bias)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_seed_gives_bit_identical_weights(workload, optimizer):
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer, epochs=2.5, learning_rate=0.01)
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = build_parent(workload, seed=4)
        before = torch.get_rng_state()
        train(model, workload, settings)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(weights(model))
    assert same(*results)
    other = build_parent(workload, seed=4)
    train(other, workload, dataclasses.replace(settings, seed=1))
    assert not same(weights(other), results[0])


def test_augmentation_is_seeded_and_spares_validation(workload):
    seen = []

    def augment(batch, generator):
        seen.extend(batch.ids)
        noise = torch.randn(batch.args[0].shape, generator=generator)
        return dataclasses.replace(batch, args=(batch.args[0] + 0.1 * noise,))

    task = dataclasses.replace(task_of(workload), augment=augment)
    results = []
    for chosen in (task, task, task_of(workload)):
        model = build_parent(workload, seed=0)
        train(model, chosen, SETTINGS)
        results.append(weights(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])
    assert {name.split("/")[0] for name in seen} == {"train"}


def test_the_best_epoch_is_restored_with_its_buffers(workload):
    snapshots = []
    task = task_of(workload)

    def spying_score(outputs, batch):
        # The first of three validation batches of an epoch: training is done, nothing is restored yet.
        if batch.ids[0] == "validation/0":
            snapshots.append(weights(model))
        return task.score(outputs, batch)

    model = build_parent(workload, seed=0)
    settings = dataclasses.replace(SETTINGS, epochs=6, learning_rate=0.5, schedule="constant")
    record = train(model, dataclasses.replace(task, score=spying_score), settings)
    ranked = [(line.validation_metric, -line.validation_loss) for line in record.epochs]
    assert record.best == ranked.index(max(ranked))
    assert record.best != len(ranked) - 1
    assert same(weights(model), snapshots[record.best])
    assert validate(model, task, batch_size=16) == (
        record.epochs[record.best].validation_loss,
        record.epochs[record.best].validation_metric,
    )


def test_training_never_ends_worse_than_it_began(workload):
    model = build_parent(workload, seed=0)
    train(model, workload, dataclasses.replace(SETTINGS, epochs=8))
    before = weights(model)
    record = train(model, workload, dataclasses.replace(SETTINGS, epochs=1, learning_rate=40.0, warmup=0.0))
    assert record.best == 0
    assert same(weights(model), before)


def test_patience_stops_and_says_so(workload):
    model = build_parent(workload, seed=0)
    train(model, workload, dataclasses.replace(SETTINGS, epochs=8))
    settings = dataclasses.replace(SETTINGS, epochs=50, learning_rate=2.0, patience=2, warmup=0.0)
    record = train(model, workload, settings)
    assert record.stopped_early
    assert len(record.epochs) - 1 - record.best == 2
    assert record.steps < record.steps_planned == 200


def test_selection_by_loss_takes_the_lowest_loss(workload):
    model = build_parent(workload, seed=0)
    settings = dataclasses.replace(SETTINGS, epochs=6, learning_rate=0.3, select="loss")
    record = train(model, workload, settings)
    losses = [line.validation_loss for line in record.epochs]
    assert record.best == losses.index(min(losses))


@pytest.mark.parametrize(("epochs", "log"), [(0, [0.0]), (0.5, [0.0, 0.5]), (1.25, [0.0, 1.0, 1.25])])
def test_a_fraction_of_an_epoch_is_a_budget(workload, epochs, log):
    model = build_parent(workload, seed=0)
    before = weights(model)
    record = train(model, workload, dataclasses.replace(SETTINGS, epochs=epochs))
    assert [line.epoch for line in record.epochs] == log
    assert record.steps == 4 * epochs
    if epochs == 0:
        assert same(weights(model), before)


def test_a_last_batch_of_one_does_not_reach_batch_norm():
    # 5 examples in batches of 2 end in a single one, on which BatchNorm1d in training mode would raise.
    split = Split("train", TensorDataset(torch.randn(5, 3), torch.randn(5, 1)))
    sizes = []
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[1].register_forward_hook(
        lambda module, args, out: sizes.append(len(out)) if module.training else None
    )
    train(model, Task(squared_error, split, split), TrainingSettings(epochs=2, batch_size=2))
    assert sizes == [2, 3, 2, 3]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_restores_the_best(workload, poison):
    task = task_of(workload)
    calls = []

    def loss(outputs, batch):
        value = task.loss(outputs, batch)
        if outputs.requires_grad:
            calls.append(len(batch))
        return value * poison if len(calls) == 7 and outputs.requires_grad else value

    reference = build_parent(workload, seed=0)
    settings = dataclasses.replace(SETTINGS, schedule="constant", warmup=0.0)
    train(reference, workload, dataclasses.replace(settings, epochs=1))
    model = build_parent(workload, seed=0)
    with pytest.raises(TrainingError, match=f"became {poison} at a learning rate of 0.05") as caught:
        train(model, dataclasses.replace(task, loss=loss), settings)
    assert caught.value.where == "training step 6"
    assert same(weights(model), weights(reference))


def test_a_model_that_comes_with_nan_cannot_start(workload):
    model = build_parent(workload, seed=0)
    with torch.no_grad():
        model[5].bias[0] = math.nan
    with pytest.raises(TrainingError, match="as it came is nan"):
        train(model, workload, SETTINGS)


def test_a_divergence_is_caught_by_validation_at_the_latest(workload):
    model = build_parent(workload, seed=0)
    before = weights(model)
    settings = dataclasses.replace(SETTINGS, epochs=0.25, learning_rate=1e38, warmup=0.0)
    with pytest.raises(TrainingError, match="validation loss became"):
        train(model, workload, settings)
    assert same(weights(model), before)


def test_what_cannot_train_is_refused(workload):
    model = build_parent(workload, seed=0).requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter"):
        train(model, workload, SETTINGS)
    with pytest.raises(TrainingError, match="validation failed"):
        train(nn.Linear(5, 2), workload, SETTINGS)
    detached = dataclasses.replace(task_of(workload), loss=lambda outputs, batch: outputs.detach().mean())
    with pytest.raises(TrainingError, match="the step failed"):
        train(build_parent(workload), detached, SETTINGS)
    empty = Split("train", TensorDataset(torch.zeros(0, 3), torch.zeros(0)))
    with pytest.raises(TrainingError, match="split train: it has no examples"):
        train(nn.Linear(3, 1), Task(squared_error, empty, empty), SETTINGS)


def test_modes_gradients_and_frozen_parameters_are_left_as_found(workload):
    model = build_parent(workload, seed=0).eval()
    model[3].train()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    train(model, workload, SETTINGS)
    assert [module.training for module in model] == [False, False, False, True, False, False]
    assert torch.equal(model[0].weight, frozen)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_counts_every_step(workload):
    done = []
    train(build_parent(workload), workload, SETTINGS, progress=lambda *args: done.append(args))
    assert done == [(step, 12) for step in range(1, 13)]


class Untouchable(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        raise AssertionError("training read test data")


def test_training_gives_the_same_weights_whatever_the_test_data(workload):
    splits = workload.splits
    images, labels = splits.open_test().examples.tensors
    tests = [
        splits.open_test(),
        Split("test", TensorDataset(images + 100, 1 - labels)),
        Split("test", Untouchable()),
    ]
    results = []
    for test in tests:
        parts = Splits(
            train=splits.train, calibration=splits.calibration, validation=splits.validation, test=test
        )
        poisoned = dataclasses.replace(workload, splits=parts)
        model = build_parent(poisoned, seed=0)
        train(model, poisoned, SETTINGS)
        results.append(weights(model))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_a_task_has_no_field_for_test_data():
    assert {field.name for field in dataclasses.fields(Task)} == {
        "loss",
        "train",
        "validation",
        "metric",
        "score",
        "augment",
    }


def test_a_batch_of_keyword_inputs_trains():
    class Items(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            value = torch.tensor([index / 12.0])
            return {"x": value, "label": 2 * value}

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.by * x

    split = Split("train", Items())
    model = Scale()
    settings = TrainingSettings(epochs=30, batch_size=4, learning_rate=0.3, weight_decay=0.0)
    train(model, Task(squared_error, split, split), settings)
    assert isinstance(split.batch([0]), Batch)
    assert model.by.item() == pytest.approx(2.0, abs=0.01)
