"""Which examples of a split each process sees in each step, and how much they count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from prunekit.ranks import Ranks
from prunekit.recover.training.budget import steps_per_epoch
from prunekit.workload import Batch, Split


@dataclass(frozen=True)
class Part:
    """Examples that go through the model in one call.

    Attributes:
        batch: at least one example.
        share: of the examples of the step, over all processes; 0 for a process that has none left, which runs
            one of the others' so that all processes make the same calls.
    """

    batch: Batch
    share: float


@dataclass(frozen=True)
class Step:
    """What one process runs in one optimizer step.

    Attributes:
        parts: their shares add up to 1 over all processes.
        examples: of all processes.
    """

    parts: tuple[Part, ...]
    examples: int


class Feed:
    """The steps of each epoch, the same whatever the number of processes: each takes its part of them.

    Args:
        split: what is trained on.
        batch_size: examples per step, over all processes.
        accumulate: into how many calls a process divides its part.
        ranks: the processes.
        workers: processes that read ahead; the examples are the same.
        seed: of the order.
    """

    def __init__(
        self, split: Split, *, batch_size: int, accumulate: int, ranks: Ranks, workers: int, seed: int
    ) -> None:
        self.split, self.batch_size, self.accumulate = split, batch_size, accumulate
        self.ranks, self.workers, self.seed = ranks, workers, seed
        self.per_epoch = steps_per_epoch(len(split), batch_size)

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Step]:
        """The steps of an epoch, without the first ``skip``.

        Args:
            number: of the epoch, from 0; its order follows from it and the seed.
            skip: steps that were made already.
        """
        steps = list(_in_steps(self.split.order(self.seed * 1_000_003 + number), self.batch_size))[skip:]
        shared = [self._mine(indices) for indices in steps]
        calls = [indices for parts in shared for indices, _ in parts]
        batches = iter(self._read(calls))
        for indices, parts in zip(steps, shared, strict=True):
            yield Step(tuple(Part(next(batches), share) for _, share in parts), len(indices))

    def _mine(self, indices: list[int]) -> list[tuple[list[int], float]]:
        """What this process runs of a step, and the share of each call."""
        own = indices[self.ranks.rank :: self.ranks.size]
        calls = self._calls(-(-len(indices) // self.ranks.size))
        parts = [part.tolist() for part in np.array_split(np.asarray(own, dtype=np.int64), calls)]
        return [(part or indices[:1], len(part) / len(indices)) for part in parts]

    def _calls(self, count: int) -> int:
        """Into how many calls a process divides ``count`` examples, the most that one has in this step.

        A short step, as the last one of an epoch is, has no more calls than it takes to hold no more examples
        in a call than in a full step, so that none is left with a single example: batch normalisation has no
        variance over one.
        """
        full = -(-self.batch_size // self.ranks.size)
        most = -(-full // self.accumulate)
        calls = min(self.accumulate, -(-count // most))
        return calls - 1 if most > 1 and calls > 1 and count // calls == 1 else calls

    def _read(self, calls: list[list[int]]) -> Iterator[Batch]:
        if not self.workers:
            return map(self.split.batch, calls)
        own_random_state = torch.Generator().manual_seed(self.seed)  # Else it would draw from the global one.
        return iter(
            DataLoader(
                _Calls(self.split, calls),
                batch_size=None,
                num_workers=self.workers,
                generator=own_random_state,
            )
        )


def training_batches(split: Split, batch_size: int, *, shuffle_seed: int) -> Iterator[Batch]:
    """The shuffled batches of one epoch; a last batch of one example joins the batch before it.

    Batch normalisation has no variance over one example. See :func:`steps_per_epoch` for their number.
    """
    return map(split.batch, _in_steps(split.order(shuffle_seed), batch_size))


def tokens_of(batch: Batch) -> int | None:
    """The tokens of a batch: what its ``attention_mask`` lets through, else the size of its integer input.

    Returns:
        None where there is neither.
    """
    mask = batch.kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor):
        return int(mask.ne(0).sum())
    for value in (batch.kwargs.get("input_ids"), *batch.args):
        if isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool:
            return value.numel()
    return None


class _Calls(Dataset[Batch]):
    """A split as the batches of some calls."""

    def __init__(self, split: Split, calls: list[list[int]]) -> None:
        self.split, self.calls = split, calls

    def __len__(self) -> int:
        return len(self.calls)

    def __getitem__(self, index: int) -> Batch:
        return self.split.batch(self.calls[index])


def _in_steps(order: list[int], batch_size: int) -> Iterator[list[int]]:
    count = steps_per_epoch(len(order), batch_size)
    for index in range(count):
        upto = len(order) if index == count - 1 else (index + 1) * batch_size
        yield order[index * batch_size : upto]
