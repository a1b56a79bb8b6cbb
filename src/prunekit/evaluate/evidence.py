"""The per-example table of an evaluation: what it must hold, and how it goes to disk and back.

One row per example, in split order. Columns:

- ``example_id`` (str, unique) and the metric (bool or number, higher is better, no NaN): required;
- ``label``: the class, if the task has classes; ``prediction``: what the model answered;
- ``slice:<name>`` (bool): whether the example belongs to the slice;
- anything else (``loss``, ``confidence``, ...) is kept and not interpreted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from prunekit.errors import StorageError, WorkloadError
from prunekit.files import written_atomically

ID = "example_id"
LABEL = "label"
PREDICTION = "prediction"
SLICE_PREFIX = "slice:"


def slice_columns(table: pd.DataFrame) -> list[str]:
    """Name the slice columns of an evidence table, in their order."""
    return [str(name) for name in table.columns if str(name).startswith(SLICE_PREFIX)]


def check_evidence(table: pd.DataFrame, *, metric: str = "correct", where: str = "evidence") -> None:
    """Check that a table is evidence.

    Args:
        table: the per-example table.
        metric: the column that is the quality; higher is better.
        where: how errors name the table.

    Raises:
        WorkloadError: a column is missing or has the wrong type, an id appears twice, the metric is
            not finite somewhere, or there are no rows.
    """
    if len(table) == 0:
        raise WorkloadError(
            "The evidence has no rows",
            expected="one row per evaluated example",
            where=where,
            remedy="Check that the split is not empty",
        )
    for column in (ID, metric):
        if column not in table.columns:
            raise WorkloadError(
                f"The evidence has no column {column!r}; it has {_listed(table.columns)}",
                expected=f"the columns {ID!r} and {metric!r}",
                where=where,
                remedy="Return the column from the workload's evidence(), or name another metric",
            )
    _check_ids(table, where)
    _check_metric(table, metric, where)
    for column in slice_columns(table):
        if not is_bool_dtype(table[column]) or table[column].isna().any():
            raise WorkloadError(
                f"The slice column {column!r} has the type {table[column].dtype} or missing values",
                expected="True or False for every example",
                where=where,
                remedy="Return a bool array for the slice from the workload's evidence()",
            )


def check_paired(dense: pd.DataFrame, pruned: pd.DataFrame, *, metric: str = "correct") -> None:
    """Check that two tables are evidence of the same examples, in the same order.

    Args:
        dense: evidence of the dense parent.
        pruned: evidence of the pruned model.
        metric: the column that is the quality.

    Raises:
        WorkloadError: one of them is not evidence, or their ids, labels or slices differ.
    """
    check_evidence(dense, metric=metric, where="dense evidence")
    check_evidence(pruned, metric=metric, where="pruned evidence")
    if len(dense) != len(pruned):
        raise WorkloadError(
            f"The dense evidence has {len(dense)} examples and the pruned evidence {len(pruned)}",
            expected="the same examples in the same order",
            remedy="Evaluate both models on the same split",
        )
    for column in (LABEL, PREDICTION, *dict.fromkeys([*slice_columns(dense), *slice_columns(pruned)])):
        if (column in dense.columns) != (column in pruned.columns):
            raise WorkloadError(
                f"Only one of the two tables has the column {column!r}",
                expected="the same columns in the dense and the pruned evidence",
                remedy="Evaluate both models with the same workload",
            )
    for column in (ID, LABEL, *slice_columns(dense)):
        if column in dense.columns:
            _check_same(dense, pruned, column)


def write_evidence(table: pd.DataFrame, path: Path | str, *, metric: str = "correct") -> None:
    """Write evidence as Parquet: complete under its name, or not at all.

    Args:
        table: the per-example table; its index is not kept.
        path: the file; its directory exists.
        metric: the column that is the quality.

    Raises:
        WorkloadError: the table is not evidence.
        StorageError: the file could not be written.
    """
    path = Path(path)
    check_evidence(table, metric=metric, where=path.name)
    try:
        with written_atomically(path) as temporary, temporary.open("wb") as file:
            table.reset_index(drop=True).to_parquet(file, engine="pyarrow", index=False)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"The evidence could not be written: {error}",
            where=str(path),
            remedy="Check that the directory exists, is writable and has space, and run the command again",
        ) from error


def read_evidence(path: Path | str, *, metric: str = "correct") -> pd.DataFrame:
    """Read evidence back.

    Args:
        path: a Parquet file that :func:`write_evidence` wrote.
        metric: the column that is the quality.

    Returns:
        The table as it was written, index 0 .. n - 1.

    Raises:
        StorageError: the file is missing, unreadable or damaged.
        WorkloadError: it is a table, but not evidence.
    """
    path = Path(path)
    try:
        table = pd.read_parquet(path, engine="pyarrow")
    except (OSError, pa.ArrowException, ValueError) as error:
        raise StorageError(
            f"The evidence could not be read: {error}",
            expected="a Parquet file written by prunekit",
            where=str(path),
            remedy="Delete the stage's directory and run the command again",
        ) from error
    check_evidence(table, metric=metric, where=str(path))
    return table


def _check_ids(table: pd.DataFrame, where: str) -> None:
    ids = table[ID]
    if ids.isna().any() or not all(isinstance(value, str) for value in ids):
        raise WorkloadError(
            f"The column {ID!r} holds values that are not text",
            expected="a text id for every example",
            where=where,
            remedy="Return str ids from the workload",
        )
    repeated = ids[ids.duplicated()]
    if len(repeated):
        raise WorkloadError(
            f"The {ID} {repeated.iloc[0]!r} appears more than once ({len(repeated)} repeated in all)",
            expected="one row per example",
            where=where,
            remedy="Give every example of the split its own id",
        )


def _check_metric(table: pd.DataFrame, metric: str, where: str) -> None:
    values = table[metric]
    if not (is_bool_dtype(values) or is_numeric_dtype(values)):
        raise WorkloadError(
            f"The metric {metric!r} has the type {values.dtype}",
            expected="True/False or a number for every example",
            where=where,
            remedy="Name a metric that is a number; higher must be better",
        )
    bad = ~np.isfinite(values.to_numpy(dtype=np.float64, na_value=np.nan))
    if bad.any():
        raise WorkloadError(
            f"The metric {metric!r} is not finite for {int(bad.sum())} examples, the first being "
            f"{table[ID].iloc[int(bad.argmax())]!r}",
            expected="a finite value for every example",
            where=where,
            remedy="Check the model's outputs and the data for NaN",
        )


def _check_same(dense: pd.DataFrame, pruned: pd.DataFrame, column: str) -> None:
    left, right = dense[column].to_numpy(dtype=object), pruned[column].to_numpy(dtype=object)
    differ = np.array([a != b for a, b in zip(left, right, strict=True)])
    if differ.any():
        row = int(differ.argmax())
        raise WorkloadError(
            f"Row {row} has {column} {left[row]!r} in the dense evidence and {right[row]!r} in the pruned",
            expected="the same examples, labels and slices in the same order",
            remedy="Evaluate both models on the same split, in its order, without shuffling",
        )


def _listed(columns: pd.Index) -> str:
    return ", ".join(repr(str(name)) for name in columns) or "none"
