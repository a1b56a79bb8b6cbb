import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunekit.workload import ImageClassification, Split, Splits


def make_split(name, count, seed, classes=3):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 4, 4, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Split(name, TensorDataset(images, labels))


@pytest.fixture
def splits():
    return Splits(
        train=make_split("train", 20, 1),
        calibration=make_split("calibration", 5, 2),
        validation=make_split("validation", 8, 3),
        test=make_split("test", 7, 4),
    )


@pytest.fixture
def workload(splits):
    return ImageClassification(
        name="toy",
        build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
        splits=splits,
        class_names=("ant", "bee", "cat"),
        slices={"bright": lambda label, image: bool(image.mean() > 0)},
    )
