import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, TensorDataset

from prunekit.errors import WorkloadError
from prunekit.workload import Batch, Split


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def numbered(count, name="train"):
    return Split(name, TensorDataset(torch.arange(count).float()[:, None], torch.arange(count)))


def seen(split, *args, **kwargs):
    return [batch.target.tolist() for batch in split.batches(*args, **kwargs)]


def test_batches_cover_the_split_in_its_order():
    assert seen(numbered(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]


@given(count=st.integers(1, 40), size=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_shuffled_batches_are_a_permutation_that_depends_on_the_seed_alone(count, size, seed):
    split = numbered(count)
    torch.manual_seed(5)
    first = seen(split, size, shuffle_seed=seed)
    state = torch.get_rng_state()
    assert seen(split, size, shuffle_seed=seed) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(label for batch in first for label in batch) == list(range(count))


def test_another_seed_gives_another_order():
    assert numbered(40).order(0) != numbered(40).order(1)


def test_ids_follow_their_examples():
    batch = next(iter(numbered(9).batches(4, shuffle_seed=3)))
    assert batch.ids == tuple(f"train/{label}" for label in batch.target.tolist())
    assert len(batch) == 4


def test_any_dataset_gives_what_a_tensor_dataset_gives():
    images, labels = torch.randn(6, 1, 2, 2), torch.arange(6)
    fast = Split("train", TensorDataset(images, labels))
    slow = Split(
        "train", Items([(image.numpy(), int(label)) for image, label in zip(images, labels, strict=True)])
    )
    for one, other in zip(fast.batches(4), slow.batches(4), strict=True):
        assert torch.equal(one.args[0], other.args[0])
        assert torch.equal(one.target, other.target)
    assert fast.digest() == slow.digest()


def test_the_keys_of_a_dict_item_become_keyword_inputs():
    items = [{"input_ids": torch.tensor([i, i + 1]), "mask": torch.ones(2), "labels": i} for i in range(3)]
    batch = Split("train", Items(items)).batch([2, 0])
    assert batch.args == ()
    assert batch.kwargs["input_ids"].tolist() == [[2, 3], [0, 1]]
    assert sorted(batch.kwargs) == ["input_ids", "mask"]
    assert batch.target.tolist() == [2, 0]


def test_two_inputs_come_before_the_label():
    batch = Split("train", Items([(torch.zeros(2), torch.ones(3), 1)])).batch([0])
    assert [tuple(value.shape) for value in batch.args] == [(1, 2), (1, 3)]
    assert batch.target.tolist() == [1]


def test_moving_a_batch_moves_every_tensor_in_it():
    batch = Batch(
        args=(torch.ones(2), [torch.ones(2)]),
        kwargs={"m": torch.ones(2)},
        target=torch.ones(2),
        ids=("a", "b"),
    ).to("meta")
    assert {t.device.type for t in (batch.args[0], batch.args[1][0], batch.kwargs["m"], batch.target)} == {
        "meta"
    }
    assert batch.ids == ("a", "b")


def test_the_digest_is_the_documented_hash_of_ids_inputs_and_labels():
    # Oracle: the framing written out by hand for one example.
    def tensor(t):
        return f"tensor {t.dtype} {tuple(t.shape)};".encode() + t.numpy().tobytes()

    image, label = torch.tensor([[1.5, 2.0]]), torch.tensor([1])
    inner = b"sequence 4;" + b"str 4;'a0'" + b"sequence 1;" + tensor(image) + b"mapping 0;" + tensor(label)
    expected = hashlib.sha256(b"train" + hashlib.sha256(inner).digest()).hexdigest()
    assert Split("train", TensorDataset(image, label), ids=["a0"]).digest() == expected


@pytest.mark.parametrize("change", ["pixel", "label", "order", "id", "dtype"])
def test_the_digest_notices_every_change_of_the_data(change):
    images, labels, ids = torch.zeros(3, 2), torch.tensor([0, 1, 2]), ["a", "b", "c"]
    before = Split("train", TensorDataset(images.clone(), labels.clone()), ids=ids).digest()
    if change == "pixel":
        images[2, 1] = 1e-30
    elif change == "label":
        labels[0] = 2
    elif change == "order":
        labels = labels.flip(0)
    elif change == "id":
        ids = ["a", "b", "d"]
    else:
        images = images.double()
    assert Split("train", TensorDataset(images, labels), ids=ids).digest() != before


def test_fingerprints_compare_inputs_and_not_labels():
    split = Split("train", TensorDataset(torch.tensor([[1.0], [2.0], [1.0]]), torch.tensor([0, 1, 2])))
    one, two, three = split.fingerprints()
    assert one == three
    assert one != two


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Split("val", iter([1, 2])), "has no length or no items"),
        (lambda: Split("val", Items([1, 2]), ids=["a"]), "1 ids for 2 examples"),
        (lambda: Split("val", Items([1, 2]), ids=["a", "a"]), "'a' occurs twice"),
        (lambda: Split("val", Items([1, 2])).batch([0]), "without an input and a label"),
        (lambda: Split("val", Items([{"label": 1}])).batch([0]), "without an input and a label"),
        (lambda: Split("val", Items([(np.zeros(2), 0), (np.zeros(3), 0)])).batch([0, 1]), "one batch"),
    ],
)
def test_unusable_examples_are_refused_with_the_name_of_the_split(make, message):
    with pytest.raises(WorkloadError, match=message) as caught:
        make()
    assert caught.value.where == "split val"
