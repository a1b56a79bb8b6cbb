"""Energy per inference where the machine counts it; absent with the reason elsewhere, never estimated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure.batches import Batches, failed
from prunekit.measure.latency import paired_speedup
from prunekit.measure.meters import LONGEST_READING_S, Meter, Reading, find_meters
from prunekit.measure.runtimes import Runner
from prunekit.types import Speedup


@dataclass(frozen=True)
class Energy:
    """Energy of two models, measured in interleaved blocks by counters of the machine.

    The counters see the whole package or device: what else ran, and what it takes when idle, is in every
    figure. A call of the dense model and a call of the pruned one carry the same share of that per second,
    so the pruned model also gains by being done sooner.

    Attributes:
        domains: what was counted, such as ``package-0``.
        dense_joules: per sample, median over blocks.
        pruned_joules: per sample, median over blocks.
        saving: dense joules over pruned joules, paired by block; 2 = half the energy.
        dense_watts: mean power of the domains while the dense model ran.
        pruned_watts: mean power of the domains while the pruned model ran.
        blocks: of each model.
        seconds: that all blocks took.
    """

    domains: tuple[str, ...]
    dense_joules: float
    pruned_joules: float
    saving: Speedup
    dense_watts: float
    pruned_watts: float
    blocks: int
    seconds: float


@dataclass(frozen=True)
class EnergyReading:
    """Energy where it can be read.

    Attributes:
        energy: None where the machine does not count it.
        reason: why it is absent, or what was counted and what could not be.
    """

    energy: Energy | None
    reason: str


def measure_energy(
    dense: Runner,
    pruned: Runner,
    *,
    blocks: int = 10,
    block_seconds: float = 1.0,
    kind: Literal["cpu", "gpu"] = "cpu",
    meters: Sequence[Meter] | None = None,
) -> EnergyReading:
    """Joules per sample of two models.

    A block is calls of one model for ``block_seconds``; blocks of the two alternate, the first one of a pair
    changes from pair to pair, and the counters are read before and after each.

    Args:
        dense: the parent.
        pruned: the model it is compared with.
        blocks: of each model, >= 2.
        block_seconds: above 0 and at most :data:`LONGEST_READING_S`, so that a counter cannot wrap unseen.
            The counters move about every millisecond (CPU) or 100 ms (GPU): take a second or more.
        kind: the device the models run on; its counters are read and no other.
        meters: counters to read instead of those that are found.

    Returns:
        The energy, or None with the reason why this machine cannot tell.

    Raises:
        MeasurementError: fewer than two blocks, a block too long, or a model that fails.
    """
    if blocks < 2 or not 0 < block_seconds <= LONGEST_READING_S:
        raise MeasurementError(
            f"{blocks} blocks of {block_seconds} s were asked for",
            expected=f"two or more, each at most {LONGEST_READING_S:g} s long",
        )
    reason = "Counters were given"
    if meters is None:
        found = find_meters(kind)
        meters, reason = found.meters, found.reason
    if not meters:
        return EnergyReading(None, reason)
    both = (Batches(dense), Batches(pruned))
    begin = time.perf_counter()
    spent: list[list[_Block]] = [[], []]
    for pair in range(blocks):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            block = _run_block(both[which], meters, block_seconds)
            if isinstance(block, str):
                return EnergyReading(None, block)
            spent[which].append(block)
    joules = [np.array([block.joules / block.samples for block in side]) for side in spent]
    if not min(side.min() for side in joules) > 0:
        return EnergyReading(None, "A counter did not move during a block, so it does not count this load")
    watts = [sum(one.joules for one in side) / sum(one.seconds for one in side) for side in spent]
    return EnergyReading(
        Energy(
            domains=tuple(meter.name for meter in meters),
            dense_joules=float(np.median(joules[0])),
            pruned_joules=float(np.median(joules[1])),
            saving=paired_speedup(joules[0], joules[1]),
            dense_watts=watts[0],
            pruned_watts=watts[1],
            blocks=blocks,
            seconds=round(time.perf_counter() - begin, 3),
        ),
        reason,
    )


@dataclass(frozen=True)
class _Block:
    joules: float
    samples: int
    seconds: float


def _run_block(batches: Batches, meters: Sequence[Meter], seconds: float) -> _Block | str:
    """One block, or why it could not be read."""
    samples = 0
    before = _read(meters)
    begin = time.perf_counter()
    while samples == 0 or time.perf_counter() - begin < seconds:
        try:
            batches.serve(batches.own)
        except Exception as error:
            raise failed(batches.runner, error) from error
        samples += batches.own
    took = time.perf_counter() - begin
    after = _read(meters)
    if isinstance(before, str) or isinstance(after, str):
        return before if isinstance(before, str) else str(after)
    if took > LONGEST_READING_S:
        return f"One call took {took:.0f} s, in which a counter can wrap more than once"
    joules = sum(meter.joules(first, last) for meter, first, last in zip(meters, before, after, strict=True))
    return _Block(joules, samples, took)


def _read(meters: Sequence[Meter]) -> list[Reading] | str:
    try:
        return [meter.read() for meter in meters]
    except Exception as error:  # A driver's own errors have no common base.
        return f"A counter of energy could not be read any more: {type(error).__name__}: {error}"
