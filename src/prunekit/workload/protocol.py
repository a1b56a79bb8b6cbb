"""The protocol of a workload, and the view of one that keeps test data out of reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from prunekit.errors import WorkloadError
from prunekit.workload.batch import Batch
from prunekit.workload.splits import DecidingSplits, Splits


@runtime_checkable
class DecidingWorkload(Protocol):
    """What a stage that decides sees of a workload: everything but the test split.

    Laws: ``build`` gives equal weights under equal torch seeds; ``loss`` is the mean of the column ``loss``
    of ``evidence``; ``evidence`` has one row per example, in the order of the batch.

    A workload may also have, and :class:`~prunekit.workload.ImageClassification` always has:
    ``checkpoint`` (path of a safetensors file with the weights of the trained parent, or None),
    ``train_settings`` (how the parent is trained where there is no checkpoint, or None) and
    ``augment(batch, generator) -> Batch`` (applied to training batches only, or None).

    Attributes:
        name: how reports call it.
        kind: the kind of task, such as ``image_classification``.
        metric: the column of the evidence that is the quality; higher is better.
    """

    name: str
    kind: str
    metric: str

    @property
    def splits(self) -> Splits | DecidingSplits:
        """Where examples come from."""
        ...

    def build(self) -> nn.Module:
        """The dense architecture, untrained or pretrained; deterministic under the current torch seed."""
        ...

    def example_inputs(self, batch_size: int = 2) -> Batch:
        """``batch_size`` examples of the calibration split."""
        ...

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """The mean loss over the batch, a scalar."""
        ...

    def evidence(self, outputs: Any, batch: Batch) -> dict[str, np.ndarray]:
        """The columns of the evidence, ``[len(batch)]`` each, with ``example_id`` and :attr:`metric`."""
        ...


@runtime_checkable
class Workload(DecidingWorkload, Protocol):
    """What a model is for: how it is built, what it is fed, and how its answers are scored."""

    @property
    def splits(self) -> Splits:
        """The four splits, test under seal."""
        ...


class _Deciding:
    """A workload whose ``splits`` is the deciding view; everything else is the workload's own."""

    def __init__(self, workload: Workload | DecidingWorkload) -> None:
        splits = workload.splits
        self.splits = splits.deciding if isinstance(splits, Splits) else splits
        self.name, self.kind, self.metric = workload.name, workload.kind, workload.metric
        self.build, self.example_inputs = workload.build, workload.example_inputs
        self.loss, self.evidence = workload.loss, workload.evidence
        self.checkpoint = getattr(workload, "checkpoint", None)
        self.train_settings = getattr(workload, "train_settings", None)
        self.augment = getattr(workload, "augment", None)


def deciding(workload: Workload | DecidingWorkload) -> DecidingWorkload:
    """The workload as a deciding stage may see it: its splits are :class:`DecidingSplits`, without test."""
    return _Deciding(workload)


def build_architecture(workload: DecidingWorkload, *, seed: int = 0) -> nn.Module:
    """Build the dense architecture under ``seed``; the global random state is left as found.

    Raises:
        WorkloadError: ``build()`` gives something else than a module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = workload.build()
    if not isinstance(model, nn.Module):
        raise WorkloadError(
            f"build() returned a {type(model).__name__}",
            expected="a torch.nn.Module",
            where=f"workload {workload.name}",
        )
    return model


def build_parent(workload: DecidingWorkload, *, seed: int = 0) -> nn.Module:
    """Build the dense model under ``seed``, with the checkpoint's weights where the workload names one.

    The global random state is left as found.

    Raises:
        WorkloadError: the checkpoint is missing, damaged, or made for another architecture.
    """
    model = build_architecture(workload, seed=seed)
    checkpoint = getattr(workload, "checkpoint", None)
    if checkpoint is not None:
        load_weights(model, Path(checkpoint))
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into ``model``, in place, every name and shape matching.

    Raises:
        WorkloadError: the file is missing, damaged, or does not fit the model.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WorkloadError(
            f"the checkpoint cannot be read ({error})", expected="a safetensors file", where=str(path)
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise WorkloadError(
            f"the checkpoint does not fit the model ({' '.join(str(error).split())})",
            where=str(path),
            remedy="Save it from the architecture that build() returns",
        ) from error
