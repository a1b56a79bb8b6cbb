"""What must hold of a workload's data before anything is computed from it."""

from __future__ import annotations

from typing import Any

import torch

from prunekit.errors import WorkloadError
from prunekit.workload.batch import Batch
from prunekit.workload.protocol import Workload
from prunekit.workload.split import Split
from prunekit.workload.splits import Splits

_REQUIRED = ("name", "kind", "metric", "splits", "build", "example_inputs", "loss", "evidence")


def check_workload(workload: Any) -> Workload:
    """Return ``workload`` if it has what the protocol asks for and its data passes :func:`check_splits`.

    Raises:
        WorkloadError: a part is missing, or the data cannot be used.
    """
    missing = [part for part in _REQUIRED if not hasattr(workload, part)]
    if missing:
        raise WorkloadError(
            f"the workload is a {type(workload).__name__} without {', '.join(missing)}",
            expected="a Workload, such as prunekit.workload.ImageClassification(...)",
        )
    if not isinstance(workload.splits, Splits):
        raise WorkloadError(
            f"its splits are a {type(workload.splits).__name__}",
            expected="prunekit.workload.Splits(train=..., calibration=..., validation=..., test=...)",
            where=f"workload {workload.name}",
        )
    class_names = getattr(workload, "class_names", None)
    check_splits(workload.splits, classes=None if class_names is None else len(class_names))
    return workload


def check_splits(splits: Splits, *, classes: int | None = None) -> None:
    """Check that every split has usable examples and that the test split shares none with the others.

    Rules: (1) no split is empty; (2) no input is NaN or infinite; (3) labels lie in ``[0, classes)``, where
    ``classes`` is given; (4) no id and (5) no identical input is both in test and in another split.

    Raises:
        WorkloadError: names the split and the first offending index.
    """
    test = splits.open_test()
    for split in (*splits.deciding, test):
        if len(split) == 0:
            raise WorkloadError("it has no examples", expected="at least one", where=f"split {split.name}")
        for index in range(len(split)):
            _check_example(split.batch([index]), classes, where=f"split {split.name}, example {index}")
    test_ids = dict(zip(test.ids, range(len(test)), strict=True))
    test_inputs = dict(zip(test.fingerprints(), range(len(test)), strict=True))
    for split in splits.deciding:
        _check_apart(split, split.ids, test_ids, "the id")
        _check_apart(split, split.fingerprints(), test_inputs, "the input")


def _check_example(batch: Batch, classes: int | None, *, where: str) -> None:
    for value in (*batch.args, *batch.kwargs.values()):
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            found = "NaN" if torch.isnan(value).any() else "an infinite value"
            raise WorkloadError(
                f"its input has {found}",
                expected="finite numbers",
                where=where,
                remedy="Clean or drop the example",
            )
    if classes is None:
        return
    label = batch.target
    if not isinstance(label, torch.Tensor) or label.is_floating_point() or label.numel() != 1:
        raise WorkloadError(f"its label is {label}", expected="one integer", where=where)
    if not 0 <= int(label) < classes:
        raise WorkloadError(
            f"its label is {int(label)}", expected=f"a label from 0 to {classes - 1}", where=where
        )


def _check_apart(split: Split, keys: Any, test_index: dict[Any, int], what: str) -> None:
    for index, key in enumerate(keys):
        if key in test_index:
            raise WorkloadError(
                f"{what} of its example {index} is also {what} of test example {test_index[key]}",
                expected="a test split that shares no example with the others",
                where=f"split {split.name}, example {index}",
                remedy="Drop it from one of the two splits: what was seen before says nothing about quality",
            )
