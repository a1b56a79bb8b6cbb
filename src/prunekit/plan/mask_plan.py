"""The mask plan: the immutable, serialisable decision which single weights stay, one bit each."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from prunekit.errors import PlanError
from prunekit.plan.pruning_plan import FrozenDict
from prunekit.types import BoolArray

SCHEMA = "prunekit.mask_plan/1"


@dataclass(frozen=True)
class PackedMask:
    """Which weights of one parameter stay.

    Attributes:
        shape: of the parameter.
        kept: how many stay.
        bits: one bit for each weight by flat index, the lowest bit of a byte first; 1 = keep; the last byte
            is filled with zeros.

    Raises:
        PlanError: the three contradict each other.
    """

    shape: tuple[int, ...]
    kept: int
    bits: bytes

    def __post_init__(self) -> None:
        size = packed_size(self.shape)
        if len(self.bits) != size:
            raise PlanError(
                f"A mask of the shape {list(self.shape)} has {len(self.bits)} bytes", expected=f"{size} bytes"
            )
        kept = count_ones(np.frombuffer(self.bits, dtype=np.uint8))
        past_the_end = self.bits[-1] >> (8 - (8 * size - self.count)) if 8 * size > self.count else 0
        if kept != self.kept or past_the_end:
            raise PlanError(
                f"A mask says that it keeps {self.kept} weights", expected=f"{kept}, which it has"
            )

    @staticmethod
    def of(keep: BoolArray) -> PackedMask:
        """Pack a mask in the parameter's shape."""
        return PackedMask(
            tuple(keep.shape), int(np.count_nonzero(keep)), np.packbits(keep, bitorder="little").tobytes()
        )

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def keep(self) -> BoolArray:
        """The mask in the parameter's shape; True = keep."""
        packed = np.frombuffer(self.bits, dtype=np.uint8)
        return np.unpackbits(packed, count=self.count, bitorder="little").view(np.bool_).reshape(self.shape)


@dataclass(frozen=True)
class MaskPlan:
    """Which weights stay, why, and how many.

    Attributes:
        masks: by parameter.
        fingerprint: of the model it was made on (:class:`prunekit.importance.Weights`).
        pattern: such as ``element`` or ``2:4``.
        scope: such as ``global``.
        criterion: what scored the weights; "" if unknown.
        asked: the sparsity that was asked for, over the weights in ``masks``.

    Raises:
        PlanError: a sparsity that is none.
    """

    masks: Mapping[str, PackedMask]
    fingerprint: str
    pattern: str
    scope: str
    criterion: str
    asked: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", FrozenDict(self.masks))
        if not 0 <= self.asked <= 1:
            raise PlanError(f"The sparsity asked for is {self.asked}", expected="a number from 0 to 1")

    @property
    def kept(self) -> dict[str, tuple[int, int]]:
        """By parameter, how many weights stay, and of how many."""
        return {name: (mask.kept, mask.count) for name, mask in self.masks.items()}

    @property
    def sparsity(self) -> float:
        """The fraction of the weights in ``masks`` that goes, as counted."""
        total = sum(mask.count for mask in self.masks.values())
        return 1 - sum(mask.kept for mask in self.masks.values()) / total if total else 0.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the plan, as hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()

    def content(self) -> dict[str, Any]:
        """Everything but the bits, of which it has the digests, as plain JSON values."""
        return {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "pattern": self.pattern,
            "scope": self.scope,
            "criterion": self.criterion,
            "asked": self.asked,
            "masks": {
                name: {
                    "shape": list(mask.shape),
                    "kept": mask.kept,
                    "digest": hashlib.sha256(mask.bits).hexdigest(),
                }
                for name, mask in self.masks.items()
            },
        }

    def __str__(self) -> str:
        return (
            f"{self.pattern}, {self.scope}, {self.criterion or 'unknown scores'}: "
            f"{self.sparsity:.4f} of {sum(mask.count for mask in self.masks.values())} weights go"
        )


def packed_size(shape: tuple[int, ...]) -> int:
    """Bytes of a packed mask."""
    return (math.prod(shape) + 7) // 8


def count_ones(packed: npt.NDArray[np.uint8]) -> int:
    """Number of bits that are 1; 1 MB at a time."""
    return sum(
        int(np.bitwise_count(packed[start : start + 2**20]).sum(dtype=np.int64))
        for start in range(0, len(packed), 2**20)
    )
