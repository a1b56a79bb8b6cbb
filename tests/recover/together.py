"""What each process of the tests with several processes trains."""

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset

from prunekit.recover import Checkpoints, Task, TrainingSettings, train
from prunekit.workload import Split

SETTINGS = TrainingSettings(
    epochs=2, batch_size=16, learning_rate=0.01, optimizer="adamw", ema=0.9, clip_norm=1.0, accumulate=2
)


class Interrupted(Exception):
    pass


def model_and_task():
    """A small net without batch norm, and 61 examples: the last step has fewer than the others."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(61, 6, generator=generator)
    targets = inputs.square().sum(1, keepdim=True).sin()
    train_split = Split("train", TensorDataset(inputs, targets))
    validation = Split("validation", TensorDataset(inputs[:9] + 0.1, targets[:9]))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 13), nn.LayerNorm(13), nn.GELU(), nn.Linear(13, 1))
    return model, Task(squared_error, train_split, validation)


def squared_error(outputs, batch):
    return nn.functional.mse_loss(outputs, batch.target)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def stop():
    """What all processes do at once."""
    raise Interrupted


def die():
    """End without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk():
    """From here on no file of this process can be larger than 512 bytes; the system refuses more (EFBIG)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))


EVENTS = {"stop": stop, "die": die, "fill disk": fill_disk}


def run(ranks, form="whole", directory="", event="", step="", who="all"):
    """Weights, validation losses, and the step of the checkpoint that it went on from (-1: none).

    Args:
        ranks: the processes.
        form: of the model: ``whole`` on every process, or ``sharded`` over them.
        directory: of checkpoints; "" = none.
        event: a key of :data:`EVENTS` that happens after ``step``; "" = none.
        step: the number of steps that are done by then.
        who: the rank of the process that it happens to, or ``all``.
    """
    model, task = model_and_task()
    if form == "sharded":
        mesh = init_device_mesh("cpu", (ranks.size,))
        for layer in (model[0], model[3]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def progress(done, planned):
        if event and done == int(step) and who in ("all", str(ranks.rank)):
            EVENTS[event]()

    checkpoints = Checkpoints(Path(directory), every_steps=3) if directory else None
    try:
        record = train(model, task, SETTINGS, checkpoints=checkpoints, ranks=ranks, progress=progress)
    except Interrupted:
        return {}
    found = {name: whole(tensor).detach().clone() for name, tensor in model.named_parameters()}
    found["losses"] = torch.tensor([line.validation_loss for line in record.epochs], dtype=torch.float64)
    found["resumed"] = torch.tensor(-1 if record.resumed_at is None else record.resumed_at)
    return found


def fails_alone(ranks):
    """The second process cannot run its only example of the last step; the first could."""
    model, task = model_and_task()
    model[1] = nn.BatchNorm1d(13)
    train(model, task, replace(SETTINGS, batch_size=29), ranks=ranks)
