"""The nouns of the comparison: a model with its data, and what is compared on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from prunekit.graph import Groups
from prunekit.importance import CRITERIA, Statistics
from prunekit.workload import Batch

BASELINES = ("random", "l1")
"""The lines to beat."""


@dataclass(frozen=True)
class Contest:
    """Criteria that score the same units.

    Attributes:
        title: for the table.
        granularity: of the units that go, the same share of every group.
        criteria: names, the baselines first.
    """

    title: str
    granularity: tuple[str, ...]
    criteria: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """A model for one seed.

    Attributes:
        model: the dense model.
        groups: the groups of all contests, with the graph they were found in.
        calibration: batches of the calibration split.
        loss: ``loss(outputs, batch)``, the mean over a batch.
        judge: the figures of a model on the test split, by name.
        carry_out: ``carry_out(plan, groups)``, the model without a plan's units.
        gathered: statistics that calibration cannot gather, by need.
    """

    model: nn.Module
    groups: Groups
    calibration: Sequence[Batch]
    loss: Callable[[Any, Any], Tensor]
    judge: Callable[[nn.Module], dict[str, float]]
    carry_out: Callable[[Any, Groups], nn.Module]
    gathered: dict[str, Statistics] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What is compared on one model.

    Attributes:
        name: of the model.
        about: what the figures are and what a seed decides, for the text above the table.
        prepare: the subject for a seed.
        contests: what is compared.
        sparsities: shares of the units of every group that go.
        figures: name -> how it is written; the table shows them all.
        lower_is_better: of the figures.
        seed_makes_the_model: every seed has a parent of its own; else what needs no data is computed once.
        prove_with: groups of the same model, traced with a shorter example, that a proof costs less with.
    """

    name: str
    about: str
    prepare: Callable[[int], Subject]
    contests: tuple[Contest, ...]
    sparsities: tuple[float, ...]
    figures: dict[str, str]
    lower_is_better: bool = False
    seed_makes_the_model: bool = False
    prove_with: Callable[[], Groups] | None = None

    def depends_on_seed(self, criterion: str) -> bool:
        """Whether another seed gives another row."""
        drawn = criterion == "random" or bool(CRITERIA[criterion].needs)
        return self.seed_makes_the_model or drawn


def of_widths(*names: str) -> tuple[str, ...]:
    """The criteria that score units of any width, the baselines first, and ``names`` besides."""
    common = (
        *BASELINES,
        *("l2", "linf", "fpgm", "lamp"),
        *("taylor", "taylor_gate", "gradient", "snip", "fisher", "output_variance"),
        *("activation_mean", "activation_l2", "activation_variance", "apoz", "wanda", "flap"),
    )
    return (*common, *names)


OF_LAYERS = (*BASELINES, "block_influence", "layer_gate", "bypass_loss")
"""The criteria of whole layers, the baselines first."""
