"""A run that was interrupted and goes on is, to the last bit, the run that was not."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunekit.errors import StorageError, TrainingError, UsageError
from prunekit.recover import Checkpoints, TrainingSettings, task_of, train
from prunekit.workload import Split, Splits, build_parent

SETTINGS = TrainingSettings(epochs=2.5, batch_size=16, learning_rate=0.05, seed=3)

CASES = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "schedule": "linear"},
    "average": {"ema": 0.9},
    "parts": {"accumulate": 3, "clip_norm": 0.5},
    "bf16": {"precision": "bf16"},
    "often": {"validate_every": 3},
    "workers": {"workers": 1},
}


class Interrupted(Exception):
    pass


class Counter:
    """A companion that changes the model, so that its state matters."""

    def __init__(self, model):
        self.model, self.count = model, torch.zeros(())

    def step(self):
        self.count += 1
        with torch.no_grad():
            self.model[0].weight.add_(0.001 * self.count)

    def state_dict(self):
        return {"count": self.count, "nested": [1, {"name": None}, (2.5, "x")]}

    def load_state_dict(self, state_dict):
        assert state_dict["nested"] == [1, {"name": None}, (2.5, "x")]
        self.count.copy_(state_dict["count"])


class Scaled(nn.Module):
    """An objective with a parameter and a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, model, batch):
        self.calls += 1
        scaled = model(*batch.args) * self.log_scale.exp()
        return nn.functional.cross_entropy(scaled, batch.target) + 0.01 * self.calls.item()


def noisy(batch, generator):
    noise = 0.1 * torch.randn(batch.args[0].shape, generator=generator)
    return dataclasses.replace(batch, args=(batch.args[0] + noise,))


def run(workload, settings, *, checkpoints=None, stop_after=None):
    """Weights, objective and log after a run with all that can have a state."""
    model, objective = build_parent(workload, seed=0), Scaled()
    companion = Counter(model)

    def progress(done, planned):
        if done == stop_after:
            raise Interrupted

    record = train(
        model,
        dataclasses.replace(task_of(workload), augment=noisy),
        settings,
        objective=objective,
        companions=[companion],
        checkpoints=checkpoints,
        progress=progress,
    )
    log = [dataclasses.replace(line, seconds=0.0) for line in record.epochs]
    return {**model.state_dict(), **objective.state_dict(), "count": companion.count}, log, record


@pytest.mark.parametrize(
    ("case", "stop_after"),
    [
        pytest.param(case, step, marks=[pytest.mark.slow] * (step != 4 and number > 0))
        for number, case in enumerate(CASES)
        for step in (1, 4, 6)
    ],
)
def test_a_run_that_goes_on_is_the_run_that_was_not_interrupted(workload, tmp_path, case, stop_after):
    settings = dataclasses.replace(SETTINGS, **CASES[case])
    expected, log, _ = run(workload, settings)
    checkpoints = Checkpoints(tmp_path / "here", every_steps=2)
    with pytest.raises(Interrupted):
        run(workload, settings, checkpoints=checkpoints, stop_after=stop_after)
    weights, resumed_log, record = run(workload, settings, checkpoints=checkpoints)
    assert record.resumed_at == {1: None, 4: 2, 6: 4}[stop_after]  # Stopped before that of its own step.
    assert resumed_log == log
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


def test_only_the_latest_are_kept_and_nothing_partial_is_left(workload, tmp_path):
    run(workload, SETTINGS, checkpoints=Checkpoints(tmp_path, every_steps=2, keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000006", "step-000000008"]
    files = sorted(path.name for path in (tmp_path / "step-000000008").iterdir())
    assert [Path(name).suffix for name in files] == [".safetensors", ".json"]
    assert json.loads((tmp_path / "step-000000008" / "state.json").read_text())["format"] == 1


def other_settings(workload):
    return workload, dataclasses.replace(SETTINGS, learning_rate=0.1)


def other_order(workload):
    return workload, dataclasses.replace(SETTINGS, seed=4)


def other_data(workload):
    images, labels = workload.splits.train.examples.tensors
    flipped = Split("train", TensorDataset(images.flip(0), labels))
    old = workload.splits.deciding
    splits = Splits(
        train=flipped,
        calibration=old.calibration,
        validation=old.validation,
        test=workload.splits.open_test(),
    )
    return dataclasses.replace(workload, splits=splits), SETTINGS


def other_model(workload):
    def build():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))

    return dataclasses.replace(workload, build=build), SETTINGS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_settings, "learning_rate was 0.05 and is 0.1"),
        (other_order, "seed was 3 and is 4"),
        (other_data, "train data was 65 examples"),
        (other_model, "model was "),
    ],
)
def test_another_run_is_refused_and_the_checkpoint_stays(workload, tmp_path, change, named):
    checkpoints = Checkpoints(tmp_path, every_steps=2)
    run(workload, SETTINGS, checkpoints=checkpoints)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="of another run") as caught:
        run(*change(workload), checkpoints=checkpoints)
    assert named in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["weights", "state", "missing"])
