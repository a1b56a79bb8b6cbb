"""Lottery-ticket rewinding: an early point of the parent's training, kept, and gone back to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunekit.errors import PlanError, StorageError
from prunekit.files import written_atomically
from prunekit.graph import Groups
from prunekit.plan import PruningPlan
from prunekit.recover.companion import step_of
from prunekit.recover.numbers import check_count, check_share
from prunekit.surgery import Removal, WeightMask, remove, zero_under_masks
from prunekit.surgery.tensors import copied

SCHEMA = "prunekit.early_point/1"
KEY = "prunekit"
"""The entry of the file's header that holds the JSON."""


@dataclass(frozen=True)
class EarlyPoint:
    """Parameters and buffers of a model as they were at one point of its training.

    Attributes:
        tensors: by every name in the model without masks, on the CPU; a tied one is one tensor under all
            its names. Parameters and the buffers that a ``state_dict`` has.
        progress: how much of the training was behind, in [0, 1].

    Raises:
        UsageError: progress that is none.
    """

    tensors: Mapping[str, Tensor]
    progress: float

    def __post_init__(self) -> None:
        check_share("progress", self.progress, where="rewinding")


def early_point(model: nn.Module, progress: float) -> EarlyPoint:
    """Keep a model as it is now, in memory.

    Args:
        model: with masks or without; only read.
        progress: how much of its training is behind, in [0, 1].

    Raises:
        UsageError: progress that is none.
    """
    copies: dict[int, Tensor] = {}
    for _, tensor in _stored(model):
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
    return EarlyPoint({name: copies[id(tensor)] for name, tensor in _stored(model)}, progress)


def rewind(model: nn.Module, point: EarlyPoint) -> None:
    """Give a model the weights and buffers of an early point, in place; its masks stay, and their zeros.

    Begin with a new optimizer: momentum belongs to the weights that were left. The learning rate goes back
    with ``TrainingSettings.rewind_to``, or :func:`prunekit.recover.learning_rate` in your own loop.

    Args:
        model: of the same form as the one at the early point, masked or not. One that lost units:
            :func:`rewound_removal`.
        point: from :func:`early_point` or :func:`load_early_point`.

    Raises:
        PlanError: other names or shapes; the model is as it was.

    Source: Frankle et al., 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", algorithm 1,
    https://arxiv.org/abs/1912.05671; Renda et al., 2020, "Comparing Rewinding and Fine-tuning in Neural
    Network Pruning", section 2, https://arxiv.org/abs/2003.02389. Deviation: none.
    """
    stored = dict(_stored(model))
    wrong = sorted(stored.keys() ^ point.tensors.keys()) or [
        name for name, tensor in stored.items() if tensor.shape != point.tensors[name].shape
    ]
    if wrong:
        raise PlanError(
            f"The early point is that of another model: it differs in {', '.join(wrong[:5])}",
            expected="the early point of this very model, before any of its units went",
            remedy="After units went, use rewound_removal()",
        )
    with torch.no_grad():
        for name, tensor in stored.items():
            tensor.copy_(point.tensors[name])
    zero_under_masks(model)


def rewound_removal(parent: nn.Module, point: EarlyPoint, plan: PruningPlan, groups: Groups) -> Removal:
    """Cut the model of the early point by a plan that was made on the trained one.

    Args:
        parent: the dense model; only read.
        point: of its training.
        plan: which units go.
        groups: of ``parent``, that the plan was made on.

    Returns:
        The smaller model with the early weights and buffers of what is left, as :func:`prunekit.remove`
        gives it.

    Raises:
        PlanError: the point or the plan belongs to another model.

    Source: as :func:`rewind`; for whole units Renda et al., 2020, section 4.
    """
    early = copied(parent)
    rewind(early, point)
    return remove(early, plan, groups)


