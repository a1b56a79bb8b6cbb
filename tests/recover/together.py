"""What each process of the tests with several processes runs: ``torchrun together.py OUT FORM STOP DIE``."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset

from prunekit.ranks import ALONE, all_ranks
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


def run(form="alone", checkpoints=None, stop_after=None, die_at=None):
    """Weights and validation losses of a run of this process, or of this one among others."""
    ranks = ALONE if form == "alone" else all_ranks()
    model, task = model_and_task()
    if form == "fsdp":
        mesh = init_device_mesh("cpu", (ranks.size,))
        for layer in (model[0], model[3]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def progress(done, planned):
        if done == stop_after:
            raise Interrupted
        if done == die_at and ranks.rank == 1:
            os._exit(9)

    try:
        record = train(model, task, SETTINGS, checkpoints=checkpoints, ranks=ranks, progress=progress)
    except Interrupted:
        return None, None
    weights = {name: whole(tensor).detach().clone() for name, tensor in model.named_parameters()}
    weights["losses"] = torch.tensor([line.validation_loss for line in record.epochs], dtype=torch.float64)
    weights["resumed"] = torch.tensor(-1 if record.resumed_at is None else record.resumed_at)
    return weights, record


def main():
    out, form, stop, die = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
    checkpoints = Checkpoints(out / "checkpoints", every_steps=3)
    weights, _ = run(form, checkpoints, stop or None, die or None)
    if weights is not None:
        save_file(weights, out / f"rank-{distributed.get_rank()}.safetensors")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
