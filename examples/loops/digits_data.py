"""Handwritten digits (scikit-learn's bundled 8x8 images, no download), for training and for validation."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor

TRAINING, VALIDATION = 512, 256


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Images ``[n, 1, 8, 8]`` around 0 and labels ``[n]``; what is left of the 1797 stays untouched."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, validation = order[:TRAINING], order[TRAINING : TRAINING + VALIDATION]
    return {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
    }
