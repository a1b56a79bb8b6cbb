"""The parent's outputs for every example of a split, on disk, so that the parent runs once."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunekit.errors import StorageError, TrainingError, UsageError
from prunekit.files import content_digest, file_digest, found_digest, write_atomically, written_atomically
from prunekit.surgery.tensors import digest_of
from prunekit.workload import Split

SCHEMA = "prunekit.parent_outputs/1"
INDEX = "outputs.json"
INPUTS = "inputs"

Run = Callable[[Sequence[int], Sequence[str]], Mapping[str, Sequence[Tensor]]]
"""``run(places, keys)``: what the parent gives for the examples at these places of the split: by key, and
``inputs`` for their fingerprints, one tensor for each example."""


@dataclass(frozen=True)
class Identity:
    """What remembered outputs follow from.

    Attributes:
        teacher: digest of its weights.
        data: digest of the split.
        logits: how the logits are found in the outputs.
        positions: how padding is told.
    """

    teacher: str
    data: str
    logits: str
    positions: str


@dataclass(frozen=True)
class Remembered:
    """What :meth:`Distillation.remember` did.

    Attributes:
        directory: where the outputs are.
        examples: how many there are.
        computed: for how many of them the parent ran now.
        reason: why it ran, or "" where all was there.
    """

    directory: Path
    examples: int
    computed: int
    reason: str


@dataclass(frozen=True)
class _Shard:
    """One file: the examples from ``start`` to ``stop``, with the digest of the file."""

    file: str
    start: int
    stop: int
    digest: str


class Store:
    """One directory with the parent's outputs.

    Shards are filled in the order of the split, from batches that begin at multiples of the batch size, so
    that what is computed again after an interruption is what would have been computed.

    Args:
        directory: where the files lie.
        identity: what they follow from.
        keys: what is stored of each example.
        ids: of the examples, in the order of the split.
    """

    def __init__(self, directory: Path, identity: Identity, keys: Sequence[str], ids: Sequence[str]) -> None:
        self.directory, self.identity, self.keys = directory, identity, tuple(sorted(keys))
        self._place = {example: place for place, example in enumerate(ids)}
        self._shards: list[_Shard] = []
        self._open: dict[str, Any] = {}
        self.batch_size = 0

    def __contains__(self, example: str) -> bool:
        return example in self._place

    def take(self, example: str, keys: Sequence[str]) -> tuple[int, dict[str, Tensor]]:
        """The fingerprint of an example's inputs, and its rows by key.

        Raises:
            StorageError: a file cannot be read.
        """
        place = self._place[example]
        shard = self._shards[bisect_right(self._shards, place, key=lambda each: each.start) - 1]
        try:
            if shard.file not in self._open:
                opened = safe_open(self.directory / shard.file, framework="pt")  # type: ignore[no-untyped-call]
                self._open[shard.file] = opened
            file = self._open[shard.file]
            rows = {key: file.get_tensor(f"{place}/{key}") for key in keys}
            return int(file.get_tensor(f"{place}/{INPUTS}")), rows
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.directory / shard.file, error) from error

    def fill(
        self,
        run: Run,
        *,
        batch_size: int,
        shard_bytes: int,
        rebuild: bool,
        progress: Callable[[int, int], None] | None,
    ) -> Remembered:
        """Complete the directory: what is there and right stays, what is missing or damaged is computed.

        Args:
            run: computes rows.
            batch_size: examples in each run of the parent; a directory that was begun keeps its own.
            shard_bytes: a file is closed once it holds as much.
            rebuild: begin anew where what is there follows from something else.
            progress: called with (examples done, all examples).

        Raises:
            UsageError: what is there follows from something else, and ``rebuild`` is not set.
            StorageError: the disk or the directory refused.
        """
        total = len(self._place)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            reason, found = self._found(rebuild, batch_size)
            computed = 0
            for start, limit in self._holes(found):
                for shard in self._write(run, start, limit, shard_bytes):
                    self._shards = sorted([*self._shards, shard], key=lambda each: each.start)
                    self._save()
                    computed += shard.stop - shard.start
                    if progress is not None:
                        progress(sum(each.stop - each.start for each in self._shards), total)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"the parent's outputs could not be written ({error})",
                where=str(self.directory),
                remedy="Make room and call remember() again: what is complete is kept",
            ) from error
        return Remembered(self.directory, total, computed, reason)

    def _found(self, rebuild: bool, batch_size: int) -> tuple[str, list[_Shard]]:
        """Why something has to be computed, and the shards that are right."""
        path = self.directory / INDEX
        content, why = None, "there were none"
        try:
            content = _read_index(path)
        except StorageError as error:
            if not rebuild:
                raise
            why = error.given
        why = why if content is None else self._why_stale(content)
        if content is not None and why and not rebuild:
            raise UsageError(
                f"the parent's outputs there are stale: {why}",
                expected="outputs of this teacher for this split",
                where=str(self.directory),
                remedy="Give another directory, or rebuild=True to write them anew",
            )
        if content is None or why:
            self.batch_size, self._shards = batch_size, []
            for left in (path, *self.directory.glob("outputs-*.safetensors")):
                left.unlink(missing_ok=True)
            return why, []
        self.batch_size, self.keys = content["batch_size"], tuple(content["keys"])
        listed = [_Shard(**entry) for entry in content["shards"]]
        self._shards = [
            shard for shard in listed if found_digest(self.directory / shard.file) == shard.digest
        ]
        damaged = [shard.file for shard in listed if shard not in self._shards]
        if damaged:
            return f"{', '.join(damaged[:3])} was damaged or missing", self._shards
        done = sum(shard.stop - shard.start for shard in self._shards)
        return ("" if done == len(self._place) else f"only {done} were complete"), self._shards

    def _why_stale(self, content: dict[str, Any]) -> str:
        for name, now in asdict(self.identity).items():
            if content["identity"].get(name) != now:
                return f"they were made {_MADE[name]}"
        missing = sorted(set(self.keys) - set(content["keys"]))
        return f"they lack {', '.join(missing)}" if missing else ""

    def _holes(self, shards: Sequence[_Shard]) -> Iterator[tuple[int, int]]:
        at = 0
        for shard in shards:
            if shard.start > at:
                yield at, shard.start
            at = shard.stop
        if at < len(self._place):
            yield at, len(self._place)

    def _write(self, run: Run, start: int, limit: int, shard_bytes: int) -> Iterator[_Shard]:
        held: dict[str, Tensor] = {}
        first, size = start, 0
        for at in range(start, limit, self.batch_size):
            places = range(at, min(at + self.batch_size, limit))
            for key, rows in run(places, self.keys).items():
                held |= {f"{place}/{key}": row for place, row in zip(places, rows, strict=True)}
                size += sum(row.numel() * row.element_size() for row in rows)
            if size >= shard_bytes or places.stop == limit:
                name = f"outputs-{first:09d}.safetensors"
                with written_atomically(self.directory / name) as temporary:
                    save_file(held, temporary)
                yield _Shard(name, first, places.stop, file_digest(self.directory / name))
                held, first, size = {}, places.stop, 0

    def _save(self) -> None:
        content = {
            "schema": SCHEMA,
            "identity": asdict(self.identity),
            "keys": self.keys,
            "batch_size": self.batch_size,
            "shards": [asdict(shard) for shard in self._shards],
        }
        write_atomically(self.directory / INDEX, json.dumps(content, indent=1, sort_keys=True).encode())


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all parameters and buffers."""
    tensors = sorted((*model.named_parameters(), *model.named_buffers()), key=lambda item: item[0])
    forms = [f"{name} {each.dtype} {tuple(each.shape)} {digest_of(each)}" for name, each in tensors]
    return content_digest("\n".join(forms).encode())


