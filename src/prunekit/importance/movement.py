"""Movement: which way training pushes the weights, accumulated while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError
from prunekit.importance.gather import gather, has_unit
from prunekit.importance.view import ROLES, GroupView, Rows, Statistics, check_roles, scored_slices
from prunekit.ranks import ALONE, Ranks, whole
from prunekit.types import Group

MOVEMENT = "movement"
"""The statistic ``-sum_t sum_i g_t[u, i] * w_t[u, i]``, ``[slices, units]``, signed, in units of the loss."""


class Movement:
    """Accumulates movement while a model is trained.

    ``S[u] = -sum_t sum_i gradient_t[u, i] * weight_t[u, i]``: positive where steps against the gradient take
    the weights away from zero. Memory: one float64 per slice and unit; gradients are read, never kept.
    Of a model that FSDP2 shards, one parameter at a time is gathered; all processes call ``update()``::

        movement = Movement(model, groups)
        for batch in batches:
            optimizer.zero_grad()
            loss(model(*batch.args), batch).backward()
            movement.update()  # before the step
            optimizer.step()
        scores = score(model, groups, "movement", stats=movement.statistics())

    Source: Sanh et al., 2020, Movement Pruning, eq. 4, https://arxiv.org/abs/2005.07683. Deviations: added
    per unit; the learning rate of the scores, a constant factor, is left out; the weights that are trained
    are the dense ones, so no straight-through estimator is needed.

    Args:
        model: the model that is trained; only read.
        groups: the groups that will be scored.
        roles: the roles of the slices that take part; give :func:`prunekit.importance.score` the same.

    Raises:
        SelectionError: a group without a float parameter in these roles.
        ShapeError: the groups were found on another model.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group], *, roles: Iterable[str] = ROLES) -> None:
        self.steps = 0
        self._model = model
        self._roles = check_roles(tuple(roles))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        self._groups = tuple(groups)
        self._parts = {
            group.name: scored_slices(group, parameters, buffers, self._roles) for group in self._groups
        }
        self._sums = {
            group.name: np.zeros((len(self._parts[group.name]), group.size)) for group in self._groups
        }

    def update(
        self, weights: Mapping[str, Tensor] | None = None, gradients: Mapping[str, Tensor] | None = None
    ) -> None:
        """Take in one training step, between ``backward`` and the optimizer's step.

        Args:
            weights: by qualified name; default: the model's parameters.
            gradients: by qualified name; default: their ``.grad``. A parameter without one did not move.

        Raises:
            CalibrationError: there is no gradient at all, or one that holds NaN or infinity; nothing is
            added.
        """
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        weights = parameters if weights is None else weights
        if gradients is None:
            gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        names = {part.tensor for parts in self._parts.values() for part in parts}
        if not names & gradients.keys():
            raise CalibrationError(
                "No parameter of the groups has a gradient",
                where=f"movement, step {self.steps}",
                remedy="Call update() after backward() and before the gradients are zeroed",
            )
        for name in sorted(names & gradients.keys()):
            if not torch.isfinite(whole(gradients[name])).all():
                raise CalibrationError(
                    f"The gradient of the parameter '{name}' holds NaN or infinity",
                    where=f"movement, step {self.steps}",
                )
        for group in self._groups:
            for row, part in enumerate(self._parts[group.name]):
                if part.tensor in gradients:
                    weight = gather(whole(weights[part.tensor].detach()), part, group).double()
                    gradient = gather(whole(gradients[part.tensor].detach()), part, group).double()
                    self._sums[group.name][row] -= (weight * gradient).sum(dim=1).cpu().numpy()
        self.steps += 1

    def statistics(self, *, ranks: Ranks = ALONE) -> Statistics:
        """Return what was accumulated so far.

        Args:
            ranks: the processes whose mean it is, of those that train one model together. Where their
                gradients are averaged before ``update()`` sees them, as DDP and FSDP2 do, they all hold the
                same and the mean changes no more than rounding; where each sees its own, it does what the
                averaging would have done.

        Raises:
            CalibrationError: no step was taken in.
            RankError: the processes took different numbers of steps in.
        """
        with ranks.together("movement"):
            return self._statistics(ranks)

    def _statistics(self, ranks: Ranks) -> Statistics:
        ranks.check_same(self.steps, "number of training steps taken in")
        if not self.steps:
            raise CalibrationError(
                "No training step was taken in",
                where="movement",
                remedy="Call update() after each backward()",
            )
        totals = ranks.sum_all([torch.from_numpy(sums) for sums in self._sums.values()], MOVEMENT)
        means = {name: total.numpy() / ranks.size for name, total in zip(self._sums, totals, strict=True)}
        found = {
            group.name: np.stack(
                [
                    np.where(has_unit(part, group), means[group.name][row], np.nan)
                    for row, part in enumerate(self._parts[group.name])
                ]
            )
            for group in self._groups
        }
        return Statistics({MOVEMENT: found}, self._roles, self.steps, math.nan)


def score_movement(view: GroupView) -> Rows:
    """Score each unit by how far training pushed it away from zero.

    ``score[u] = S[u] - min_v S[v]``, one row per slice; ``S`` as in :class:`Movement`

    Returns:
        ``[slices, units]`` float64, >= 0, in units of the loss; higher = keep.

    Raises:
        CalibrationError: training did not accumulate it.

    Source: Sanh et al., 2020, Movement Pruning, eq. 4, https://arxiv.org/abs/2005.07683. Deviation: each
    row is moved so that its smallest score is zero, because scores here are never negative; that changes no
    order inside a slice, but between groups and slices only the spread counts.
    """
    movement = view.statistic(MOVEMENT)
    return movement - np.nanmin(movement, axis=1, keepdims=True)
