"""Models, losses, scores and data that are out of the ordinary: a right result, or an error that says why."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import prunekit as pk
from prunekit.errors import StorageError, TrainingError, UsageError
from prunekit.ranks import Ranks
from prunekit.recover import Checkpoints, Task, TrainingSettings, train
from prunekit.recover.training.feed import Feed
from prunekit.workload import Split

INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS.sum(1) > 0).long()
SETTINGS = TrainingSettings(steps=8, batch_size=16)


class Interrupted(Exception):
    pass


def cross_entropy(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch.target)


def correct(outputs, batch):
    return (outputs.argmax(1) == batch.target).float().numpy()


def task(examples=None, **changed):
    examples = TensorDataset(INPUTS, LABELS) if examples is None else examples
    splits = Split("train", examples), Split("validation", TensorDataset(INPUTS, LABELS))
    return dataclasses.replace(Task(cross_entropy, *splits, metric="accuracy", score=correct), **changed)


def network(*norm):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), *norm, nn.ReLU(), nn.Linear(16, 2))


def interrupted(model, asked, settings, checkpoints, **others):
    def progress(done, planned):
        if done == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(model, asked, settings, checkpoints=checkpoints, progress=progress, **others)


class WithBuffer(nn.Module):
    def __init__(self, buffer):
        super().__init__()
        self.net = network()
        self.register_buffer("extra", buffer)

    def forward(self, inputs):
        return self.net(inputs)


def transposed():
    model = network()
    model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())
    return model


def channels_last():
    torch.manual_seed(1)
    image = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.Flatten(), nn.Linear(4, 2))
    return image.to(memory_format=torch.channels_last)


MODELS = {
    "a transposed parameter": transposed,
    "channels last": channels_last,
    "an expanded buffer": lambda: WithBuffer(torch.arange(3.0)[:, None].expand(3, 4)),
    "an empty buffer": lambda: WithBuffer(torch.zeros(0, 4)),
    "a complex buffer": lambda: WithBuffer(torch.ones(3, dtype=torch.complex64)),
}


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_goes_on_whatever_the_memory_of_its_tensors(tmp_path, name, ema):
    """Oracle: the run that was not interrupted."""
    settings = dataclasses.replace(SETTINGS, ema=ema)
    expected, first, model = MODELS[name](), MODELS[name](), MODELS[name]()
    train(expected, task(), settings)
    checkpoints = Checkpoints(tmp_path, every_steps=2)
    interrupted(first, task(), settings, checkpoints)
    assert train(model, task(), settings, checkpoints=checkpoints).resumed_at == 4
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, inputs):
        self.seen = torch.cat([self.seen, torch.ones(1)])
        return self.net(inputs)


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(2)), "'0.weight'"),
        (lambda: network().to("meta"), "'0.weight'"),
        (Growing, "'seen'"),
    ],
)
def test_tensors_that_cannot_be_kept_are_named(model, where):
    with pytest.raises(TrainingError, match=f"tensor {where}: it (has no values yet|was of shape)"):
        train(model(), task(), dataclasses.replace(SETTINGS, ema=0.9))


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (lambda outputs, batch: outputs.square().mean(1), r"tensor of shape \[16\]"),
        (lambda outputs, batch: outputs.square().mean().item(), "is a float"),
        (lambda outputs, batch: None, "is a NoneType"),
        (lambda outputs, batch: (outputs.mean(), outputs), "is a tuple"),
    ],
)
@pytest.mark.parametrize("as_objective", [False, True])
def test_a_loss_that_is_not_one_number_is_an_error(loss, named, as_objective):
    def objective(model, batch):
        return loss(model(*batch.args), batch)

    asked = task() if as_objective else task(loss=loss)
    with pytest.raises(TrainingError, match=named):
        train(network(), asked, SETTINGS, objective=objective if as_objective else None)


@pytest.mark.parametrize(
    ("score", "named"),
    [
        (lambda outputs, batch: correct(outputs, batch).mean(keepdims=True), r"shape \[1\] for 16 examples"),
        (lambda outputs, batch: np.where(np.arange(16) == 3, np.nan, 1.0), "nan for example validation/3"),
    ],
)
def test_a_score_that_is_not_a_number_for_each_example_is_an_error(score, named):
    """Nothing is better than NaN, so that the model as it came would win; one score of many is no mean."""
    with pytest.raises(TrainingError, match=named):
        train(network(), task(score=score), SETTINGS)


@pytest.mark.parametrize("count", [33, 34, 35, 51, 67])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(16, 2), (16, 3), (16, 8), (6, 2), (32, 5)])
def test_no_call_is_left_with_one_example_where_full_steps_have_more(count, batch_size, accumulate):
    split = Split("train", TensorDataset(INPUTS.repeat(2, 1)[:count], LABELS.repeat(2)[:count]))
    feed = Feed(split, batch_size=batch_size, accumulate=accumulate, ranks=Ranks(None), workers=0, seed=0)
    steps = list(feed.epoch(0))
    most = math.ceil(batch_size / accumulate)
    sizes = [len(part.batch) for step in steps for part in step.parts]
    assert sum(sizes) == count
    assert min(sizes) >= 2
    assert max(sizes) <= most + 1
    for step in steps:
        assert sum(part.share for part in step.parts) == pytest.approx(1)
    train(
        network(nn.BatchNorm1d(16)),
        task(split.examples),
        TrainingSettings(epochs=1, batch_size=batch_size, accumulate=accumulate),
    )


def test_a_slow_average_of_half_precision_is_that_of_float64():
    """Oracle: the average written down in float64 by a companion."""
    model = network().bfloat16()
    decay, tensors = 0.999, [each.detach().double() for each in model.parameters()]

    class Oracle:
        steps = 0

        def step(self):
            self.steps += 1
            weight = min(decay, (1 + self.steps) / (10 + self.steps))
            for at, each in enumerate(model.parameters()):
                tensors[at] = weight * tensors[at] + (1 - weight) * each.detach().double()

        def state_dict(self):
            return {}

        def load_state_dict(self, state_dict):
            pass

    examples = TensorDataset(INPUTS.bfloat16(), LABELS)
    asked = task(examples, validation=Split("validation", examples), score=None)
    settings = TrainingSettings(steps=400, batch_size=32, ema=decay, learning_rate=0.01, validate_every=200)
    record = train(model, asked, settings, companions=[Oracle()])
    assert record.epochs[record.best].step == 400
    for expected, found in zip(tensors, model.parameters(), strict=True):
        assert torch.allclose(found.double(), expected, rtol=2**-8, atol=1e-4)


class Redrawn(Dataset):
    """Examples with noise that torch draws whenever they are read."""

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return INPUTS[index] + 0.01 * torch.randn(8), LABELS[index]


def test_examples_that_are_drawn_anew_can_be_gone_on_with_and_checkpoints_change_nothing(tmp_path):
    expected, first, model = network(), network(), network()
    train(expected, task(Redrawn()), SETTINGS)
    checkpoints = Checkpoints(tmp_path, every_steps=2)
    interrupted(first, task(Redrawn()), SETTINGS, checkpoints)
    assert train(model, task(Redrawn()), SETTINGS, checkpoints=checkpoints).resumed_at == 4
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def other_loss(outputs, batch):
    return cross_entropy(outputs, batch)


def frozen(model):
    model[0].requires_grad_(False)
    return model


def masked(model, sparsity):
    return pk.mask_weights(model, sparsity=sparsity).model


def distilled(temperature):
    return pk.Distillation(network(), pk.DistillationSettings(temperature=temperature))


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({}, {"task": task(loss=other_loss)}, "loss was .*cross_entropy and is .*other_loss"),
        ({}, {"model": frozen(network())}, "trained parameters was 4 .* and is 2 "),
        ({"model": masked(network(), 0.5)}, {"model": masked(network(), 0.75)}, "masks was "),
        (
            {"objective": distilled(2.0)},
            {"objective": distilled(5.0)},
            "temperature of the objective was 2.0 and is 5.0",
        ),
    ],
)
def test_what_changes_the_result_is_part_of_what_a_run_is(tmp_path, before, after, named):
    """Above all masks: weights of a run with fewer of them would take the new ones away again."""
    checkpoints = Checkpoints(tmp_path, every_steps=2)
    given = {"model": network(), "task": task(), "objective": None}
    train(*_arguments({**given, **before}), checkpoints=checkpoints, objective=before.get("objective"))
    with pytest.raises(UsageError, match=named):
        train(*_arguments({**given, **after}), checkpoints=checkpoints, objective=after.get("objective"))


def _arguments(given):
    return given["model"], given["task"], SETTINGS


def test_a_directory_that_cannot_be_written_to_is_an_error_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    steps = []
    with pytest.raises(StorageError, match="file"):
        train(
            network(),
            task(),
            SETTINGS,
            checkpoints=Checkpoints(tmp_path / "file"),
            progress=lambda done, planned: steps.append(done),
        )
    assert not steps


def test_only_checkpoints_are_taken_for_checkpoints(tmp_path):
    (tmp_path / "step-notes.txt").write_text("")
    (tmp_path / "step-000000006.bak").mkdir()
    record = train(network(), task(), SETTINGS, checkpoints=Checkpoints(str(tmp_path), every_steps=2))
    assert record.resumed_at is None
    assert sorted(Path(tmp_path).glob("step-*.*")) == [
        tmp_path / "step-000000006.bak",
        tmp_path / "step-notes.txt",
    ]


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, every_steps=2)
    train(network(), task(), SETTINGS, checkpoints=checkpoints)
    state = checkpoints.latest() / "state.json"
    state.write_text(state.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(StorageError, match="format is 2"):
        train(network(), task(), SETTINGS, checkpoints=checkpoints)


@pytest.mark.parametrize("wrong", [{"every_steps": 0.5}, {"every_steps": "2"}, {"keep": 1.5}, {"keep": None}])
def test_numbers_of_checkpoints_that_are_none_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match="whole number of at least 1"):
        Checkpoints(tmp_path, **wrong)


def test_a_teacher_that_gives_nan_teaches_nothing_and_says_so():
    teacher = network()
    with torch.no_grad():
        teacher[0].weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="the teacher's logits hold NaN"):
        train(network(), task(loss=None, score=None), SETTINGS, objective=pk.Distillation(teacher))


def test_a_model_is_not_its_own_teacher():
    model = network()
    with pytest.raises(UsageError, match="the model is its own teacher"):
        train(model, task(loss=None, score=None), SETTINGS, objective=pk.Distillation(model))
