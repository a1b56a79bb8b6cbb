"""Prune a model that every process holds whole, with calibration data that are spread over the processes.

    torchrun --nproc-per-node 2 examples/distributed/replicated.py

The plan is the one that a single process makes from all data; the script says so of itself.
"""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import prunekit as pk
from prunekit.plan import Goal, allocate


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def data(number: int) -> pk.Batch:
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(32, 16, generator=draw)
    return pk.Batch(args=(x,), target=(x[:, :4] + 0.1 * torch.randn(32, 4, generator=draw)).argmax(1))


def loss(outputs: torch.Tensor, batch: pk.Batch) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, batch.target)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> float:
    parallel = DistributedDataParallel(model)
    value = torch.zeros(())
    for number in numbers:
        optimizer.zero_grad()
        value = loss(parallel(*data(number).args), data(number))
        value.backward()
        optimizer.step()
    return float(value.detach())


def main() -> None:
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    ranks = pk.all_ranks()
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train(model, optimizer, range(ranks.rank, 200, ranks.size))

    groups = pk.find_groups(pk.trace(model, data(0).args))
    mine = [data(number) for number in range(1000 + ranks.rank, 1010, ranks.size)]
    stats = pk.collect(model, mine, groups=groups, needs=pk.needs_of("taylor"), loss=loss, ranks=ranks)
    scores = pk.score(model, groups, "taylor", stats=stats)
    plan = allocate(groups, scores, Goal("sparsity", remove=0.5), criterion="taylor")

    removal = pk.remove(model, plan, groups, ranks=ranks)  # An error if the plans differ.
    pk.follow(optimizer, model, removal, plan, groups)
    after = train(removal.model, optimizer, range(ranks.rank, 100, ranks.size))
    if ranks.is_first:
        print(f"{stats.batches} batches on {ranks.size} processes, plan {plan.digest[:12]}")
        print(f"{plan.before.params} -> {plan.after.params} parameters, loss {after:.2f} after recovery")
    torch.distributed.barrier()  # One that ends while another still talks may abort.
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
