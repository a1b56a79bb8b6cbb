"""Which masked weights come back while a model trains: a closed table of rules, and the exchange itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from prunekit.errors import TrainingError
from prunekit.recover.training.learning_rate import constant, cosine

Choose = Callable[[Mapping[str, Tensor], float], dict[str, Tensor]]
"""``choose(scores, sparsity)``: by parameter what stays, bool; exact counts, higher scores first."""


@dataclass(frozen=True)
class Regrowth:
    """What becomes of weights that went.

    Attributes:
        share: of the kept weights that are exchanged at the first update, in [0, 1).
        decay: progress in [0, 1] -> factor of ``share``.
        by: what is highest comes back: ``gradient``, the magnitude of the loss's gradient, or ``draw``; ""
            where nothing is exchanged.
        soft: what goes is set to zero at every update and trains on; masks hold from the last update only.
        source: where the rule comes from.
    """

    share: float = 0.0
    decay: Callable[[float], float] = constant
    by: str = ""
    soft: bool = False
    source: str = ""

    def __str__(self) -> str:
        return f"{self.by or 'nothing'}, share {self.share}, {self.decay.__name__}" + ", soft" * self.soft

    def exchanged(self, progress: float) -> float:
        """The share of the kept weights that is exchanged, none at the end."""
        return self.share * self.decay(progress) if self.by and progress < 1 else 0.0


REGROWTH: dict[str, Regrowth] = {
    "none": Regrowth(source="Zhu & Gupta, 2017, https://arxiv.org/abs/1710.01878"),
    "gradient": Regrowth(
        0.3, cosine, "gradient", source="Evci et al., 2020, RigL, https://arxiv.org/abs/1911.11134"
    ),
    "random": Regrowth(
        0.3, constant, "draw", source="Mocanu et al., 2018, SET, https://arxiv.org/abs/1707.04780"
    ),
    "soft": Regrowth(soft=True, source="He et al., 2018, https://arxiv.org/abs/1808.06866"),
}
"""Every rule by name; ``dataclasses.replace(REGROWTH["gradient"], share=0.5)`` makes another."""


def exchange(
    choose: Choose,
    scores: Mapping[str, Tensor],
    growth: Mapping[str, Tensor],
    *,
    sparsity: float,
    share: float,
) -> dict[str, Tensor]:
    """Drop a share of what is kept, and let as much come back of what had gone.

    1. Of the kept weights the share with the lowest scores is dropped: ``k = share * (1 - sparsity) * N``.
    2. Of what had gone before, those with the highest growth scores fill the count up to ``sparsity``.
    3. Where less had gone than is wanted back, what was just dropped fills the rest by its own scores.

    Args:
        choose: says who competes, and counts.
        scores: by parameter; 0 where a weight is gone, else > 0.
        growth: by parameter, >= 0.
        sparsity: after the exchange.
        share: in [0, 1).

    Returns:
        By parameter what stays, bool.

    Source: Evci et al., 2020, section 3 (3) and (4) and algorithm 1; Mocanu et al., 2018, algorithm 1, who
    take the smallest positive and the largest negative weights for step 1. Deviation: what was just dropped
    comes back by rule 3 only, where Evci et al. let its gradient compete.
    """
    survivors = choose(scores, 1 - (1 - sparsity) * (1 - share))
    most_score = max(float(values.max()) for values in scores.values())
    most_growth = max(float(values.max()) for values in growth.values())
    ranks = {}
    for name, values in scores.items():
        dropped = values.double() / (most_score or 1.0)  # 0 to 1
        regrown = 1 + growth[name].double() / (most_growth or 1.0)  # 1 to 2
        ranks[name] = torch.where(survivors[name], 3.0, torch.where(values > 0, dropped, regrown))
    return choose(ranks, sparsity)


def summed_over_ranks(
    gradients: Mapping[str, Tensor | None], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Magnitudes of the gradients, summed over all processes first; zero where there is none.

    Raises:
        TrainingError: there is no gradient at all.
    """
    if all(gradient is None for gradient in gradients.values()):
        raise TrainingError(
            "No masked parameter had a gradient since the last step",
            where="GradualMasks.step",
            remedy="Call it once after every optimizer step, in the process that ran backward()",
        )
    found = {}
    for name, gradient in gradients.items():
        total = torch.zeros_like(like[name]) if gradient is None else gradient
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(total)
        found[name] = total.abs()
    return found
