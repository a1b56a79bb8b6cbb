"""The side of a load test that is tested: LoadGen asks, a runner answers, nothing may escape into C++.

LoadGen calls back from C++. An exception that passed through it would leave its logging thread behind and
end the process at the next test, and it has no call that ends a test. So whatever goes wrong is kept, the
rest of the queries are answered without running the model, and the test ends by LoadGen's own rules: the
scenarios that wait for answers run through their queries, and the Server scenario, which waits for the
clock, is left unanswered until LoadGen's limit of outstanding queries ends it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prunekit.measure.batches import Batches
from prunekit.measure.standing import begin

Complete = Callable[[Sequence[int]], None]
"""Tells LoadGen that the samples with these identities are answered."""


class Answering(Protocol):
    """What LoadGen calls.

    Laws: every sample issued is answered exactly once, also after a failure; no call raises.
    """

    tally: Tally

    def issue(self, samples: Sequence[Any]) -> None:
        """Take a query."""
        ...

    def flush(self) -> None:
        """There will be no further query."""
        ...

    def stop(self) -> None:
        """Answer what is left without running the model."""
        ...

    def close(self) -> None:
        """End the threads, once LoadGen has returned."""
        ...


@dataclass
class Tally:
    """What was asked and done.

    Attributes:
        issued: samples asked for.
        answered: samples answered, those after a stop included.
        served: samples that the model ran on.
        calls: of the model.
        late: samples answered later than the bound, counted from when they were handed over.
        stopped: the rest was answered without running the model.
        failure: what ended it.
    """

    issued: int = 0
    answered: int = 0
    served: int = 0
    calls: int = 0
    late: int = 0
    stopped: bool = False
    failure: BaseException | None = None


class AtOnce:
    """Answers each query on the thread that asks: SingleStream, MultiStream and Offline.

    Args:
        batches: the model.
        complete: tells LoadGen.
    """

    def __init__(self, batches: Batches, complete: Complete) -> None:
        self.tally = Tally()
        self._batches, self._complete = batches, complete

    def issue(self, samples: Sequence[Any]) -> None:
        """Serve the samples in calls of the largest batch and answer after each call."""
        tally = self.tally
        tally.issued += len(samples)
        size = self._batches.largest
        start = 0
        while start < len(samples):
            if tally.stopped:
                size = len(samples)
            chunk = [sample.id for sample in samples[start : start + size]]
            if not tally.stopped:
                self._serve(len(chunk))
            self._complete(chunk)
            tally.answered += len(chunk)
            start += len(chunk)

    def flush(self) -> None:
        """Nothing waits."""

    def stop(self) -> None:
        """From the next call of the model on, answer without it."""
        self.tally.stopped = True

    def close(self) -> None:
        """There are no threads."""

    def _serve(self, samples: int) -> None:
        tally = self.tally
        try:
            tally.calls += self._batches.serve(samples)
            tally.served += samples
        except BaseException as error:  # It must not reach C++; run_load raises it.
            tally.failure, tally.stopped = error, True


@dataclass(frozen=True)
class Queueing:
    """How a queue is served.

    Attributes:
        max_wait_s: a call waits this long for its batch to fill, from the moment it could begin.
        bound_s: latency above which an answer is late.
        most_late: more late answers than this end the test; None = never.
        most_waiting: more samples waiting than this end it; LoadGen's own limit, at which it ends the test
            but would have the whole queue served first. None = served.
    """

    max_wait_s: float
    bound_s: float
    most_late: float | None = None
    most_waiting: int | None = None


class Queued:
    """Answers from a queue that one worker thread serves first come, first served: the Server scenario.

    Args:
        batches: the model; a call takes what waits, up to its largest batch.
        complete: tells LoadGen.
        queueing: how long a call waits for more, and when the test is given up.
    """

    def __init__(self, batches: Batches, complete: Complete, queueing: Queueing) -> None:
        self.tally = Tally()
        self._batches, self._complete, self._queueing = batches, complete, queueing
        self._queue: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
        self._held: list[int] = []
        self._flushed = self._closed = False
        self._worker = begin("prunekit-server", self._work)

    def issue(self, samples: Sequence[Any]) -> None:
        """Put the samples into the queue, with the time."""
        now = time.perf_counter()
        tally, most = self.tally, self._queueing.most_waiting
        tally.issued += len(samples)
        for sample in samples:
            self._queue.put((sample.id, now))
        if most is not None and tally.issued - tally.answered > most:
            tally.stopped = True

    def flush(self) -> None:
        """The marker behind the last query."""
        self._queue.put(None)

    def stop(self) -> None:
        """Serve nothing more; LoadGen ends the test when too many queries are outstanding."""
        self.tally.stopped = True

    def close(self) -> None:
        """End the worker."""
        self._closed = True
        self._queue.put(None)
        self._worker.result()

    def _work(self) -> None:
        while not self._closed:
            batch = self._next_batch()
            if self.tally.stopped:
                self._held += [identity for identity, _ in batch]
            elif batch:
                self._serve(batch)
            if self._flushed:
                self._release()

    def _next_batch(self) -> list[tuple[int, float]]:
        """The next samples for one call; fewer than the largest batch where the wait is over."""
        batch: list[tuple[int, float]] = []
        until = None
        while len(batch) < self._batches.largest:
            try:
                left = None if until is None else max(0.0, until - time.perf_counter())
                entry = self._queue.get(timeout=left) if left != 0.0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                self._flushed = True
                break
            batch.append(entry)
            until = until or time.perf_counter() + self._queueing.max_wait_s
        return batch

    def _serve(self, batch: list[tuple[int, float]]) -> None:
        tally = self.tally
        try:
            tally.calls += self._batches.serve(len(batch))
        except BaseException as error:  # The thread must live on to answer; run_load raises it.
            tally.failure, tally.stopped = error, True
            self._held += [identity for identity, _ in batch]
            return
        self._answer([identity for identity, _ in batch])
        now = time.perf_counter()
        tally.served += len(batch)
        tally.late += sum(now - issued > self._queueing.bound_s for _, issued in batch)
        most = self._queueing.most_late
        if most is not None and tally.late > most:
            tally.stopped = True

    def _release(self) -> None:
        held, self._held = self._held, []
        if held:
            self._answer(held)

    def _answer(self, identities: Sequence[int]) -> None:
        self._complete(identities)
        self.tally.answered += len(identities)
