"""A bare PyTorch loop in which a network loses half of its channels in three cuts; three lines are new.

``python examples/loops/bare_loop.py`` takes a few seconds and downloads nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from digits_data import digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunekit as pk

EPOCHS, BATCH_SIZE = 6, 32


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def main() -> dict[str, Any]:
    torch.manual_seed(0)
    images, labels = digits()["train"]
    steps = EPOCHS * (len(labels) // BATCH_SIZE)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    shrinking = pk.Shrinking(model, (images[:4],), steps=steps, sparsity=0.5, cycles=3)  # new
    shrinking.use(optimizer, averages=[average])  # new

    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH_SIZE):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            average.update_parameters(model)
            shrinking.step()  # new

    model.eval()
    images, labels = digits()["validation"]
    with torch.no_grad():
        accuracy = float((model(images).argmax(1) == labels).float().mean())
    print(f"accuracy on validation {accuracy:.3f}, widths {shrinking.plan.widths}")
    return {
        "model": model,
        "optimizer": optimizer,
        "average": average,
        "shrinking": shrinking,
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    main()
