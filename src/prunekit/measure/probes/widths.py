"""Which widths a runtime rewards: the cost of an operator as a staircase over its output width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prunekit.measure.probes.bench import Bench
from prunekit.measure.probes.weights import random_weight
from prunekit.measure.runtimes import Device, TargetRunner

WIDTHS = tuple(range(68, 129, 4))
"""Whole stairs of every step that is tried."""
STEPS = (4, 8, 16, 32)
"""Steps that are tried; a finer one than the widths are apart cannot be seen."""
FLAT = 0.35
"""Stairs are flat where the mean rise within them is at most this share of the mean rise of all widths:
half of what the next coarser step would leave, which is 0.7 on exact stairs."""
UNDISTURBED = 0.2
"""The quantile of the times that is taken for the cost: interruptions only ever add to a time."""

FAN_IN = 512
CHANNELS = 64


@dataclass(frozen=True)
class WidthSteps:
    """The cost of one operator over its output width.

    Attributes:
        runtime: its name in a target.
        device: ``cpu`` or ``cuda``.
        operator: ``MatMul`` or ``Conv``.
        widths: output units or channels.
        ms: time at each width, undisturbed.
        step: widths up to the next multiple of this cost about the same; the finest that was tried where
            nothing coarser is rewarded.
        rise_within: mean rise of the cost within a stair over that of all widths; 0 = flat stairs, 1 = a
            straight line.
    """

    runtime: str
    device: Device
    operator: str
    widths: tuple[int, ...]
    ms: tuple[float, ...]
    step: int
    rise_within: float

    @property
    def rewarded(self) -> bool:
        """Whether a step beyond the finest that was tried is flat."""
        return self.step > STEPS[0]


def measure_widths(bench: Bench, rounds: int) -> tuple[WidthSteps, ...]:
    """Time one product and one convolution at widths from 68 to 128, all of them once in every round."""

    def product(width: int) -> TargetRunner:
        return bench.matmul(random_weight((FAN_IN, width)), 256)

    def convolution(width: int) -> TargetRunner:
        return bench.conv(random_weight((CHANNELS * 9, width)))

    operators = {"MatMul": product, "Conv": convolution}
    return tuple(_measured(bench, name, make, rounds) for name, make in operators.items())


def find_step(widths: Sequence[int], costs: Sequence[float]) -> tuple[int, float]:
    """The coarsest step of :data:`STEPS` whose stairs are flat, and how far the cost rises within them.

    Stair ``s`` of a step holds the widths with ``ceil(width / step) = s``. ``rise_within`` is the mean rise
    from one width to the next inside the stairs over the mean rise of all; a step is rewarded where it is at
    most :data:`FLAT`. On a straight line it is 1 for every step, and the finest is given.

    Args:
        widths: ascending, evenly spaced.
        costs: one for each width, in any unit.
    """
    rises = np.diff(np.asarray(costs))
    if rises.mean() <= 0:
        return STEPS[0], 1.0
    for step in reversed(STEPS[1:]):
        stairs = np.ceil(np.asarray(widths) / step)
        within = float(rises[np.diff(stairs) == 0].mean() / rises.mean())
        if within <= FLAT:
            return step, within
    return STEPS[0], 1.0


def _measured(bench: Bench, operator: str, make: Callable[[int], TargetRunner], rounds: int) -> WidthSteps:
    times = bench.rounds([make(width) for width in WIDTHS], rounds)
    ms = np.quantile(times, UNDISTURBED, axis=0)
    step, within = find_step(WIDTHS, ms.tolist())
    return WidthSteps(
        runtime=bench.target.runtime,
        device=bench.target.device,
        operator=operator,
        widths=WIDTHS,
        ms=tuple(ms.tolist()),
        step=step,
        rise_within=within,
    )
