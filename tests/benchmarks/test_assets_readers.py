"""Loaders read what was written: texts in splits, arrays, pictures, the tensors of EfficientNet."""

import gzip
import io
import struct
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from benchmarks.assets import fashion_mnist, sample_images
from benchmarks.assets.efficientnet import (
    CLASSES,
    HEAD,
    STAGES,
    STEM,
    EfficientNetLite0,
    preprocess,
    their_name,
)
from benchmarks.assets.efficientnet import load as load_efficientnet
from benchmarks.assets.fashion_mnist import read_idx
from benchmarks.assets.reviewed_texts import EDITORIAL_SHARES, REVIEW_SHARES, in_splits, load_editorials
from benchmarks.assets.reviewed_texts import load_reviews as load_reviews
from benchmarks.assets.source import AssetError
from PIL import Image
from tests.benchmarks.packages import make_wheel
from torch import nn

from prunekit import find_groups, trace


def tar_of(files):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return whole.getvalue()


@pytest.fixture
def texts(tmp_path):
    """An archive like VADER's: 40 editorials of three sentences; 100 reviews, each twice."""
    editorials = [f"{d}_{s}\t0.5\tSentence {s} of {d}." for d in range(40) for s in (1, 2, 3)]
    reviews = [f"{i}\t{i / 100 - 1}\tFilm  {i % 100}\u2028\u00e9" for i in range(100)]
    reviews += [f"{i + 100}\t{i / 100}\tfilm {i % 100}\u2028\u00c9" for i in range(100)]
    inner = tar_of(
        {
            "hutto/nytEditorialSnippets_GroundTruth.txt": "\r\n".join(editorials).encode(),
            "hutto/movieReviewSnippets_GroundTruth.txt": "\r\n".join(reviews).encode(),
        }
    )
    path = tmp_path / "vader-1.tar.gz"
    path.write_bytes(tar_of({"vader-1/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    return path


def test_editorials_are_whole_and_in_one_split_each(texts):
    splits = load_editorials(texts)
    assert {split: len(found) for split, found in splits.items()} == {
        split: round(share * 40) for split, share in EDITORIAL_SHARES.items()
    }
    whole = {" ".join(f"Sentence {s} of {d}." for s in (1, 2, 3)) for d in range(40)}
    assert Counter(text for found in splits.values() for text in found) == Counter(whole)


def test_reviews_keep_their_ratings_and_equal_ones_stay_together(texts):
    splits = load_reviews(texts)
    assert {split: len(found) for split, found in splits.items()} == {
        split: round(200 * share) for split, share in REVIEW_SHARES.items()
    }
    of_text = Counter()
    for found in splits.values():
        of_text.update({" ".join(row.text.casefold().split()) for row in found})
        assert {int(row.text.split()[1]) % 100 for row in found} == {
            round(100 * row.rating) % 100 for row in found
        }
    assert set(of_text.values()) == {1}
    assert len(of_text) == 100


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 100])
def test_splits_depend_on_the_keys_alone(count):
    keys = [f"key {index}" for index in range(count)]
    splits = in_splits(keys, keys, EDITORIAL_SHARES)
    assert list(splits) == list(EDITORIAL_SHARES)
    assert sorted(key for found in splits.values() for key in found) == sorted(keys)
    reversed_splits = in_splits(keys[::-1], keys[::-1], EDITORIAL_SHARES)
    assert {split: found[::-1] for split, found in reversed_splits.items()} == splits
    for split, share in EDITORIAL_SHARES.items():
        assert abs(len(splits[split]) - share * count) <= 1


def idx(array):
    """As the format is described: magic number, dimensions big-endian, values."""
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


@pytest.mark.parametrize("shape", [(5,), (3, 2, 4), (0, 28, 28)])
def test_idx_files_are_read(shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    found = read_idx(idx(array))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins like no IDX"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "begins like no IDX"),
        (idx(np.zeros((3, 4)))[:-1], r"11 values for the shape \(3, 4\)"),
    ],
)
def test_a_damaged_idx_file_is_refused(content, message):
    with pytest.raises(AssetError, match=message):
        read_idx(content)


