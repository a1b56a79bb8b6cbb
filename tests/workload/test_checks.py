import math

import pytest
import torch
from torch.utils.data import TensorDataset

from prunekit.errors import WorkloadError
from prunekit.workload import Split, Splits, check_splits, check_workload


def rebuilt(splits, **changed):
    parts = {
        "train": splits.train,
        "calibration": splits.calibration,
        "validation": splits.validation,
        "test": splits.open_test(),
    }
    return Splits(**(parts | changed))


def copy_of(split, *, name=None, ids=None):
    images, labels = (tensor.clone() for tensor in split.examples.tensors)
    return Split(name or split.name, TensorDataset(images, labels), ids=ids)


def test_good_splits_pass(splits, workload):
    check_splits(splits, classes=3)
    assert check_workload(workload) is workload


@pytest.mark.parametrize("name", ["train", "calibration", "validation", "test"])
@pytest.mark.parametrize(
    ("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")]
)
def test_a_number_that_is_not_finite_is_named_by_split_and_example(splits, name, value, word):
    split = copy_of(splits.open_test() if name == "test" else getattr(splits, name))
    split.examples.tensors[0][4, 0, 1, 2] = value
    with pytest.raises(WorkloadError, match=word) as caught:
        check_splits(rebuilt(splits, **{name: split}))
    assert caught.value.where == f"split {name}, example 4"


@pytest.mark.parametrize("name", ["train", "calibration", "validation", "test"])
def test_an_empty_split_is_named(splits, name):
    empty = Split(name, TensorDataset(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(WorkloadError, match="no examples") as caught:
        check_splits(rebuilt(splits, **{name: empty}))
    assert caught.value.where == f"split {name}"


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named(splits, label):
    split = copy_of(splits.validation)
    split.examples.tensors[1][2] = label
    with pytest.raises(WorkloadError, match=f"label is {label}.*0 to 2") as caught:
        check_splits(rebuilt(splits, validation=split), classes=3)
    assert caught.value.where == "split validation, example 2"


def test_a_label_that_is_no_integer_is_named(splits):
    images, labels = splits.validation.examples.tensors
    split = Split("validation", TensorDataset(images, labels.float()))
    with pytest.raises(WorkloadError, match="one integer") as caught:
        check_splits(rebuilt(splits, validation=split), classes=3)
    assert caught.value.where == "split validation, example 0"


@pytest.mark.parametrize("name", ["train", "calibration", "validation"])
def test_an_example_that_is_in_test_too_is_named(splits, name):
    split = copy_of(getattr(splits, name))
    split.examples.tensors[0][3] = splits.open_test().examples.tensors[0][6]
    with pytest.raises(WorkloadError, match=r"the input of its example 3 .* test example 6") as caught:
        check_splits(rebuilt(splits, **{name: split}))
    assert caught.value.where == f"split {name}, example 3"


def test_an_id_that_is_in_test_too_is_named(splits):
    ids = [f"photo-{index}" for index in range(7)] + ["test/5"]
    with pytest.raises(WorkloadError, match=r"the id of its example 7 .* test example 5"):
        check_splits(rebuilt(splits, validation=copy_of(splits.validation, ids=ids)))


def test_calibration_may_be_a_part_of_train(splits):
    images, labels = splits.train.examples.tensors
    part = Split("calibration", TensorDataset(images[:6], labels[:6]))
    check_splits(rebuilt(splits, calibration=part), classes=3)
    assert part.fingerprints() == splits.train.fingerprints()[:6]


def test_an_object_that_is_no_workload_is_refused():
    with pytest.raises(WorkloadError, match="without name, kind, metric, splits, build"):
        check_workload(object())
