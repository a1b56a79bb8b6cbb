"""Twenty labelled pictures of ImageNet's classes, which Foolbox ships as samples."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.assets.archive import members
from benchmarks.assets.source import AssetError
from PIL import Image

FILES = "foolbox/data/imagenet_*.jpg"
LABEL = re.compile(r"imagenet_\d+_(\d+)\.jpg$")


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures in the order of their file names.

    Attributes:
        pictures: each ``[height, width, 3]`` uint8, red, green, blue.
        labels: one of 0 to 999 per picture, in ImageNet's usual order of classes.
    """

    pictures: tuple[np.ndarray, ...]
    labels: tuple[int, ...]


def load(archive: Path) -> LabelledPictures:
    """The pictures, at the size at which they are shipped (512 x 512, one 683 x 1024).

    Raises:
        AssetError: the archive is not the one expected.
    """
    pictures, labels = [], []
    for name, content in members(archive, FILES).items():
        label = LABEL.search(name)
        if label is None:
            raise AssetError(f"{name} does not end with a label", where=archive.name)
        with Image.open(io.BytesIO(content)) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
        labels.append(int(label[1]))
    return LabelledPictures(tuple(pictures), tuple(labels))