def test_a_damaged_checkpoint_is_refused(workload, tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, every_steps=4)
    run(workload, SETTINGS, checkpoints=checkpoints)
    latest = checkpoints.latest()
    weights = next(latest.glob("*.safetensors"))
    if damage == "weights":
        content = bytearray(weights.read_bytes())
        content[-100] ^= 1
        weights.write_bytes(content)
    elif damage == "state":
        (latest / "state.json").write_text("{")
    else:
        weights.unlink()
    with pytest.raises(StorageError) as caught:
        run(workload, SETTINGS, checkpoints=checkpoints)
    assert str(latest) in str(caught.value)


def test_a_full_disk_stops_the_run_and_keeps_what_there_was(workload, tmp_path):
    # The limit on the size of a file is a real one of the system; what is over it gives EFBIG.
    checkpoints = Checkpoints(tmp_path, every_steps=4)
    with pytest.raises(Interrupted):
        run(workload, SETTINGS, checkpoints=checkpoints, stop_after=6)
    kept = checkpoints.latest()
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
        with pytest.raises(StorageError, match="could not be written"):
            run(workload, SETTINGS, checkpoints=checkpoints)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert checkpoints.latest() == kept
    expected, log, _ = run(workload, SETTINGS)
    weights, resumed_log, _ = run(workload, SETTINGS, checkpoints=checkpoints)
    assert resumed_log == log
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert all(path.name.startswith("step-") for path in tmp_path.iterdir())


def test_a_loss_that_is_nan_leaves_the_checkpoint_and_says_where(workload, tmp_path):
    checkpoints = Checkpoints(tmp_path, every_steps=2)
    task = task_of(workload)
    calls = []

    def loss(outputs, batch):
        calls.extend([1] if outputs.requires_grad else [])
        return task.loss(outputs, batch) * (torch.nan if len(calls) == 6 and outputs.requires_grad else 1)

    model = build_parent(workload, seed=0)
    with pytest.raises(TrainingError, match="became nan at a learning rate of") as caught:
        train(model, dataclasses.replace(task, loss=loss), SETTINGS, checkpoints=checkpoints)
    assert caught.value.where == "training step 5"
    assert checkpoints.latest().name == "step-000000004"


class Dying(TensorDataset):
    """Its process ends when it is asked for the last of its examples."""

    def __getitem__(self, index):
        if index == len(self) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class AsItems:
    """Items one by one, as no TensorDataset is read."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def test_a_reading_process_that_dies_is_an_error_of_the_run(workload):
    tensors = workload.splits.train.examples.tensors
    split = Split("train", AsItems(Dying(*tensors)))
    task = dataclasses.replace(task_of(workload), train=split)
    model = build_parent(workload, seed=0)
    with pytest.raises(TrainingError, match="reading training examples failed"):
        train(model, task, dataclasses.replace(SETTINGS, workers=1))


@pytest.mark.parametrize(
    "wrong",
    [{"every_steps": None, "every_seconds": None}, {"every_steps": 0}, {"every_seconds": -1.0}, {"keep": 0}],
)
def test_checkpoints_that_make_no_sense_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError):
        Checkpoints(tmp_path, **wrong)


KILLED = textwrap.dedent(
    """
    import sys, torch
    from pathlib import Path
    from torch import nn
    from torch.utils.data import TensorDataset
    from prunekit.recover import Checkpoints, Task, TrainingSettings, train
    from prunekit.workload import Split

    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = torch.randn(64, 8)
    split = Split("train", TensorDataset(inputs, inputs.square().sum(1, keepdim=True)))
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.1), nn.ReLU(), nn.Linear(64, 1))
    task = Task(lambda outputs, batch: nn.functional.mse_loss(outputs, batch.target), split, split)
    checkpoints = Checkpoints(Path(sys.argv[1]), every_steps=1) if len(sys.argv) > 2 else None
    settings = TrainingSettings(epochs=30, batch_size=8, ema=0.9, learning_rate=0.001)
    train(model, task, settings, checkpoints=checkpoints)
    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
    Path(sys.argv[1], "weights").write_bytes(weights)
    """
)


@pytest.mark.slow
def test_kill_at_any_time_loses_nothing_but_time(tmp_path):
    """SIGKILL again and again, at times that nobody chose, until a run comes through."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, whole], check=True)
    kills = 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", KILLED, killed, "checkpoints"])
        begun = len(list(killed.glob("step-*")))
        deadline = time.monotonic() + 60
        newest = max(killed.glob("step-*"), default=None)
        while process.poll() is None and time.monotonic() < deadline:
            if begun and max(killed.glob("step-*"), default=None) != newest and kills < 12:
                time.sleep(0.003 * kills)
                process.kill()
            elif not begun and any(killed.glob("step-*")):
                process.kill()
            time.sleep(0.001)
        if process.wait() == 0:
            break
        kills += 1
    assert kills >= 10
    assert (killed / "weights").read_bytes() == (whole / "weights").read_bytes()
