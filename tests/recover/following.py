"""Nets, plans and optimizers that the tests of what follows a removal share."""

from __future__ import annotations

import numpy as np
import torch
from tests.zoo import oracles
from tests.zoo.toys import BY_NAME, groups_of
from torch import nn

from prunekit.plan import Goal, PruningPlan, allocate

OPTIMIZERS = {
    "sgd": lambda each: torch.optim.SGD(each, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda each: torch.optim.AdamW(each, lr=0.01, amsgrad=True),
    "rmsprop": lambda each: torch.optim.RMSprop(each, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda each: torch.optim.Adagrad(each, lr=0.01),
}


def halved(name: str, *, equivalent: bool = True) -> tuple[nn.Module, PruningPlan]:
    """A toy net and a plan for half of the units of its groups."""
    groups = groups_of(name)
    draw = np.random.default_rng(0)
    chosen = [group for group in groups if group.mask_equivalent or not equivalent]
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in chosen}
    kept = groups._with(tuple(chosen), groups.frozen)
    plan = allocate(kept, scores, Goal("sparsity", remove=0.5), criterion="random")
    return BY_NAME[name].model(), plan


def learn(optimizer, parameters: dict[str, nn.Parameter], seed: int, steps: int = 3) -> None:
    """A few steps with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def cut_out(name: str, plan: PruningPlan, tensor_name: str, tensor):
    return oracles.cut_out(groups_of(name), plan.keep_mask(), tensor_name, tensor)


def same_state(found, expected) -> None:
    """Both have the same names, values and nothing else."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


def square() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
