"""A perceptron whose cost is a closed form, with the interface of prunekit.graph.Groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunekit.types import Cost, Granularity, Group


class Perceptron:
    """Hidden layers of given widths between fixed inputs and outputs; hidden layer i may have blocks.

    ``macs = sum(kept[i] * kept[i + 1])`` and ``params = macs + sum(kept[1:])``.
    """

    def __init__(self, inputs: int, hidden: list[int], outputs: int, blocks: list[int] | None = None) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.groups = [
            Group(f"layer{i}.weight:0", Granularity.NEURON, size, block, ())
            for i, (size, block) in enumerate(zip(hidden, blocks or [1] * len(hidden), strict=True))
        ]
        self.fingerprint = f"perceptron {inputs} {hidden} {outputs}"
        self.calls = 0

    def __iter__(self):
        return iter(self.groups)

    def cost(self, keep=None) -> Cost:
        self.calls += 1
        kept = [int(keep[g.name].sum()) if keep and g.name in keep else g.size for g in self.groups]
        return self.cost_of(kept)

    def cost_of(self, kept) -> Cost:
        widths = [self.inputs, *kept, self.outputs]
        macs = sum(a * b for a, b in itertools.pairwise(widths))
        params = macs + sum(widths[1:])
        return Cost(params=params, macs=macs, param_bytes=4 * params)

    def scores(self, seed: int = 0, levels: int | None = None) -> dict[str, np.ndarray]:
        """Random scores; ``levels`` = draw from so few values that ties are everywhere."""
        draw = np.random.default_rng(seed)
        return {
            g.name: (draw.random(g.size) if levels is None else draw.integers(0, levels, g.size)).astype(
                np.float32
            )
            for g in self.groups
        }


@pytest.fixture(scope="session")
def perceptron():
    return Perceptron
