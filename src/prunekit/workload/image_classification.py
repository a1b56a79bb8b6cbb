"""The built-in kind for image classification: cross entropy, and evidence per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.errors import WorkloadError
from prunekit.workload.batch import Batch
from prunekit.workload.splits import Splits


@dataclass(frozen=True)
class ImageClassification:
    """One label per image out of ``class_names``; the quality is the share of correct answers.

    Examples are ``(image, label)`` with ``image`` of any shape that the model takes and ``label`` an integer
    index into ``class_names``. The model gives logits ``[batch, classes]``, or an object with ``.logits``.

    Attributes:
        name: how reports call it.
        build: makes the dense model; deterministic under the current torch seed.
        splits: where examples come from.
        class_names: the names of the classes, by label.
        slices: named subsets of the examples: ``slice(label, image) -> bool`` with the integer label and the
            image as the dataset gives it.
        checkpoint: a safetensors file with the weights of the trained parent.
        train_settings: how the parent is trained where there is no checkpoint (keys of
            ``prunekit.recover.TrainingSettings``).
        augment: ``augment(batch, generator) -> Batch``, applied to training batches only; all randomness from
            ``generator``.
    """

    kind: ClassVar[str] = "image_classification"
    metric: ClassVar[str] = "correct"

    name: str
    build: Callable[[], nn.Module]
    splits: Splits
    class_names: tuple[str, ...]
    slices: Mapping[str, Callable[[int, torch.Tensor], bool]] = field(default_factory=dict)
    checkpoint: Path | None = None
    train_settings: Mapping[str, Any] | None = None
    augment: Callable[[Batch, torch.Generator], Batch] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        if len(set(self.class_names)) != len(self.class_names) or len(self.class_names) < 2:
            raise WorkloadError(
                f"class_names is {self.class_names}",
                expected="at least two distinct names",
                where=f"workload {self.name}",
            )

    def example_inputs(self, batch_size: int = 2) -> Batch:
        """The first ``batch_size`` calibration examples, from the start again if there are fewer."""
        calibration = self.splits.calibration
        return calibration.batch([index % len(calibration) for index in range(batch_size)])

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Mean cross entropy of logits ``[batch, classes]``, in nats."""
        return F.cross_entropy(logits_of(outputs), batch.target)

    def evidence(self, outputs: Any, batch: Batch) -> dict[str, np.ndarray]:
        """One row per image.

        Returns:
            ``example_id``, ``label`` and ``prediction`` (class names), ``correct`` (bool; False where a logit
            is not finite), ``loss`` (nats), ``confidence`` (the largest softmax probability, in [0, 1]),
            and a bool column ``slice:<name>`` for each of :attr:`slices`.
        """
        logits = logits_of(outputs).detach().float()
        target = batch.target
        finite = torch.isfinite(logits).all(dim=1)
        predicted = logits.argmax(dim=1)
        names = np.asarray(self.class_names)
        columns: dict[str, np.ndarray] = {
            "example_id": np.asarray(batch.ids),
            "label": names[target.cpu().numpy()],
            "prediction": names[predicted.cpu().numpy()],
            "correct": ((predicted == target) & finite).cpu().numpy(),
            "loss": F.cross_entropy(logits, target, reduction="none").cpu().numpy().astype(np.float64),
            "confidence": logits.softmax(dim=1).amax(dim=1).cpu().numpy().astype(np.float64),
        }
        for name, belongs in self.slices.items():
            members = [
                bool(belongs(int(label), image)) for label, image in zip(target, batch.args[0], strict=True)
            ]
            columns[f"slice:{name}"] = np.asarray(members, dtype=bool)
        return columns


def logits_of(outputs: Any) -> torch.Tensor:
    """The logits ``[batch, classes]`` in a model's outputs: a tensor, or the attribute ``logits``.

    Raises:
        WorkloadError: neither of the two.
    """
    logits = outputs if isinstance(outputs, torch.Tensor) else getattr(outputs, "logits", None)
    if isinstance(logits, torch.Tensor) and logits.ndim == 2:
        return logits
    raise WorkloadError(
        f"it is a {type(outputs).__name__}" + (f" {tuple(logits.shape)}" if logits is not None else ""),
        expected="logits [batch, classes], or an object with such .logits",
        where="the output of the model",
    )
