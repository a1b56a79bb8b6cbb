"""The splits of a workload, and the seal that keeps test data away from everything that decides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from prunekit.errors import WorkloadError
from prunekit.workload.split import Split


@dataclass(frozen=True)
class DecidingSplits:
    """The splits that a deciding stage may see: there is no test split in it, nor a way to one.

    Attributes:
        train: what weights are fitted to.
        calibration: what statistics and example inputs come from; may be a part of ``train``.
        validation: what choices are made on: early stopping, criteria, settings.
    """

    train: Split
    calibration: Split
    validation: Split

    def __iter__(self):
        return iter((self.train, self.calibration, self.validation))

    def digest(self) -> str:
        """SHA-256 over the digests of its splits: what a deciding stage has read."""
        return hashlib.sha256("".join(split.digest() for split in self).encode()).hexdigest()


class SealedSplit:
    """A split that says how many examples it has and what its digest is, and shows none of them.

    Whatever would show an example raises ``WorkloadError``; only :meth:`Splits.open_test` gives the examples.
    """

    def __init__(self, split: Split) -> None:
        self.name, self._length, self.digest = split.name, len(split), split.digest

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"SealedSplit({self.name!r}, {len(self)} examples)"

    def __getattr__(self, attribute: str):
        if attribute not in {"examples", "ids", "batch", "batches", "order", "fingerprints"}:
            raise AttributeError(attribute)
        raise WorkloadError(
            f"the {self.name} split is sealed, and something asked for its {attribute}",
            expected="nothing that decides to see test data",
            where=f"split {self.name}",
            remedy="Only the final evaluation may read it, with `splits.open_test()`",
        )


class Splits:
    """The four splits of a workload, the test split under seal.

    Args:
        train: what weights are fitted to.
        calibration: what statistics and example inputs come from; may be a part of ``train``.
        validation: what choices are made on.
        test: what the final figures come from, and nothing else.

    Attributes:
        deciding: the first three, in an object without a way to the test split: for whatever decides.
        test: the sealed test split: name, length and digest only.
    """

    def __init__(self, *, train: Split, calibration: Split, validation: Split, test: Split) -> None:
        self.deciding = DecidingSplits(train, calibration, validation)
        self.test = SealedSplit(test)
        self._test = test

    @property
    def train(self) -> Split:
        """What weights are fitted to."""
        return self.deciding.train

    @property
    def calibration(self) -> Split:
        """What statistics and example inputs come from."""
        return self.deciding.calibration

    @property
    def validation(self) -> Split:
        """What choices are made on."""
        return self.deciding.validation

    def open_test(self) -> Split:
        """The test split with its examples: for the final evaluation and for checks of the data."""
        return self._test
