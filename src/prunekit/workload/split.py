"""One split: a named, ordered set of examples that makes batches and knows the digest of its data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset, default_collate

from prunekit.errors import WorkloadError
from prunekit.workload.batch import Batch

LABEL_KEYS = ("label", "labels")


class Split:
    """A named, ordered set of examples.

    The examples are any map-style ``torch.utils.data.Dataset`` whose items are ``(input, ..., label)`` or a
    dict with a key ``label`` or ``labels``; the other keys become keyword inputs. A ``TensorDataset`` is
    read by whole slices, without a Python loop over examples.

    Args:
        name: how reports and errors call it, such as ``validation``.
        examples: the dataset; its order is the order of the split.
        ids: one identifier per example; by default ``<name>/<index>``.

    Raises:
        WorkloadError: the dataset has no length or no items, there are not as many ids as examples, or an
            id occurs twice.
    """

    def __init__(self, name: str, examples: Dataset[Any], *, ids: Sequence[str] | None = None) -> None:
        if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")):
            raise WorkloadError(
                f"its examples are a {type(examples).__name__}, which has no length or no items",
                expected="a map-style torch Dataset, with __len__ and __getitem__",
                where=f"split {name}",
            )
        self.name = name
        self.examples = examples
        count = len(cast("Sequence[Any]", examples))
        self.ids = tuple(f"{name}/{index}" for index in range(count)) if ids is None else tuple(map(str, ids))
        if len(self.ids) != count:
            raise WorkloadError(f"{len(self.ids)} ids for {count} examples", where=f"split {name}")
        if len(set(self.ids)) != count:
            raise WorkloadError(
                f"the id {_first_repeated(self.ids)!r} occurs twice",
                expected="one distinct id per example",
                where=f"split {name}",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self)} examples)"

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch of the examples at ``indices``, in that order.

        Raises:
            WorkloadError: an item is neither a tuple with a label at its end nor a dict with a label, or the
                items cannot be stacked.
        """
        ids = tuple(self.ids[index] for index in indices)
        if isinstance(self.examples, TensorDataset):
            chosen = torch.as_tensor(indices, dtype=torch.int64)
            return _as_batch(tuple(tensor[chosen] for tensor in self.examples.tensors), ids, self.name)
        items = [self.examples[index] for index in indices]
        try:
            columns = default_collate(items)
        except (TypeError, RuntimeError, KeyError) as error:
            raise WorkloadError(
                f"the examples {', '.join(ids[:3])}... cannot be put into one batch ({error})",
                expected="items of tensors, arrays or numbers with the same shapes and keys",
                where=f"split {self.name}",
            ) from error
        return _as_batch(columns, ids, self.name)

    def batches(self, batch_size: int, *, shuffle_seed: int | None = None) -> Iterator[Batch]:
        """All examples in batches of ``batch_size`` (the last may be smaller).

        Args:
            batch_size: examples per batch, at least 1.
            shuffle_seed: None for the split's own order; the same seed always gives the same order and the
                global random state is left alone.
        """
        order = self.order(shuffle_seed)
        return (self.batch(order[at : at + batch_size]) for at in range(0, len(order), batch_size))

    def order(self, shuffle_seed: int | None = None) -> list[int]:
        """The indices of all examples: ascending, or shuffled by ``shuffle_seed``."""
        if shuffle_seed is None:
            return list(range(len(self)))
        generator = torch.Generator().manual_seed(shuffle_seed)
        return torch.randperm(len(self), generator=generator).tolist()

    def fingerprints(self) -> list[bytes]:
        """One digest per example over its inputs alone: equal inputs have equal fingerprints."""
        return [
            _fingerprint((batch.args, dict(batch.kwargs)))
            for batch in (self.batch([i]) for i in self.order())
        ]

    def digest(self) -> str:
        """SHA-256 over the ids, inputs and labels of all examples in order, as 64 hexadecimal digits."""
        return self._digest(range(len(self)))

    def quick_digest(self, looked_at: int = 16) -> str:
        """SHA-256 over the number of examples, and ids, inputs and labels of a few, evenly spread."""
        return self._digest(np.unique(np.linspace(0, len(self) - 1, looked_at).astype(int)).tolist())

    def _digest(self, indices: Sequence[int]) -> str:
        whole = hashlib.sha256(self.name.encode() if len(indices) == len(self) else f"{len(self)}".encode())
        for index in indices:
            batch = self.batch([index])
            whole.update(_fingerprint((self.ids[index], batch.args, dict(batch.kwargs), batch.target)))
        return whole.hexdigest()


def _as_batch(columns: Any, ids: tuple[str, ...], split: str) -> Batch:
    if isinstance(columns, dict):
        label = next((key for key in LABEL_KEYS if key in columns), None)
        inputs = {key: value for key, value in columns.items() if key != label}
        if label is not None and inputs:
            return Batch(args=(), kwargs=inputs, target=columns[label], ids=ids)
    elif isinstance(columns, (tuple, list)) and len(columns) >= 2:
        return Batch(args=tuple(columns[:-1]), target=columns[-1], ids=ids)
    raise WorkloadError(
        f"an item is a {type(columns).__name__} without an input and a label",
        expected="items (input, label), or dicts with a key 'label' or 'labels'",
        where=f"split {split}",
    )


def _fingerprint(value: Any) -> bytes:
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    """Feed ``value`` with its type and size before it, so that different values feed different bytes."""
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        digest.update(f"tensor {array.dtype} {tuple(array.shape)};".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (tuple, list)):
        digest.update(f"sequence {len(value)};".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, dict):
        digest.update(f"mapping {len(value)};".encode())
        for key in sorted(value):
            _feed(digest, (key, value[key]))
    else:
        text = repr(value).encode()
        digest.update(f"{type(value).__name__} {len(text)};".encode())
        digest.update(text)


def _first_repeated(ids: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(item for item in ids if item in seen or seen.add(item))
