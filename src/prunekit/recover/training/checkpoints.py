"""Checkpoints of a training run: whole or not there, readable by another number of processes, no pickle."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from prunekit.errors import StorageError, UsageError
from prunekit.files import PARTIAL, file_digest, flush
from prunekit.ranks import Ranks
from prunekit.recover.numbers import check, check_count, is_number

STATE, FORMAT = "state.json", 1
NAME = "step-{:09}"

Like = Callable[[str], Tensor | None]
"""``like(place)``: a tensor that is spread over the processes as the one at that place is to be."""


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often a training run writes down all it needs to go on.

    Attributes:
        directory: of this run alone; made if it is not there. Processes on several machines share it.
        every_steps: optimizer steps from one to the next, >= 1; None = by time alone.
        every_seconds: from one to the next, > 0; None = by steps alone.
        keep: how many of the latest are kept, >= 1.

    Raises:
        UsageError: neither steps nor seconds, or a number out of range.
    """

    directory: Path
    every_steps: int | None = None
    every_seconds: float | None = 600.0
    keep: int = 1

    def __post_init__(self) -> None:
        if self.every_steps is None and self.every_seconds is None:
            raise UsageError("checkpoints are to be written never", expected="every_steps or every_seconds")
        object.__setattr__(self, "directory", Path(self.directory))
        check_count("keep", self.keep, where="checkpoints")
        if self.every_steps is not None:
            check_count("every_steps", self.every_steps, where="checkpoints")
        seconds = self.every_seconds
        positive = seconds is None or (is_number(seconds) and seconds > 0)
        check("every_seconds", seconds, "a number above 0", positive, where="checkpoints")

    def are_due(self, steps: int, seconds: float) -> bool:
        """Whether the next one is to be written, so long after the one before."""
        by_steps = self.every_steps is not None and steps >= self.every_steps
        return by_steps or (self.every_seconds is not None and seconds >= self.every_seconds)

    def latest(self) -> Path | None:
        """The newest that is whole; None where there is none."""
        return max(self.whole(), default=None)

    def whole(self) -> list[Path]:
        """All that are whole, the oldest first; other files in the directory are none."""
        found = self.directory.glob("step-*")
        return sorted(path for path in found if path.name[5:].isdigit() and path.is_dir())


def make_room(checkpoints: Checkpoints, ranks: Ranks) -> None:
    """Make the directory, and find out now and not after the first stretch whether it can be written to.

    Raises:
        StorageError: it cannot.
    """
    where = checkpoints.directory
    with ranks.together("making room for checkpoints"), _stored(where):
        if ranks.is_first:
            where.mkdir(parents=True, exist_ok=True)
            if not os.access(where, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(where))


def write_checkpoint(
    checkpoints: Checkpoints,
    step: int,
    state: Mapping[str, Any],
    identity: Mapping[str, str],
    ranks: Ranks,
) -> None:
    """Write one, and remove those that are too many.

    It is written under another name, flushed, and named in the end: at any moment the newest one is whole.
    Every process writes what it alone has; what all have is written once.

    Args:
        checkpoints: where to.
        step: of the run.
        state: tensors, numbers, strings, None, and lists, tuples and dicts of them.
        identity: what the run is; :func:`read_checkpoint` compares it.
        ranks: the processes.

    Raises:
        StorageError: the disk refused; the ones before are as they were.
    """
    name = NAME.format(step)
    whole = checkpoints.directory / name
    partial = checkpoints.directory / f".{name}{PARTIAL}"
    tensors: dict[str, Tensor] = {}
    skeleton = _without_tensors(state, "", tensors)
    with ranks.together("making room for a checkpoint"), _stored(checkpoints.directory):
        if ranks.is_first:
            for left in checkpoints.directory.glob(f".step-*{PARTIAL}"):
                shutil.rmtree(left)
            partial.mkdir(parents=True)
    with ranks.together("writing a checkpoint"), _stored(checkpoints.directory):
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        save(dict(tensors), storage_writer=writer, process_group=ranks.group, no_dist=ranks.size == 1)
    with ranks.together("naming a checkpoint"), _stored(checkpoints.directory):
        if ranks.is_first:
            content = {
                "format": FORMAT,
                "identity": dict(identity),
                "files": {path.name: file_digest(path) for path in sorted(partial.iterdir())},
                "state": skeleton,
            }
            (partial / STATE).write_text(json.dumps(content))
            flush(partial / STATE)
            flush(partial)
            if whole.exists():
                shutil.rmtree(whole)
            partial.rename(whole)
            flush(checkpoints.directory)
            for old in checkpoints.whole()[: -checkpoints.keep]:
                shutil.rmtree(old)


