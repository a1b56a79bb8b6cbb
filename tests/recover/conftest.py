import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunekit.workload import ImageClassification, Split, Splits


def images_of_two_classes(name, count, seed):
    """Images whose label is which half is brighter, with noise: learnable, not trivial."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randn(count, 1, 4, 4, generator=generator)
    images[:, :, :, :2] += 1.2 * labels.float()[:, None, None, None]
    return Split(name, TensorDataset(images, labels))


def build():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(96, 2),
    )


@pytest.fixture(scope="session")
def toy_split():
    return lambda count: images_of_two_classes("train", count, 0)


@pytest.fixture
def workload():
    return ImageClassification(
        name="toy",
        build=build,
        splits=Splits(
            train=images_of_two_classes("train", 65, 1),
            calibration=images_of_two_classes("calibration", 4, 2),
            validation=images_of_two_classes("validation", 40, 3),
            test=images_of_two_classes("test", 40, 4),
        ),
        class_names=("dark", "bright"),
    )
