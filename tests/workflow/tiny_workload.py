"""A workload small enough to run all stages in seconds: three kinds of stripes in noise, 8 x 8 pixels."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunekit.workload import ImageClassification, Split, Splits

CLASSES = ("rows", "columns", "diagonals")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12))
        self.head = nn.Sequential(nn.Conv2d(12, 16, 3, stride=2), nn.ReLU())
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(16, len(CLASSES))

    def forward(self, image):
        x = self.stem(image)
        x = torch.relu(x + self.body(x))
        return self.fc(self.dropout(self.head(x).mean(dim=(2, 3))))


def examples(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    place = torch.arange(8)
    rows, columns = place[:, None].expand(8, 8), place[None, :].expand(8, 8)
    patterns = torch.stack([rows, columns, rows + columns]) % 3 == 0
    noise = torch.randn(count, 1, 8, 8, generator=generator)
    return TensorDataset(patterns[labels][:, None].float() + 0.5 * noise, labels)


def workload() -> ImageClassification:
    return ImageClassification(
        name="stripes",
        build=Net,
        splits=Splits(
            train=Split("train", examples(192, 0)),
            calibration=Split("calibration", examples(48, 1)),
            validation=Split("validation", examples(48, 2)),
            test=Split("test", examples(96, 3)),
        ),
        class_names=CLASSES,
        slices={"bright": lambda label, image: bool(image.mean() > 0.35)},
    )
