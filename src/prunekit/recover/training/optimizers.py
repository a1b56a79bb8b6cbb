"""The optimizers that training can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, learning_rate, momentum: torch.optim.SGD(
        parameters, lr=learning_rate, momentum=momentum, nesterov=momentum > 0
    ),
    "adamw": lambda parameters, learning_rate, momentum: torch.optim.AdamW(parameters, lr=learning_rate),
}
"""Every optimizer by its name in a recipe: (parameter groups, learning rate, momentum) -> optimizer."""


def make_optimizer(
    model: nn.Module, name: str, *, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer over the parameters that require gradients.

    Weight decay goes on tensors of two or more dimensions only: decaying a bias or a norm scale costs
    quality (He et al., 2019, "Bag of Tricks for Image Classification", section 3.1, arXiv 1812.01187).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in trainable if parameter.ndim >= 2],
            "weight_decay": weight_decay,
        },
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name]([group for group in groups if group["params"]], learning_rate, momentum)
