"""What the processes of the tests do with a model that FSDP2 shards."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tests.distributed.gathering import Block, told
from torch import nn
from torch.distributed.fsdp import fully_shard

import prunekit as pk
from prunekit.importance import NEEDS
from prunekit.importance.observe import AT_ONCE
from prunekit.plan import Goal, allocate
from prunekit.ranks import Ranks, is_parted, whole


class Tower(nn.Module):
    """Odd sizes, so that shards are unequal; batch norm, a tied head, a frozen parameter, a plain buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)
        self.norm.weight.requires_grad_(False)

    def forward(self, x):
        x = self.table(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x) * self.scale)


def tower() -> Tower:
    """With weights and statistics that are not those of its birth."""
    torch.manual_seed(0)
    model = Tower()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.ndim:
                tensor.add_(torch.rand_like(tensor))
    return model


def shard(model: nn.Module) -> None:
    for block in model.get_submodule("blocks").children():
        fully_shard(block)
    fully_shard(model)


def words(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 11, (4,), generator=torch.Generator().manual_seed(seed))


@cache
def on_meta() -> tuple[nn.Module, pk.Groups]:
    with torch.device("meta"):
        model = Tower()
    return model, pk.find_groups(pk.trace(model, (torch.zeros(4, dtype=torch.long, device="meta"),)))


GRANULARITIES = {"neurons": "neuron", "hidden": "hidden", "layers": "layer", "everything": None}


def plan_for(model: nn.Module, groups: pk.Groups, criterion: str = "l2") -> pk.PruningPlan:
    scores = pk.score(model, groups, criterion)
    return allocate(groups, scores, Goal("sparsity", remove=0.4), criterion=criterion)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    """Steps on the same batch on every process, so that the mean over processes is what one process does."""
    for seed in seeds:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(words(seed)), words(seed + 100)).backward()
        optimizer.step()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01, eps=1e-3)


def removals(ranks: Ranks) -> dict[str, Any]:
    """Train sharded, score, remove, follow and train on, for each kind of units; three processes for one."""
    found: dict[str, Any] = {}
    for kind, granularity in GRANULARITIES.items():
        if ranks.size == 3 and kind != "everything":
            continue
        model = tower()
        shard(model)
        optimizer = optimizer_of(model)
        trained(model, optimizer, range(3))
        meta, groups = on_meta()
        groups = groups.select(granularity=granularity)
        plan = plan_for(model, groups)
        removal = pk.remove_sharded(model, plan, groups, meta, shard=shard, ranks=ranks)
        proof = pk.verify_sharded(model, removal, plan, groups, (words(),), ranks=ranks)
        found[kind] = {
            "plan": plan.to_json(),
            "passed": proof.passed,
            "proof": str(proof),
            "dense": values(model),
            "small": values(removal.model),
            "trains": [p.requires_grad for p in removal.model.parameters()],
            "parted": [type(p).__name__ for p in removal.model.parameters()],
            "moved": dict(removal.moved),
        }
        if kind == "neurons":
            found[kind]["movement"] = moved(model, groups)
        report = pk.follow(optimizer, model, removal, plan, groups)
        found[kind]["narrowed"] = list(report.narrowed)
        found[kind]["reset"] = dict(report.reset)
        trained(removal.model, optimizer, range(3, 6))
        found[kind]["after"] = values(removal.model)
        removal.model.eval()
        found[kind]["outputs"] = removal.model(words()).detach()
    return found


def moved(model: nn.Module, groups: pk.Groups) -> dict[str, torch.Tensor]:
    """Movement of one step."""
    movement = pk.Movement(model, groups)
    model.zero_grad()
    nn.functional.cross_entropy(model(words(7)), words(107)).backward()
    movement.update()
    found = movement.statistics().values["movement"]
    return {name: torch.from_numpy(each) for name, each in found.items()}


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: whole(tensor.detach()).clone()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def statistics(ranks: Ranks) -> dict[str, Any]:
    """Of a tower whose groups were found without values, whole in one process, in parts in several."""
    model = tower()
    if ranks.size > 1:
        shard(model)
        model.eval()(words())  # The root holds whole tensors afterwards.
    batches = [pk.Batch(args=(words(seed),)) for seed in range(6)][ranks.rank :: ranks.size]
    stats = pk.collect(
        model, batches, groups=on_meta()[1], needs=NEEDS - BY_SORTING, loss=energy, ranks=ranks
    )
    return told(stats) | {"parted": all(map(is_parted, model.parameters()))}


BY_SORTING = {"expert_output"}
"""What a tower has nothing of."""


def energy(outputs: torch.Tensor, batch: pk.Batch) -> torch.Tensor:
    """A loss without labels."""
    return outputs.square().mean()


class Deep(nn.Module):
    """Eight weights of the same size, and little else."""

    WIDTH = 512

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(self.WIDTH, self.WIDTH, bias=False) for _ in range(8))

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def held(ranks: Ranks) -> dict[str, Any]:
    """How many weights' worth of bytes are held at once, by statistic."""
    torch.manual_seed(0)
    model, x = Deep(), torch.randn(2, Deep.WIDTH)
    groups = pk.find_groups(pk.trace(model, (x,)))
    if ranks.size > 1:
        shard(model)
    found = {}
    for need in ("readings", "sensitivity"):
        stats = pk.collect(
            model, [pk.Batch(args=(x,))], groups=groups, needs={need}, loss=energy, ranks=ranks
        )
        found[need] = (stats.peak_bytes - 3 * 8 * AT_ONCE) / (4 * Deep.WIDTH**2)
    return found
