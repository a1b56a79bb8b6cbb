"""The embedded example keeps its four splits apart, and nothing of its test data reaches the others."""

import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from sklearn.datasets import load_digits

from prunekit.workload import build_parent, load_workload

FILE = Path(__file__).parents[2] / "examples" / "digits" / "workload.py"


@pytest.fixture(scope="module")
def digits():
    return load_workload(FILE)


def positions(split):
    return np.array([int(example_id.removeprefix("digit-")) for example_id in split.ids])


def test_the_splits_are_a_stratified_partition_of_all_digits(digits):
    splits = [*digits.splits.deciding, digits.splits.open_test()]
    everything = np.concatenate([positions(split) for split in splits])
    assert sorted(everything.tolist()) == list(range(1797))
    labels = load_digits().target
    for split, share in zip(splits, (0.45, 0.08, 0.12, 0.35), strict=True):
        assert split.batch(split.order()).target.tolist() == labels[positions(split)].tolist()
        counts = np.bincount(labels[positions(split)], minlength=10)
        np.testing.assert_allclose(counts, share * np.bincount(labels), atol=2)


def test_inputs_are_normalised_with_the_train_split(digits):
    train = digits.splits.train.batch(digits.splits.train.order()).args[0]
    assert train.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert train.std().item() == pytest.approx(1.0, abs=1e-5)


def test_poisoned_test_images_change_nothing_that_decides(digits, monkeypatch):
    test = positions(digits.splits.open_test())

    def poisoned_digits():
        data = load_digits()
        data.images[test] = np.random.default_rng(0).uniform(0, 1e6, (len(test), 8, 8))
        return data

    monkeypatch.setattr(sklearn.datasets, "load_digits", poisoned_digits)
    poisoned = load_workload(FILE)
    assert poisoned.splits.test.digest() != digits.splits.test.digest()
    assert poisoned.splits.deciding.digest() == digits.splits.deciding.digest()
    assert torch.equal(poisoned.example_inputs(4).args[0], digits.example_inputs(4).args[0])


def test_distortion_is_seeded_moves_images_and_keeps_the_background(digits):
    batch = digits.splits.train.batch(range(32))
    one, same, other = (digits.augment(batch, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.args[0], same.args[0])
    assert not torch.equal(one.args[0], other.args[0])
    assert one.target is batch.target
    background, brightest = batch.args[0].amin(), batch.args[0].amax()
    assert (one.args[0] >= background - 1e-5).all()
    assert (one.args[0] <= brightest + 1e-5).all()
    distance = torch.cdist(one.args[0].flatten(1), batch.args[0].flatten(1))
    assert (distance.diag() < distance.median(dim=1).values).all()


def test_the_network_has_the_shapes_of_its_stages(digits):
    model = build_parent(digits).eval()
    module = sys.modules[type(model).__module__]
    sizes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda stage, args, out: sizes.append(tuple(out.shape[1:])))
    logits = model(digits.example_inputs(3).args[0])
    assert logits.shape == (3, 10)
    assert sizes == [(width, 8 // 2**index, 8 // 2**index) for index, width in enumerate(module.WIDTHS)]
