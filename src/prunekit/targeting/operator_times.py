"""Times of single operations on a target: measured once, kept by target, found again by any model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from filelock import FileLock

from prunekit.errors import MeasurementError, StorageError
from prunekit.files import PARTIAL, write_atomically
from prunekit.measure.operation import PACE, Operation, frame_of
from prunekit.measure.rounds import ROUNDS, Pace, time_rounds
from prunekit.targeting.rig import Rig, tupled

SCHEMA = "prunekit.operator_times/4"
TOGETHER = 12
"""Operations that are open and timed at once, beside the pace."""

NET = 0.02
"""The least share of a measured time that counts as the operation's own."""

PATIENCE = 60.0
"""Seconds to wait for another process that writes the same file; it needs milliseconds."""

Progress = Callable[[int, int], None]


@dataclass(eq=False)
class OperatorTimes:
    """Milliseconds of operations on one target.

    Source: a table of operators, timed on the device once: Wu et al., 2019, FBNet,
    https://arxiv.org/abs/1812.03443. Deviations: any model's operations share it; what is timed along with an
    operation is taken off; each is timed in rounds with a pace.

    Attributes:
        target: its digest, with what of the environment and the way of timing decides speed
            (:func:`prunekit.targeting.identity.timing_digest`).
        path: the file they are kept in, or None; several processes may keep theirs there.
        ms: by operation.
    """

    target: str
    path: Path | None = None
    ms: dict[Operation, float] = field(default_factory=dict)

    def missing(self, operations: Iterable[Operation]) -> list[Operation]:
        """Those that have not been timed, each once, in order."""
        return [operation for operation in dict.fromkeys(operations) if operation not in self.ms]

    def net_ms(self, operation: Operation) -> float:
        """Its time without that of what is timed along with it, such as calling a model at all."""
        return max(self.ms[operation] - self.ms.get(frame_of(operation), 0.0), NET * self.ms[operation])

    def measure(
        self,
        rig: Rig,
        classes: Sequence[Sequence[Operation]],
        *,
        rounds: int = ROUNDS,
        progress: Progress | None = None,
    ) -> None:
        """Time what is missing, class by class, beside the same pace; kept after every class.

        A few operations are open together and timed in rounds with :data:`PACE`; the time of each is its
        median share of the pace's, so that neither drift nor a slow second counts. What the pace takes was
        found out with the first operations, and is kept with them.

        Args:
            rig: of the target these times belong to.
            classes: the operations of one operator at its widths; in any order.
            rounds: of timing.
            progress: called with (operations done, of how many).

        Raises:
            StorageError: something has to be timed and could not be kept; nothing was timed then.
        """
        framed = [self.missing([*map(frame_of, each), *each]) for each in classes]
        total = len(dict.fromkeys(operation for each in framed for operation in each))
        if not total:
            return
        self._check_kept()
        runner = rig.open_operation(PACE)
        with rig.quietly():
            pace = Pace(runner)
        done = 0
        for operations in framed:
            missing = self.missing(operations)
            for start in range(0, len(missing), TOGETHER):
                some = missing[start : start + TOGETHER]
                self._measure(rig, pace, some, rounds)
                done += len(some)
                if progress is not None:
                    progress(done, total)
            if missing:
                self.save()

    def _measure(self, rig: Rig, pace: Pace, operations: Sequence[Operation], rounds: int) -> None:
        runners = [rig.open_operation(operation) for operation in operations]
        with rig.quietly():
            shares = np.median(time_rounds(runners, pace, rounds=rounds), axis=1)
        unit = self.ms.setdefault(PACE, pace.quick_ms)
        for operation, share in zip(operations, shares, strict=True):
            self.ms.setdefault(operation, unit * float(share))

    def save(self) -> None:
        """Add them to their file, whole or not at all.

        Law: no time that any process has saved is lost or changed. What is in the file already stays, and is
        taken over here too, so that whoever reads the file finds the times that everyone else counts with.

        Raises:
            StorageError: the file cannot be written.
            MeasurementError: it has been damaged meanwhile, or replaced by that of another target.
        """
        if self.path is None:
            return
        with _locked(self.path):
            self.ms |= load_operator_times(self.target, self.path).ms
            content = {
                "schema": SCHEMA,
                "target": self.target,
                "times": [[*plain_operation(operation), ms] for operation, ms in self.ms.items()],
            }
            write_atomically(self.path, json.dumps(content).encode())

    def _check_kept(self) -> None:
        """Find out before anything is timed whether its time can be kept.

        Raises:
            StorageError: the file's folder cannot be made or written to.
        """
        if self.path is not None:
            with _locked(self.path), NamedTemporaryFile(dir=self.path.parent, suffix=PARTIAL) as file:
                file.write(b" ")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that several processes write; its folder is made where there is none.

    Raises:
        StorageError: the folder cannot be written, or the lock is not given within :data:`PATIENCE` seconds.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=PATIENCE):
            yield
    except OSError as error:
        raise StorageError(
            f"Times of operations cannot be kept there ({error})",
            expected="a folder that can be written",
            where=str(path.parent),
            remedy="Give another folder, Timing(tables=), or make this one writable",
        ) from error


def load_operator_times(target: str, path: Path | None) -> OperatorTimes:
    """The times kept in a file; none where there is no file yet.

    Args:
        target: digest that they have to belong to.
        path: the file, or None to keep nothing.

    Raises:
        MeasurementError: the file is damaged or belongs to another target.
    """
    found = OperatorTimes(target, path)
    if path is None or not path.exists():
        return found
    try:
        content = json.loads(path.read_bytes())
        if content["schema"] != SCHEMA or content["target"] != target:
            raise ValueError(f"schema {content['schema']}, target {content['target']}")
        for *operation, ms in content["times"]:
            if not 0 < float(ms) < math.inf:
                raise ValueError(f"a time of {ms} ms")
            found.ms[operation_from(operation)] = float(ms)
    except (ValueError, KeyError, TypeError) as error:
        raise MeasurementError(
            f"The table of operator times cannot be used ({error})",
            expected=f"one of schema {SCHEMA} for the target {target}",
            where=str(path),
            remedy="Remove the file; it is measured again",
        ) from error
    return found


def plain_operation(operation: Operation) -> list[Any]:
    """An operation as JSON has it."""
    return [operation.kind, operation.inputs, operation.output, operation.settings]


def operation_from(plain: Sequence[Any]) -> Operation:
    """The operation that :func:`plain_operation` gave.

    Raises:
        ValueError: it is something else; or TypeError.
    """
    kind, inputs, output, settings = plain
    shapes = tuple(tuple(map(int, shape)) for shape in inputs)
    known = tuple((str(name), tupled(value)) for name, value in settings)
    return Operation(str(kind), shapes, tuple(map(int, output)), known)
