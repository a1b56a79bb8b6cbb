import pytest
import torch
from torch.utils.data import Dataset

from prunekit.errors import WorkloadError
from prunekit.workload import DecidingSplits, SealedSplit, Split, Splits, deciding


class Untouchable(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise AssertionError("something read test data")


def test_the_test_split_is_sealed_and_says_only_how_much_and_which(splits):
    opened = splits.open_test()
    assert isinstance(splits.test, SealedSplit)
    assert (splits.test.name, len(splits.test), splits.test.digest()) == ("test", 7, opened.digest())
    assert len(next(iter(opened.batches(7)))) == 7


@pytest.mark.parametrize("attribute", ["examples", "ids", "batch", "batches", "order", "fingerprints"])
def test_everything_that_shows_an_example_is_under_seal(splits, attribute):
    assert hasattr(splits.train, attribute)
    with pytest.raises(WorkloadError, match="sealed"):
        getattr(splits.test, attribute)


def test_the_seal_covers_all_that_a_split_offers(splits):
    public = {name for name in dir(splits.train) if not name.startswith("_")}
    shown = {name for name in public if name in dir(splits.test)}
    assert shown == {"name", "digest"}


def test_the_deciding_view_has_no_way_to_the_test_split(splits, workload):
    view = deciding(workload)
    assert isinstance(view.splits, DecidingSplits)
    assert [split.name for split in view.splits] == ["train", "calibration", "validation"]
    assert not hasattr(view.splits, "test")
    assert not hasattr(view.splits, "open_test")
    test = splits.open_test()
    assert all(value is not test for value in [*vars(view).values(), *vars(view.splits).values()])


def test_the_deciding_view_is_otherwise_the_workload(workload):
    view = deciding(workload)
    assert (view.name, view.kind, view.metric) == (workload.name, workload.kind, workload.metric)
    assert view.example_inputs(2).ids == workload.example_inputs(2).ids
    assert deciding(view).splits is view.splits


def test_the_digest_of_what_a_deciding_stage_reads_ignores_the_test_split(splits):
    poisoned = Splits(
        train=splits.train,
        calibration=splits.calibration,
        validation=splits.validation,
        test=Split("test", Untouchable()),
    )
    assert poisoned.deciding.digest() == splits.deciding.digest()
    changed = Splits(
        train=splits.calibration,
        calibration=splits.calibration,
        validation=splits.validation,
        test=splits.open_test(),
    )
    assert changed.deciding.digest() != splits.deciding.digest()


def test_example_inputs_come_from_calibration_and_wrap_round(workload, splits):
    batch = workload.example_inputs(7)
    assert batch.ids == tuple(f"calibration/{index % 5}" for index in range(7))
    assert torch.equal(batch.args[0][6], splits.calibration.batch([1]).args[0][0])
