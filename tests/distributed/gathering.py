"""What the processes of the tests gather: every statistic there is, on nets with all kinds of units."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tests.zoo.experts import Mixture, gathered
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import prunekit as pk
from prunekit.importance import CRITERIA, NEEDS, Statistics
from prunekit.plan import Goal, allocate
from prunekit.ranks import ALONE, Ranks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """Two layers that can go, then a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.mixture = Mixture(gathered)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.mixture(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


@cache
def groups() -> pk.Groups:
    return pk.find_groups(pk.trace(net(), batch(0).args))


def images_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.InstanceNorm2d(4, track_running_stats=True),
    )


def batch(number: int) -> pk.Batch:
    """Batches of different sizes."""
    draw = torch.Generator().manual_seed(number)
    size = 3 + number % 3
    x, target = torch.randn(size, 6, generator=draw), torch.randint(0, 4, (size,), generator=draw)
    return pk.Batch(args=(x,), target=target, ids=tuple(map(str, range(size))))


def images(number: int) -> pk.Batch:
    draw = torch.Generator().manual_seed(number)
    return pk.Batch(args=(torch.randn(3 + number % 3, 3, 8, 8, generator=draw),))


def loss(outputs: Tensor, batch: pk.Batch) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch.target)


SHARES: dict[str, tuple[tuple[int, ...], ...]] = {
    "one each of two": ((0,), (1,)),
    "three and two": ((0, 1, 2), (3, 4)),
    "none and three": ((), (0, 1, 2)),
    "one each of three": ((0,), (1,), (2,)),
    "two, none and three": ((0, 1), (), (2, 3, 4)),
}
"""Which batches each process has."""


def of_two(ranks: Ranks) -> dict[str, dict[str, Any]]:
    return _of_size(ranks, 2)


def of_three(ranks: Ranks) -> dict[str, dict[str, Any]]:
    return _of_size(ranks, 3)


def _of_size(ranks: Ranks, size: int) -> dict[str, dict[str, Any]]:
    return {
        name: everything(share[ranks.rank], ranks) for name, share in SHARES.items() if len(share) == size
    }


def everything(numbers: Sequence[int], ranks: Ranks = ALONE) -> dict[str, Any]:
    """All statistics, scores by every criterion that they are enough for, and plans, from these batches."""
    model, batches = net(), [batch(number) for number in numbers]
    found = all_statistics(model, numbers, ranks)
    weights = pk.find_weights(model)
    linear = pk.find_weights(model, ignore=["*mixture.up", "*mixture.down"])
    found |= {f"norm {n}": v for n, v in pk.input_norms(model, linear, batches, ranks=ranks).items()}
    gradients = pk.mean_gradients(model, weights, batches, loss, ranks=ranks)
    found |= {f"gradient {name}": value for name, value in gradients.items()}
    return found | _recalibrated(numbers, ranks) | _moved(numbers, ranks)


def told(stats: Statistics) -> dict[str, Any]:
    """Every figure by what it is."""
    found: dict[str, Any] = {"batches": stats.batches, "loss": stats.loss}
    for need, named in stats.values.items():
        found |= {f"{need} {name}": torch.from_numpy(values) for name, values in named.items()}
    for name, readings in stats.readings.items():
        for reading in readings:
            for part in ("count", "zeros", "total", "magnitude", "squares"):
                found[f"{part} {reading.where} {name}"] = torch.from_numpy(getattr(reading, part))
            if reading.weight_squares is not None:
                found[f"weights {reading.where} {name}"] = torch.from_numpy(reading.weight_squares)
    return found


def sharded_of_two(ranks: Ranks) -> dict[str, dict[str, Any]]:
    return _sharded(ranks, 2)


def sharded_of_three(ranks: Ranks) -> dict[str, dict[str, Any]]:
    return _sharded(ranks, 3)


def _sharded(ranks: Ranks, size: int) -> dict[str, dict[str, Any]]:
    return {
        name: all_statistics(sharded_net(), share[ranks.rank], ranks)
        for name, share in SHARES.items()
        if len(share) == size
    }


def sharded_net() -> nn.Module:
    """Most weights in parts of their own, the rest together; some parts are empty."""
    model = net()
    for block in model.get_submodule("blocks").children():
        fully_shard(block)
    fully_shard(model)
    return model


def all_statistics(model: nn.Module, numbers: Sequence[int], ranks: Ranks = ALONE) -> dict[str, Any]:
    """Whatever calibration gathers from these batches, and scores and plans."""
    batches = [batch(number) for number in numbers]
    stats = pk.collect(model, batches, groups=groups(), needs=NEEDS, loss=loss, ranks=ranks)
    return told(stats) | _scored(model, stats)


def _scored(model: nn.Module, stats: Any) -> dict[str, Any]:
    """Scores of the widths, and the digest of a plan of half of them."""
    widths = groups().select()
    found: dict[str, Any] = {}
    for name, row in CRITERIA.items():
        if row.needs <= NEEDS:
            scores = pk.score(model, widths, name, stats=stats, fallback="l2", seed=3)
            found |= {f"score {name} {group}": torch.from_numpy(values) for group, values in scores.items()}
            plan = allocate(widths, scores, Goal("sparsity", remove=0.5), criterion=name)
            found[f"plan {name}"] = plan.digest
    return found


def _recalibrated(numbers: Sequence[int], ranks: Ranks) -> dict[str, Any]:
    model = images_net()
    report = pk.recalibrate_norms(model, [images(number) for number in numbers], ranks=ranks)
    found: dict[str, Any] = {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    return found | {"norms": list(report.norms), "norm batches": report.batches}


def _moved(numbers: Sequence[int], ranks: Ranks) -> dict[str, Any]:
    """Movement over two steps, of gradients that nobody has averaged."""
    model = net()
    movement = pk.Movement(model, groups().select())
    for step in range(2):
        model.zero_grad()
        x = batch(10 * ranks.rank + step)
        loss(model(*x.args), x).backward()
        movement.update()
    values = movement.statistics(ranks=ranks).values["movement"]
    return {f"movement {name}": torch.from_numpy(value) for name, value in values.items()}