def read_checkpoint(path: Path, identity: Mapping[str, str], like: Like, ranks: Ranks) -> dict[str, Any]:
    """The state that :func:`write_checkpoint` wrote, by however many processes.

    Args:
        path: of one checkpoint.
        identity: of the run that is to go on.
        like: asked for every tensor that was spread over processes.
        ranks: the processes.

    Raises:
        UsageError: it is of another run; the differences are named.
        StorageError: it is damaged.
    """
    with ranks.together("reading a checkpoint"), _stored(path):
        content = json.loads((path / STATE).read_text())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise StorageError(
                f"Its format is {found!r}",
                expected=f"{FORMAT}, that of this version",
                where=str(path),
                remedy="Go on with the version that wrote it, or remove it, and the run begins anew",
            )
        _check_identity(content["identity"], identity, path)
        if ranks.is_first:
            for name, digest in content["files"].items():
                if file_digest(path / name) != digest:
                    raise StorageError(
                        f"{name} is not as it was written",
                        where=str(path),
                        remedy="Remove this checkpoint, and the run begins anew or with an older one",
                    )
        tensors: dict[str, Tensor] = {}
        for place, form in _tensors_in(content["state"]):
            tensors[place] = _room_for(place, form, like)
        reader = HuggingFaceStorageReader(str(path))
        load(tensors, storage_reader=reader, process_group=ranks.group, no_dist=ranks.size == 1)
    return _with_tensors(content["state"], tensors)


@contextmanager
def _stored(where: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():  # Of torch, that it works in a single process, as it was told to.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except (OSError, ValueError, KeyError, CheckpointException) as error:
        raise StorageError(
            f"A checkpoint could not be written or read ({_told(error)})",
            where=str(where),
            remedy="Make room or choose another directory; a run goes on from the checkpoint before",
        ) from error


def _told(error: BaseException) -> str:
    """What went wrong, without the tracebacks that torch puts into its own."""
    causes = [str(error)]
    if isinstance(error, CheckpointException):  # It is raised on all ranks, whichever of them failed.
        others = any(error.failures)
        causes = [
            f"rank {rank}: {cause}" if others else str(cause) for rank, (cause, _) in error.failures.items()
        ] or causes
    return " ".join("; ".join(causes).split())


def _check_identity(found: Mapping[str, str], asked: Mapping[str, str], path: Path) -> None:
    differences = [
        f"{key} was {found.get(key, 'absent')} and is {asked.get(key, 'absent')}"
        for key in sorted({*found, *asked})
        if found.get(key) != asked.get(key)
    ]
    if differences:
        raise UsageError(
            f"The checkpoint is of another run: {'; '.join(differences[:5])}",
            expected="the settings, the data and the model that it was written with",
            where=str(path),
            remedy="Go on with those, give a new run a directory of its own, or remove the checkpoint "
            "to begin anew",
        )


def _without_tensors(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON, with the tensors by their place beside it."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().contiguous()  # Files hold nothing else; think of channels_last.
        form = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        return {"tensor": place, **form, "sharded": isinstance(value, DTensor)}
    if isinstance(value, Mapping):
        pairs = [
            [key, _without_tensors(each, f"{place}/{key}" if place else str(key), tensors)]
            for key, each in value.items()
        ]
        return {"mapping": pairs}
    if isinstance(value, list | tuple):
        items = [_without_tensors(each, f"{place}/{index}", tensors) for index, each in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise StorageError(
        f"A {type(value).__name__} cannot be kept in a checkpoint",
        expected="tensors, numbers, strings, and lists, tuples and dicts of them",
        where=place,
    )


def _tensors_in(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, list):
        for each in value:
            yield from _tensors_in(each)
    elif isinstance(value, dict):
        if "tensor" in value:
            yield value["tensor"], value
        else:
            yield from _tensors_in(value.get("tuple") or [each for _, each in value.get("mapping", [])])


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_with_tensors(each, tensors) for each in value["tuple"])
    return {key: _with_tensors(each, tensors) for key, each in value["mapping"]}


def _room_for(place: str, form: Mapping[str, Any], like: Like) -> Tensor:
    dtype = getattr(torch, form["dtype"])
    owner = like(place) if form["sharded"] else None
    if owner is not None:
        return torch.zeros_like(owner, dtype=dtype, requires_grad=False)
    return torch.zeros(form["shape"], dtype=dtype)
