"""The teacher as an objective sees it: what it gives for a batch, computed now or read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ShapeError, TrainingError, UsageError
from prunekit.recover.distillation.pairs import Pair
from prunekit.recover.distillation.positions import Counted, Positions, positions_of
from prunekit.recover.distillation.reading import LOGITS, LogitsOf, find_logits, listening
from prunekit.recover.distillation.remembered import (
    INPUTS,
    Identity,
    Remembered,
    Store,
    check_split,
    digest_of_weights,
    unknown_example,
)
from prunekit.recover.distillation.rows import fingerprints, join_rows, split_rows
from prunekit.recover.distillation.settings import DistillationSettings
from prunekit.workload import Batch, Split, device_of, evaluating


class Teacher:
    """The dense parent, which is run without gradients and left as it is found.

    Args:
        model: the parent.
        logits_of: finds the logits in outputs.
        settings: says which terms there are.
        pairs: says which modules are compared.
        counted: says which positions hold something.

    Attributes:
        model: the parent.
        stores: outputs that were written to disk.
    """

    def __init__(
        self,
        model: nn.Module,
        logits_of: LogitsOf | None,
        settings: DistillationSettings,
        pairs: Sequence[Pair],
        counted: Counted | None,
    ) -> None:
        self.model, self._logits_of, self._counted = model, logits_of, counted
        self.stores: list[Store] = []
        self._checked: set[str] = set()
        self._place = ""
        keys = [LOGITS] if settings.logits else []
        self.keys = tuple(dict.fromkeys([*keys, *(f"{pair.kind}/{pair.teacher}" for pair in pairs)]))

    def give(self, batch: Batch, positions: Positions, student: nn.Module) -> dict[str, Tensor]:
        """What the teacher gives for a batch: logits, and values by kind and module, on the batch's device.

        Args:
            batch: as the student gets it.
            positions: of the batch.
            student: for the device and type of its inputs.
        """
        device = device_of(student)
        if self.stores:
            found = self._read_back(batch, positions)
        else:
            found = self._run(batch, self.keys, _float_type(student))
        return {key: value.to(device) for key, value in found.items()}

    def check_place(self, where: str) -> None:
        """The student's logits lie in its outputs where the teacher's lie.

        Raises:
            ShapeError: they do not.
        """
        if self._place and where != self._place:
            raise ShapeError(
                f"the student's logits are {where} and the teacher's {self._place}",
                expected="outputs of the same structure",
                where="distillation",
                remedy="Give logits_of=, a function that finds the logits in the outputs of both",
            )

    def remember(
        self,
        split: Split,
        directory: Path,
        *,
        batch_size: int,
        shard_bytes: int,
        rebuild: bool,
        progress: Callable[[int, int], None] | None,
    ) -> Remembered:
        """See :meth:`Distillation.remember`."""
        if not self.keys:
            raise UsageError("no term needs the teacher, so that there is nothing to remember")
        if batch_size < 1 or shard_bytes < 1:
            raise UsageError(
                f"batch_size is {batch_size} and shard_bytes is {shard_bytes}", expected="both at least 1"
            )
        others = [store for store in self.stores if store.directory != directory]
        check_split(split, others)
        identity = Identity(
            teacher=digest_of_weights(self.model),
            data=split.digest(),
            logits=_name_of(self._logits_of),
            positions=_name_of(self._counted),
        )
        store = Store(directory, identity, self.keys, split.ids)

        def run(places: Sequence[int], keys: Sequence[str]) -> dict[str, list[Tensor]]:
            batch = split.batch(places)
            positions = positions_of(batch, self.model, self._counted)
            found = self._run(batch, keys, None)
            rows = {key: split_rows(key, value.cpu(), positions) for key, value in found.items()}
            return rows | {
                INPUTS: [torch.tensor(code) for code in fingerprints(batch, positions, len(batch))]
            }

        done = store.fill(
            run, batch_size=batch_size, shard_bytes=shard_bytes, rebuild=rebuild, progress=progress
        )
        self.stores = [*others, store]
        self._checked.clear()
        return done

    def _run(self, batch: Batch, keys: Sequence[str], given: torch.dtype | None) -> dict[str, Tensor]:
        """Run the teacher on a batch, in its own precision whatever the student's is.

        Args:
            batch: on any device.
            keys: what is asked for.
            given: the floating type of the student's inputs, where inputs are turned into the teacher's.
        """
        own = _float_type(self.model)
        batch = batch.to(device_of(self.model))
        if given is not None and own is not None and own != given:
            batch = replace(batch, args=_cast(batch.args, given, own), kwargs=_cast(batch.kwargs, given, own))
        names = []
        for key in keys:
            kind, _, name = key.partition("/")
            names += [] if key == LOGITS else [(kind, name)]
        precision = torch.autocast(device_of(self.model).type, enabled=False)
        hears = listening(self.model, names, "teacher")
        with evaluating(self.model), torch.no_grad(), precision, hears as heard:
            outputs = self.model(*batch.args, **batch.kwargs)
        found = {f"{kind}/{name}": value for (kind, name), value in heard.items()}
        if LOGITS in keys:
            self._place, found[LOGITS] = find_logits(outputs, self._logits_of, "teacher")
        return found

    def _read_back(self, batch: Batch, positions: Positions) -> dict[str, Tensor]:
        if not batch.ids:
            raise unknown_example("")
        rows: dict[str, list[Tensor]] = {key: [] for key in self.keys}
        codes = []
        for example in batch.ids:
            store = next((each for each in self.stores if example in each), None)
            if store is None:
                raise unknown_example(example)
            code, own = store.take(example, self.keys)
            codes.append(code)
            for key in self.keys:
                rows[key].append(own[key])
        self._check_inputs(batch, positions, codes)
        return {key: join_rows(key, each, positions) for key, each in rows.items()}

    def _check_inputs(self, batch: Batch, positions: Positions, codes: Sequence[int]) -> None:
        """The inputs are those that the teacher saw; looked at once for each example."""
        if self._checked.issuperset(batch.ids):
            return
        now = fingerprints(batch, positions, len(batch))
        for example, before, after in zip(batch.ids, codes, now, strict=True):
            if before != after:
                raise TrainingError(
                    f"the inputs of the example {example!r} are not those that the parent saw",
                    expected="examples as they lie in the split that remember() was called for",
                    where="distillation",
                    remedy="Train without augmentation, or without remember()",
                )
        self._checked.update(batch.ids)


def _float_type(model: nn.Module) -> torch.dtype | None:
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), None)


def _cast(value: Any, given: torch.dtype, own: torch.dtype) -> Any:
    """The same, with tensors of one floating type turned into another."""
    if isinstance(value, Tensor):
        return value.to(own) if value.dtype == given else value
    if isinstance(value, tuple | list):
        return type(value)(_cast(item, given, own) for item in value)
    if isinstance(value, dict):
        return {key: _cast(item, given, own) for key, item in value.items()}
    return value


def _name_of(function: Any) -> str:
    """What tells one function from another over several runs."""
    return "" if function is None else f"{function.__module__}.{function.__qualname__}"