class EarlyPointKeeper:
    """Keeps the early point while a parent trains: one ``step()`` after every optimizer step.

    Args:
        model: that trains.
        steps: of its whole training, >= 1.
        at: progress at which the point is taken, in [0, 1]; 0 is the model as it is now.
        path: of the file it is written to; None = it is kept in memory only.

    Attributes:
        point: None until it was taken.

    Raises:
        UsageError: numbers that are none of these.
        StorageError: the file cannot be written.
    """

    def __init__(self, model: nn.Module, *, steps: int, at: float, path: Path | str | None = None) -> None:
        check_count("steps", steps, where="rewinding")
        check_share("at", at, where="rewinding")
        self._model, self._steps, self._path = model, steps, path
        self._at, self._step = round(at * steps), 0
        self._made_by = {"steps": steps, "at": self._at}
        self.point: EarlyPoint | None = None
        self._take()

    def step(self) -> None:
        """An optimizer step was made; keep the model if this is the point.

        Raises:
            StorageError: the file cannot be written.
        """
        self._step += 1
        self._take()

    def state_dict(self) -> dict[str, Any]:
        """Where it is; with the early point where that is in memory only."""
        point = self.point if self._path is None else None
        tensors, places = ({}, {}) if point is None else _parts(point)
        return {"step": self._step, **self._made_by, "tensors": tensors, "places": places}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on where the other one was.

        Raises:
            UsageError: it was made for another length or another point.
            StorageError, PlanError: the file it wrote is not there, or damaged.
        """
        self._step, self.point = step_of(state_dict, self._made_by, where="EarlyPointKeeper"), None
        if self._step >= self._at:
            kept = _of_parts(state_dict["tensors"], state_dict["places"], self._at / self._steps)
            self.point = kept if self._path is None else load_early_point(self._path)

    def _take(self) -> None:
        if self._step != self._at:
            return
        self.point = early_point(self._model, self._at / self._steps)
        if self._path is not None:
            save_early_point(self.point, self._path)


def save_early_point(point: EarlyPoint, path: Path | str) -> None:
    """Write an early point to one safetensors file, which is there whole or not at all.

    Raises:
        StorageError: the disk or the directory refused.
    """
    tensors, places = _parts(point)
    text = json.dumps({"schema": SCHEMA, "progress": point.progress, "places": places}, sort_keys=True)
    try:
        with written_atomically(Path(path)) as temporary:
            save_file(tensors, temporary, metadata={KEY: text})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"The early point could not be written: {error}", where=str(path)) from error


def load_early_point(path: Path | str) -> EarlyPoint:
    """Read an early point back.

    Raises:
        PlanError: not such a file, or a damaged one.
        StorageError: the file is missing or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            content = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise StorageError(f"The early point could not be read: {error}", where=str(path)) from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise _damaged(path, "its header is another")
    places, progress = content.get("places"), content.get("progress")
    if not isinstance(places, dict) or not set(places.values()) == set(tensors):
        raise _damaged(path, "its tensors are not those that it lists")
    if not isinstance(progress, int | float):
        raise _damaged(path, f"its progress is {progress!r}")
    return _of_parts(tensors, places, progress)


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and persistent buffer under each of its names in the model without masks."""
    packed = {id(module.packed) for module in model.modules() if isinstance(module, WeightMask)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in packed:
            yield _plain(name), tensor


def _plain(name: str) -> str:
    """``a.parametrizations.weight.original`` is ``a.weight``."""
    parts = name.split(".")
    if len(parts) >= 3 and parts[-3] == "parametrizations" and parts[-1] == "original":
        parts = [*parts[:-3], parts[-2]]
    return ".".join(parts)


def _parts(point: EarlyPoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and by every name the one that it is stored under."""
    first: dict[int, str] = {}
    places = {name: first.setdefault(id(tensor), name) for name, tensor in point.tensors.items()}
    return {name: point.tensors[name].contiguous() for name in first.values()}, places


def _of_parts(tensors: Mapping[str, Tensor], places: Mapping[str, str], progress: float) -> EarlyPoint:
    return EarlyPoint({name: tensors[stored] for name, stored in places.items()}, progress)


def _damaged(path: Path | str, why: str) -> PlanError:
    return PlanError(
        f"It is no early point that could be used: {why}",
        where=str(path),
        remedy="The file is damaged or another one; take the early point again",
    )