def test_fashion_mnist_is_put_together(tmp_path):
    arrays = {
        "train-images-idx3": np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256,
        "train-labels-idx1": np.array([3, 4]),
        "t10k-images-idx3": np.ones((1, 28, 28)),
        "t10k-labels-idx1": np.array([9]),
    }
    files = {
        f"./usr/share/datasets/fashion-mnist/{name}-ubyte.gz": gzip.compress(idx(array))
        for name, array in arrays.items()
    }
    path = tmp_path / "data.tar.gz"
    path.write_bytes(tar_of(files))
    found = fashion_mnist.load(path)
    for array, expected in zip(vars(found).values(), arrays.values(), strict=True):
        np.testing.assert_array_equal(array, expected)
    path.write_bytes(tar_of(dict(list(files.items())[:3])))
    with pytest.raises(AssetError, match=r"there is no t10k-labels-idx1-ubyte\.gz in it"):
        fashion_mnist.load(path)


def test_pictures_come_with_the_labels_of_their_names(tmp_path):
    files = {}
    for index, label in enumerate((243, 7)):
        file = io.BytesIO()
        Image.new("L" if index else "RGB", (6, 4), 100 * index).save(file, "png")
        files[f"foolbox/data/imagenet_{index:02}_{label}.jpg"] = file.getvalue()
    found = sample_images.load(make_wheel(tmp_path / "tiny_asset-1.0-py3-none-any.whl", files))
    assert found.labels == (243, 7)
    for picture, value in zip(found.pictures, (0, 100), strict=True):
        np.testing.assert_array_equal(picture, np.full((4, 6, 3), value, dtype=np.uint8))


def test_preprocessing_takes_the_middle_and_puts_it_around_zero():
    picture = np.zeros((300, 256, 3), dtype=np.uint8)
    picture[38:262, 16:240] = 255
    inside = preprocess(picture)
    assert inside.shape == (3, 224, 224)
    assert inside.dtype == torch.float32
    assert (inside == 1.0).all()
    assert (preprocess(np.full((512, 600, 3), 127, dtype=np.uint8)) == 0.0).all()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return EfficientNetLite0().eval()


def test_efficientnet_lite0_has_the_size_that_was_published(network):
    """The release says 4.7 million parameters and 407 million multiply-adds.

    Convolutions and classifier alone are 385 million: by the closed form, and as prunekit counts.
    """
    graph = trace(network, torch.zeros(2, 3, 224, 224))
    cost = find_groups(graph).cost()
    macs, size, inputs = STEM * 27 * 112**2, 112, STEM
    for count, kernel, stride, expansion, outputs in STAGES:
        for index in range(count):
            inside = inputs * expansion
            macs += inputs * inside * size**2 if expansion > 1 else 0
            size //= stride if index == 0 else 1
            macs += inside * (kernel**2 + outputs) * size**2
            inputs = outputs
    macs += inputs * HEAD * size**2 + HEAD * CLASSES
    assert (cost.params, cost.macs) == (4_652_008, macs)
    assert cost.params == pytest.approx(4.7e6, rel=0.02)
    assert macs == pytest.approx(407e6, rel=0.06)


def test_strided_convolutions_are_padded_like_tensorflow(network):
    """TensorFlow's definition of SAME: (out - 1) * stride + kernel - in, the smaller half before."""
    strided = [name for name, module in network.named_modules() if getattr(module, "stride", 1) == (2, 2)]
    assert len(strided) == 5
    for name in strided:
        unit = network.get_submodule(name.rpartition(".")[0])
        kernel = unit.conv.kernel_size[0]
        for size in (32, 112):
            x = torch.randn(1, unit.conv.in_channels, size, size)
            total = (size // 2 - 1) * 2 + kernel - size
            before = total // 2
            padded = nn.functional.pad(x, (before, total - before) * 2)
            expected = nn.functional.conv2d(padded, unit.conv.weight, stride=2, groups=unit.conv.groups)
            torch.testing.assert_close(unit.conv(unit.pad(x)), expected)


def test_every_tensor_of_efficientnet_is_read_from_its_own(network, tmp_path):
    state = network.state_dict()
    theirs = {their_name(name): torch.full_like(state[name], index) for index, name in enumerate(state)}
    assert len(theirs) == len(state) == 296
    some = {"_conv_stem.weight", "_blocks.0._bn2.bias", "_blocks.15._expand_conv.weight", "_fc.bias"}
    assert some <= set(theirs)
    file = io.BytesIO()
    torch.save(theirs, file)
    wheel = make_wheel(
        tmp_path / "tiny_asset-1.0-py3-none-any.whl",
        {"package/models/efficientnet-lite0-1.pth": file.getvalue()},
    )
    model = load_efficientnet(wheel)
    assert not model.training
    for index, (name, value) in enumerate(model.state_dict().items()):
        assert (value == index).all(), name
