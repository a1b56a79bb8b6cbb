"""The digits network, small and quick: do the defaults beat plain fine-tuning?"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks.recovery.cells import Cell
from benchmarks.recovery.cuts import Channels, SingleWeights, groups_of
from benchmarks.recovery.parents import parent
from benchmarks.recovery.subject import Subject

from prunekit.recover import TrainingSettings
from prunekit.workload import Workload, load_workload

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits" / "workload.py"
WIDTH_OF_STAGES = (24, 48, 96)
PARENT = TrainingSettings(epochs=12, batch_size=32, learning_rate=0.02, warmup=0.1)
"""As in ``examples/digits/recipe.yaml``."""


@functools.cache
def workload() -> Workload:
    """The example's, distortions of the training pictures included."""
    return load_workload(EXAMPLE)


def subject(seed: int) -> Subject:
    """The parent of a seed, and the two kinds of cut."""
    torch.manual_seed(seed)
    network = type(workload().build())
    torch.manual_seed(seed)
    dense = parent("digits", network(WIDTH_OF_STAGES), workload(), replace(PARENT, seed=seed))
    example = workload().example_inputs(2)
    cost = groups_of(dense.model, example).cost()
    return Subject(
        parent=dense,
        workload=workload(),
        training=replace(PARENT, seed=seed),
        example=example,
        cuts={"macs": Channels(example, cost), "weights": SingleWeights()},
        seed=seed,
    )


PLAIN = tuple(
    Cell(kind, sparsity, rates=rates)
    for kind, sparsity in (("macs", 0.5), ("macs", 0.7), ("macs", 0.9), ("weights", 0.9))
    for rates in ("defaults", "last", "peak", "middle")
)


def design(seeds: Sequence[int]) -> Iterator[Cell]:
    """The parents, and every cut under both rates."""
    return (replace(cell, seed=seed) for seed in seeds for cell in (Cell("nothing", 0.0, budget=0.0), *PLAIN))
