"""A bare training loop in which single weights go, come back, or go for a while, on handwritten digits."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy

import prunekit as pk

EPOCHS, BATCH = 20, 64
WAYS = {
    "dense": None,
    "gradual, 95 %": {"sparsity": 0.95},
    "gradual with regrowth, 95 %": {"sparsity": 0.95, "regrow": "gradient"},
    "sparse from the start (RigL), 95 %": {"sparsity": 0.95, "initial": 0.95, "regrow": "gradient"},
    "dense-sparse-dense, 50 %": {
        "sparsity": 0.5,
        "curve": "oneshot",
        "begin": 0.4,
        "end": 0.45,
        "lift": 0.7,
    },
}


def train(masks: dict | None, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = EPOCHS * (len(images) // BATCH)
    if masks is not None:
        schedule = pk.GradualMasks(model, steps=steps, every=20, optimizer=optimizer, **masks)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            if masks is not None:
                schedule.step()
    return pk.fold_masks(model, in_place=True)


def main() -> None:
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
    split = train_test_split(pixels, torch.tensor(digits.target), test_size=0.4, random_state=0)
    images, test_images, labels, test_labels = split
    for name, masks in WAYS.items():
        model = train(masks, images, labels)
        right = (model(test_images).argmax(1) == test_labels).float().mean()
        weights = torch.cat([model[place].weight.flatten() for place in (0, 2, 4)])
        gone = (weights == 0).float().mean()
        print(f"{name:36} {gone:7.2%} of the weights are zero, {right:6.1%} of the test images are right")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
