"""The nouns that every room shares: what can be removed, and what decides about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]

Scores = Mapping[str, FloatArray]
"""Importance by group name, ``[units]`` float32; higher = keep."""

KeepMask = Mapping[str, BoolArray]
"""What stays, by group name, ``[units]`` bool; ``True`` = keep. A group that is absent is kept whole."""


class Granularity(StrEnum):
    """The kind of a unit."""

    CHANNEL = "channel"
    CHANNEL_GROUP = "channel_group"
    NEURON = "neuron"
    HEAD = "head"
    HEAD_GROUP = "head_group"
    HEAD_DIM = "head_dim"
    EXPERT = "expert"
    LAYER = "layer"
    BRANCH = "branch"
    HIDDEN = "hidden"


WIDTHS = frozenset(
    {Granularity.CHANNEL, Granularity.NEURON, Granularity.HEAD, Granularity.HEAD_DIM, Granularity.HIDDEN}
)
"""The kinds that are pruned when the user names none: they narrow a model without taking a part out of it."""


DEPTH = frozenset({Granularity.LAYER, Granularity.BRANCH})
"""The kinds whose units are left out of the computation whole."""


def lies_in(name: str, pattern: str) -> bool:
    """A shell-style pattern matches a qualified name or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


Role = Literal["producer", "consumer", "follower"]
"""What a slice does with the units of its group, see :class:`Slice`."""


@dataclass(frozen=True)
class Slice:
    """One dimension of one parameter or buffer along which the units of a group lie.

    Of a layer or a branch, which lies along no dimension: the first one, all of its indices the unit's.

    Attributes:
        tensor: qualified name in the model, such as ``layer1.0.conv1.weight``.
        dim: the dimension.
        units: ``[shape[dim]]`` int64, the unit each index belongs to; -1 = none of this group's.
        role: ``producer`` computes the units (an output dimension of a weight), ``consumer`` reads them
            (a contracted dimension), ``follower`` goes along (bias, norm scale, running mean).
        block_dim: where units are chosen per block and the blocks lie along another dimension of the
            same tensor (a grouped convolution's weight), that dimension; else None.
        block_of: ``[shape[block_dim]]`` int64, the block each index of ``block_dim`` belongs to; then
            ``units`` counts inside the block, and the unit is ``block * units_per_block + units``.
        company: ``[shape[dim]]`` int64 or None; where a unit has several indices, those of two units
            correspond that have equal values here, and else those in the same order.
    """

    tensor: str
    dim: int
    units: IntArray
    role: Role
    block_dim: int | None = None
    block_of: IntArray | None = None
    company: IntArray | None = None


@dataclass(frozen=True)
class Group:
    """All slices of all parameters and buffers that one axis touches.

    Attributes:
        name: stable and readable: the module that first produces it and the granularity, such as
            ``layer1.0.conv1:channel``.
        granularity: the kind of its units.
        size: number of units.
        blocks: units are chosen in equal numbers from each of this many blocks; unit ``u`` lies in block
            ``u // (size // blocks)``. 1 where any subset may go.
        slices: what is narrowed when units go.
        mask_equivalent: removing units gives what zeroing their slices gives.
        not_mask_equivalent_because: the reason where it does not ("layer_norm normalises over it"), else "".
        least: fewest units that the operators can run with, such as the experts that a router chooses; 0
            where all may go.
        pinned: units that stay whatever their score, because the user said so; of layers and branches.
    """

    name: str
    granularity: Granularity
    size: int
    blocks: int
    slices: tuple[Slice, ...]
    mask_equivalent: bool = True
    not_mask_equivalent_because: str = ""
    least: int = 1
    pinned: frozenset[int] = frozenset()

    @property
    def units_per_block(self) -> int:
        """Units in each block."""
        return self.size // self.blocks

    @property
    def is_depth(self) -> bool:
        """Its units are left out of the computation whole, and lie along no dimension."""
        return self.granularity in DEPTH

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors it touches, each once, in order."""
        return tuple(dict.fromkeys(part.tensor for part in self.slices))

    def matches(self, pattern: str) -> bool:
        """A shell-style pattern matches its name, one of its tensors or a module around one."""
        return fnmatchcase(self.name, pattern) or any(lies_in(tensor, pattern) for tensor in self.tensors)


@dataclass(frozen=True)
class Frozen:
    """An axis that is not prunable, and why.

    Attributes:
        name: the first tensor and dimension along which it lies, such as ``fc.weight:0``.
        size: its number of indices.
        slices: the tensors it touches.
        operator: the operator that froze it, such as ``aten.sort.default``, or ``input``/``output``.
        reason: one sentence.
        source: the line in the user's code, ``file:line: text``, or "".
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    operator: str
    reason: str
    source: str


@dataclass(frozen=True)
class Cost:
    """What a model costs before anything is timed.

    Attributes:
        params: number of parameters (buffers not counted; a tied parameter counts once).
        macs: multiply-accumulates of one forward pass for ONE example (batch 1).
        param_bytes: bytes of the parameters in their own dtypes.
    """

    params: int
    macs: int
    param_bytes: int


@dataclass(frozen=True)
class Speedup:
    """Dense time over pruned time, measured in pairs; 2 = the pruned model takes half the time.

    Attributes:
        median: of the paired figures.
        low: lower end of its interval.
        high: upper end of its interval.
        confidence: of the interval.
        pairs: number of timed pairs.
    """

    median: float
    low: float
    high: float
    confidence: float
    pairs: int
