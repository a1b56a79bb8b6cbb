"""Handwritten digits (scikit-learn's bundled 8x8 images, real data, no download) and a wide residual CNN."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prunekit.workload import Batch, ImageClassification, Split, Splits

WIDTHS = (160, 320, 640)
BLOCKS = (1, 2, 2)
SHARES = {"test": 0.35, "validation": 0.12, "calibration": 0.08}  # of each class; the rest is for training


class ResidualBlock(nn.Module):
    """``relu(shortcut(x) + branch(x))``, the branch two 3x3 convolutions with batch norm.

    Source: He et al., 2016, "Deep Residual Learning for Image Recognition", figure 2, arXiv 1512.03385.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(branch)))


class DigitsNet(nn.Module):
    """A residual CNN over ``[batch, 1, 8, 8]``: stages of halving size, a global average, ten logits."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, blocks: tuple[int, ...] = BLOCKS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        stages, inputs = [], widths[0]
        for index, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (count - 1)
            stage = []
            for stride in strides:
                stage.append(ResidualBlock(inputs, width, stride))
                inputs = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(self.stages(x).mean(dim=(2, 3)))


def stratified(labels: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """The indices of each split, ascending: each class is shuffled and cut by :data:`SHARES`."""
    generator = np.random.default_rng(seed)
    parts: dict[str, list[int]] = {"train": [], **{name: [] for name in SHARES}}
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        begin = 0
        for name, share in SHARES.items():
            end = begin + round(share * len(members))
            parts[name].extend(members[begin:end])
            begin = end
        parts["train"].extend(members[begin:])
    return {name: np.sort(indices) for name, indices in parts.items()}


def distort(batch: Batch, generator: torch.Generator) -> Batch:
    """Turn, scale and shift each image a little, at random (training only)."""
    (images,) = batch.args
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * limit

    angle, scale = uniform(math.radians(12)), 1 + uniform(0.1)
    shift = torch.stack([uniform(0.2), uniform(0.1)], dim=1)  # of half the image: 0.25 is one pixel
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    affine = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], dim=1).view(count, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    background = images.amin()  # grid_sample fills with zeros, and the background is not zero
    moved = F.grid_sample(images - background, grid, align_corners=False) + background
    return dataclasses.replace(batch, args=(moved,))


def workload() -> ImageClassification:
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None]
    labels = torch.from_numpy(digits.target).long()
    parts = stratified(digits.target)
    train = images[parts["train"]]
    images = (images - train.mean()) / train.std()
    ink = images[parts["train"]].mean(dim=(1, 2, 3))
    faint, bold = ink.quantile(0.25).item(), ink.quantile(0.75).item()

    def split(name: str) -> Split:
        index = parts[name]
        ids = [f"digit-{position:04d}" for position in index]
        return Split(name, TensorDataset(images[index], labels[index]), ids=ids)

    return ImageClassification(
        name="digits",
        build=DigitsNet,
        splits=Splits(**{name: split(name) for name in parts}),
        class_names=tuple("0123456789"),
        slices={
            "faint": lambda label, image: image.mean().item() < faint,
            "bold": lambda label, image: image.mean().item() > bold,
        },
        augment=distort,
    )
