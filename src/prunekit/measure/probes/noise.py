"""How noisy the machine is: a model against itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunekit.measure.probes.bench import Bench
from prunekit.measure.probes.weights import random_weight
from prunekit.measure.runtimes import Device
from prunekit.types import Speedup

DIFFERENCE = 0.03
"""The difference in speed that should be told apart."""
ROWS = 64
SIZE = 512


@dataclass(frozen=True)
class NoiseFloor:
    """The same model, opened twice and compared with itself; without noise its speed-up is exactly 1.

    Attributes:
        runtime: its name in a target.
        device: ``cpu`` or ``cuda``.
        speedup: of the model over itself.
        pairs_needed: after which the interval would reach 3 % to either side.
        steady: half of the pairs lie within 5 % of the median.
    """

    runtime: str
    device: Device
    speedup: Speedup
    pairs_needed: int
    steady: bool


def measure_noise(bench: Bench) -> NoiseFloor:
    """Open one product twice and compare the two in pairs."""
    weight = random_weight((SIZE, SIZE))
    timed = bench.compare(bench.matmul(weight, ROWS), bench.matmul(weight, ROWS))
    return NoiseFloor(
        runtime=bench.target.runtime,
        device=bench.target.device,
        speedup=timed.speedup,
        pairs_needed=pairs_needed(timed.speedup),
        steady=timed.noise.steady,
    )


def pairs_needed(speedup: Speedup, difference: float = DIFFERENCE) -> int:
    """Pairs after which the interval of a speed-up is narrow enough to tell a difference.

    ``pairs * (half_width / difference)^2``: the interval of a median narrows with the root of the number
    of pairs.

    Args:
        speedup: measured with some number of pairs.
        difference: relative, to either side of the median.
    """
    half_width = (speedup.high - speedup.low) / 2 / speedup.median
    return max(2, math.ceil(speedup.pairs * (half_width / difference) ** 2))
