"""Fashion-MNIST: 70,000 grey pictures of clothes in ten classes, from Debian's package."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.assets.archive import members
from benchmarks.assets.source import AssetError

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

BYTES = 8
"""The code of unsigned bytes in an IDX file."""


@dataclass(frozen=True)
class FashionMnist:
    """The arrays of the data set, in its own order.

    Attributes:
        train_images: ``[60000, 28, 28]`` uint8, 0 black, 255 white.
        train_labels: ``[60000]`` uint8, positions in ``CLASS_NAMES``.
        test_images: ``[10000, 28, 28]`` uint8.
        test_labels: ``[10000]`` uint8.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(archive: Path) -> FashionMnist:
    """The data set. Source: Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.

    Raises:
        AssetError: the archive is not the one expected.
    """
    files = members(archive, "*/fashion-mnist/*-ubyte.gz")
    arrays = {Path(name).name: read_idx(gzip.decompress(content)) for name, content in files.items()}
    try:
        return FashionMnist(
            train_images=arrays["train-images-idx3-ubyte.gz"],
            train_labels=arrays["train-labels-idx1-ubyte.gz"],
            test_images=arrays["t10k-images-idx3-ubyte.gz"],
            test_labels=arrays["t10k-labels-idx1-ubyte.gz"],
        )
    except KeyError as missing:
        raise AssetError(f"there is no {missing.args[0]} in it", where=archive.name) from None


def read_idx(content: bytes) -> np.ndarray:
    """The array of an IDX file of unsigned bytes.

    Two zero bytes, the code of the type, the number of dimensions, each dimension as a big-endian integer of
    four bytes, then the values in C order. Source: LeCun, Cortes and Burges, the MNIST database, "FILE
    FORMATS".

    Raises:
        AssetError: another type, or not as many values as the dimensions say.
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, BYTES]):
        raise AssetError("it begins like no IDX file of unsigned bytes", where="an IDX file")
    begin = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:begin], dtype=">u4"))
    values = np.frombuffer(content, dtype=np.uint8, offset=begin)
    if len(values) != np.prod(shape, dtype=np.int64):
        raise AssetError(f"it has {len(values)} values for the shape {shape}", where="an IDX file")
    return values.reshape(shape).copy()
