"""Fashion-MNIST and the residual network of twenty layers, made affordable for one core."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.assets.fashion_mnist import CLASS_NAMES, FashionMnist
from benchmarks.recovery.cells import Cell
from benchmarks.recovery.cuts import Channels, SingleWeights, groups_of
from benchmarks.recovery.parents import Parent, parent
from benchmarks.recovery.subject import Subject
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks import assets
from prunekit.recover import TrainingSettings
from prunekit.workload import Batch, ImageClassification, Split, Splits

WIDTHS = (16, 32, 64)
BLOCKS_PER_STAGE = 3
VALIDATION, CALIBRATION = 5000, 1000
"""Pictures of the 60,000 training pictures that are not trained on."""

PARENT = TrainingSettings(
    epochs=6, batch_size=128, learning_rate=0.1, momentum=0.9, weight_decay=5e-4, warmup=0.05
)


class Block(nn.Module):
    """``relu(shortcut(x) + branch(x))``, the branch two 3x3 convolutions with batch norm."""

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
        """``[batch, outputs, h, w]`` from ``[batch, inputs, ...]``."""
        branch = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(branch)))


class ResNet20(nn.Module):
    """Twenty layers over ``[batch, 1, 28, 28]``: three stages of three blocks, an average, ten logits.

    Source: He, Zhang, Ren & Sun, 2016, "Deep Residual Learning for Image Recognition", section 4.2 with
    ``n = 3``, https://arxiv.org/abs/1512.03385. Deviations: the stem has stride 2, so that the stages see
    14 x 14, 7 x 7 and 4 x 4 positions and training costs a quarter; shortcuts of another shape are 1x1
    convolutions (their option B).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTHS[0], 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks, inputs = [], WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for index in range(BLOCKS_PER_STAGE):
                blocks.append(Block(inputs, width, 2 if stage and not index else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, len(CLASS_NAMES))

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, 10]``."""
        return self.head(self.blocks(F.relu(self.norm(self.stem(x)))).mean(dim=(2, 3)))


@functools.cache
def workload() -> ImageClassification:
    """Train 54,000, calibration 1,000 and validation 5,000 of the training pictures; test 10,000."""
    data: FashionMnist = assets.load("fashion-mnist")
    order = np.random.default_rng(0).permutation(len(data.train_labels))
    cuts = np.split(order, [VALIDATION, VALIDATION + CALIBRATION])
    parts = dict(zip(("validation", "calibration", "train"), cuts, strict=True))
    ground = data.train_images[parts["train"]].astype(np.float32) / 255
    mean, deviation = float(ground.mean()), float(ground.std())

    def split(name: str, images: np.ndarray, labels: np.ndarray) -> Split:
        pixels = torch.from_numpy(images.astype(np.float32) / 255)[:, None]
        return Split(
            name, TensorDataset((pixels - mean) / deviation, torch.from_numpy(labels.astype(np.int64)))
        )

    splits = {
        name: split(name, data.train_images[index], data.train_labels[index]) for name, index in parts.items()
    }
    splits["test"] = split("test", data.test_images, data.test_labels)
    return ImageClassification(
        name="fashion-mnist", build=ResNet20, splits=Splits(**splits), class_names=CLASS_NAMES
    )


def fashion_parent(seed: int) -> Parent:
    """The network of a seed: its weights, the order of the pictures."""
    torch.manual_seed(seed)
    model = ResNet20().to(memory_format=torch.channels_last)
    return parent("fashion", model, workload(), replace(PARENT, seed=seed))


def subject(seed: int) -> Subject:
    """The parent of a seed, and the two kinds of cut."""
    dense = fashion_parent(seed)
    example = Batch(args=(torch.zeros(2, 1, 28, 28),))
    cost = groups_of(dense.model, example).cost()
    return Subject(
        parent=dense,
        workload=workload(),
        training=replace(PARENT, seed=seed),
        example=example,
        cuts={"macs": Channels(example, cost), "weights": SingleWeights()},
        seed=seed,
    )


KINDS, HIGH = ("macs", "weights"), (0.9, 0.7, 0.5)

MOST = (("macs", 0.9), ("macs", 0.7), ("weights", 0.9))
"""Where there is most to recover."""

BLOCKS: tuple[tuple[Cell, ...], ...] = (
    tuple(Cell("nothing", 0.0, budget=budget) for budget in (0.0, 0.2)),
    tuple(Cell(kind, s, way) for s in (0.9, 0.7) for kind in KINDS for way in ("oneshot", "iterative")),
    tuple(Cell(kind, s) for s in (0.5, 0.3) for kind in KINDS),
    tuple(Cell(kind, 0.5, budget=0.1) for kind in KINDS),
    (Cell("macs", 0.9, rates="last"), Cell("macs", 0.9, distilled=True)),
    (Cell("weights", 0.9, "gradual"), Cell("macs", 0.9, "gradual")),
    (Cell("macs", 0.9, rates="middle"),),
    (Cell("macs", 0.9, rates="peak"), Cell("macs", 0.9, budget=0.05), Cell("macs", 0.9, budget=0.1)),
    (Cell("macs", 0.7, rates="last"), Cell("macs", 0.7, distilled=True)),
    tuple(Cell(kind, 0.5, budget=0.05) for kind in KINDS),
    (Cell("weights", 0.7, "gradual"), Cell("weights", 0.9, distilled=True)),
    tuple(Cell(kind, s, budget=budget) for budget in (0.05, 0.1) for kind, s in MOST),
    tuple(Cell(kind, 0.5, "iterative") for kind in KINDS),
    (Cell("macs", 0.5, rates="last"), Cell("weights", 0.9, rates="last")),
    tuple(Cell(kind, s, budget=0.5) for kind, s in (*MOST, ("macs", 0.5))),
    (Cell("macs", 0.7, "gradual"), Cell("macs", 0.5, "gradual"), Cell("weights", 0.5, "gradual")),
    (Cell("macs", 0.5, distilled=True), Cell("weights", 0.7, distilled=True)),
    tuple(Cell("weights", s, budget=budget) for s in (0.7, 0.5) for budget in (0.5, 0.1, 0.05)),
)
"""What is measured, in the order of its worth; every block for all seeds before the next one."""


def design(seeds: Sequence[int]) -> Iterator[Cell]:
    """The cells of :data:`BLOCKS`."""
    return (replace(cell, seed=seed) for block in BLOCKS for seed in seeds for cell in block)
