"""Prune a model that FSDP2 shards: no process ever holds more of it than its part and one parameter.

torchrun --nproc-per-node 2 examples/distributed/sharded.py
"""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import prunekit as pk
from prunekit.plan import Goal, allocate


class Block(nn.Module):
    """A residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """Three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.blocks = nn.ModuleList(Block(32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def shard(model: nn.Module) -> None:
    """What the training does to the dense model, and prunekit to the smaller one."""
    for block in model.get_submodule("blocks").children():
        fully_shard(block)
    fully_shard(model)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    value = torch.zeros(())
    for step in steps:
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))
        value.backward()
        optimizer.step()
    return float(value.detach())


def main() -> None:
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    ranks = pk.all_ranks()
    torch.manual_seed(0)
    model = Net()
    shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train(model, optimizer, range(ranks.rank, 200, ranks.size))

    with torch.device("meta"):  # The same architecture without values: what is traced.
        meta = Net()
        example = torch.zeros(2, 16)
    groups = pk.find_groups(pk.trace(meta, (example,))).select(granularity="neuron")
    plan = allocate(groups, pk.score(model, groups, "l2"), Goal("sparsity", remove=0.5), criterion="l2")

    removal = pk.remove_sharded(model, plan, groups, meta, shard=shard, ranks=ranks)
    proof = pk.verify_sharded(model, removal, plan, groups, (torch.randn(8, 16),), ranks=ranks)
    pk.follow(optimizer, model, removal, plan, groups)
    del model  # Its part of the dense model is not needed any more.
    after = train(removal.model, optimizer, range(ranks.rank, 100, ranks.size))
    if ranks.is_first:
        print(proof)
        print(f"{plan.before.params} -> {plan.after.params} parameters, loss {after:.2f} after recovery")
    torch.distributed.barrier()  # One that ends while another still talks may abort.
    torch.distributed.destroy_process_group()
    if not proof.passed:
        raise SystemExit(3)


if __name__ == "__main__":
    main()
