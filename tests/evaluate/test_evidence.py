import os

import numpy as np
import pandas as pd
import pytest

from prunekit.errors import StorageError, WorkloadError
from prunekit.evaluate import check_evidence, check_paired, read_evidence, write_evidence


@pytest.fixture
def table(make_table):
    return make_table([True, False, True, True], thin=[True, False, False, True])


def test_what_is_written_is_read_back(table, tmp_path):
    table["loss"] = np.array([0.1, 2.5, 0.0, 0.3], dtype=np.float32)
    path = tmp_path / "dense.parquet"
    write_evidence(table.set_index(np.array([4, 3, 2, 1])), path)
    pd.testing.assert_frame_equal(read_evidence(path), table)
    assert [file.name for file in tmp_path.iterdir()] == ["dense.parquet"]


def test_the_same_table_gives_the_same_bytes(table, tmp_path):
    for name in ("a", "b"):
        write_evidence(table, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(table, tmp_path, monkeypatch):
    path = tmp_path / "dense.parquet"
    write_evidence(table, path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_evidence(table.assign(correct=True), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["dense.parquet"]


def test_a_missing_directory_is_a_storage_error(table, tmp_path):
    with pytest.raises(StorageError, match=r"nowhere.*Check that the directory exists"):
        write_evidence(table, tmp_path / "nowhere" / "dense.parquet")


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PAR1" * 9]
)
def test_a_damaged_file_is_a_storage_error(table, tmp_path, damage):
    path = tmp_path / "dense.parquet"
    write_evidence(table, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageError, match="could not be read"):
        read_evidence(path)


def test_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="could not be read"):
        read_evidence(tmp_path / "dense.parquet")


BROKEN = {
    "no rows": (lambda t: t.iloc[:0], "has no rows"),
    "no id": (lambda t: t.drop(columns="example_id"), "no column 'example_id'; it has 'label'"),
    "no metric": (lambda t: t.drop(columns="correct"), "no column 'correct'"),
    "repeated id": (lambda t: t.assign(example_id=["a", "b", "a", "b"]), "'a' appears more than once"),
    "numbered id": (lambda t: t.assign(example_id=[0, 1, 2, 3]), "not text"),
    "absent id": (lambda t: t.assign(example_id=["a", None, "c", "d"]), "not text"),
    "metric NaN": (lambda t: t.assign(correct=[1.0, np.nan, 0.0, np.inf]), "for 2 examples.*'test-1'"),
    "metric text": (lambda t: t.assign(correct=["yes", "no", "no", "yes"]), "has the type"),
    "slice of numbers": (lambda t: t.assign(**{"slice:thin": [1, 0, 0, 1]}), "slice column 'slice:thin'"),
    "slice with gaps": (
        lambda t: t.assign(**{"slice:thin": pd.array([True, None, False, True], dtype="boolean")}),
        "slice column 'slice:thin'",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_not_evidence_is_refused(table, tmp_path, damage, message):
    path = tmp_path / "dense.parquet"
    with pytest.raises(WorkloadError, match=message):
        check_evidence(damage(table), where="dense evidence")
    with pytest.raises(WorkloadError, match=message):
        write_evidence(damage(table), path)
    assert not path.exists()


UNPAIRED = {
    "another order": (lambda t: t.iloc[[1, 0, 2, 3]], "Row 0 has example_id 'test-0' in the dense"),
    "fewer examples": (lambda t: t.iloc[:3], "4 examples and the pruned evidence 3"),
    "another label": (lambda t: t.assign(label=[0, 1, 2, 1]), "Row 3 has label 0"),
    "another slice": (lambda t: t.assign(**{"slice:thin": True}), "Row 1 has slice:thin False"),
    "a slice less": (lambda t: t.drop(columns="slice:thin"), "Only one of the two.*'slice:thin'"),
    "a slice more": (lambda t: t.assign(**{"slice:bold": True}), "Only one of the two.*'slice:bold'"),
    "no prediction": (lambda t: t.drop(columns="prediction"), "Only one of the two.*'prediction'"),
    "not evidence": (lambda t: t.drop(columns="correct"), "pruned evidence: The evidence has no column"),
}


@pytest.mark.parametrize(("damage", "message"), UNPAIRED.values(), ids=UNPAIRED)
def test_evidence_of_other_examples_is_refused(table, damage, message):
    with pytest.raises(WorkloadError, match=message):
        check_paired(table, damage(table))


def test_other_columns_may_differ(table):
    before = table.copy()
    pruned = table.assign(loss=0.5, prediction=7, correct=False)
    check_paired(table, pruned)
    pd.testing.assert_frame_equal(table, before)
