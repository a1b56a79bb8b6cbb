"""Running a model over a split and gathering the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from prunekit.workload.protocol import DecidingWorkload
from prunekit.workload.split import Split

if TYPE_CHECKING:
    import pandas as pd


def predict(
    model: nn.Module,
    split: Split,
    workload: DecidingWorkload,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Evaluate ``model`` on every example of ``split``: the evidence table, in the order of the split.

    Runs in eval mode without gradients; the mode of every module is left as found.

    Args:
        model: takes ``*batch.args, **batch.kwargs``.
        split: the examples; a sealed split raises.
        workload: says what the evidence is.
        batch_size: examples per call.
        device: where batches go; by default where the model's first parameter is.
        progress: called with (examples done, all examples) after each batch.

    Returns:
        One row per example, the columns of ``workload.evidence``.
    """
    target_device = device_of(model) if device is None else device
    tables: list[dict[str, np.ndarray]] = []
    done = 0
    with evaluating(model), torch.no_grad():
        for batch in split.batches(batch_size):
            moved = batch.to(target_device)
            tables.append(workload.evidence(model(*moved.args, **moved.kwargs), moved))
            done += len(batch)
            if progress is not None:
                progress(done, len(split))
    import pandas as pd

    return pd.concat([pd.DataFrame(table) for table in tables], ignore_index=True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own mode afterwards, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter, or the CPU for a model without parameters."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