def check_split(split: Split, stores: Sequence[Store]) -> None:
    """No example of the split is remembered already, in another directory.

    Raises:
        UsageError: one is.
    """
    known = next((example for example in split.ids if any(example in store for store in stores)), None)
    if known is not None:
        raise UsageError(
            f"the example {known!r} is remembered already",
            expected="splits that share no example",
            where=f"split {split.name}",
        )


def unknown_example(example: str) -> TrainingError:
    """The error of an example that is not remembered."""
    what = f"the example {example!r}" if example else "a batch without ids"
    return TrainingError(
        f"the parent's outputs for {what} are not remembered",
        expected="examples of the splits that remember() was called for",
        where="distillation",
        remedy="Call remember() for the split that it lies in",
    )


def _read_index(path: Path) -> dict[str, Any] | None:
    """The index; None where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not _well_typed(content):
        raise _damaged(path, "it is not an index of this version")
    return content


def _well_typed(content: dict[str, Any]) -> bool:
    shards = content.get("shards")
    return (
        isinstance(content.get("identity"), dict)
        and isinstance(content.get("keys"), list)
        and type(content.get("batch_size")) is int
        and content["batch_size"] >= 1
        and isinstance(shards, list)
        and all(
            isinstance(entry, dict)
            and set(entry) == {"file", "start", "stop", "digest"}
            and isinstance(entry["file"], str)
            and Path(entry["file"]).name == entry["file"]
            and type(entry["start"]) is int
            and type(entry["stop"]) is int
            for entry in shards
        )
    )


def _damaged(path: Path, given: str) -> StorageError:
    return StorageError(
        given,
        expected="the index of remembered outputs",
        where=str(path),
        remedy="Delete the directory: the outputs are computed anew",
    )


def _unreadable(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"the parent's outputs could not be read back ({error})",
        where=str(path),
        remedy="Call remember() again: what is damaged is computed anew",
    )


_MADE = {
    "teacher": "by a teacher with other weights",
    "data": "from other examples",
    "logits": "by another way to find the logits",
    "positions": "by another way to tell padding",
}
