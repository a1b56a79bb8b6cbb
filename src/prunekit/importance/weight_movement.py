"""How far training pushes each single weight away from zero, gathered while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError
from prunekit.importance.weight_criteria import WeightScores
from prunekit.importance.weight_tensors import Weights, stored_parameter


class WeightMovement:
    """Accumulates ``S[i] = -sum_t w_t[i] * dL/dw_t[i]`` over training steps; call it for the scores.

    Call :meth:`update` after ``backward()``, before the optimizer's step: the weights are those of the
    gradient. An instance is a criterion for :class:`prunekit.GradualMasks`.

    Args:
        model: that trains, masked or not; no gradient passes a mask, so that what is gone keeps its sum.
        weights: from :func:`find_weights`.

    Source: Sanh, Wolf & Rush, 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", eq. 4,
    https://arxiv.org/abs/2005.07683. Deviations: the sum itself in place of scores that an optimizer of
    their own learns; sums of gone weights rest, where the paper's go on by a straight-through gradient.
    """

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        self._parameters = {weight.name: stored_parameter(model, weight) for weight in weights}
        self._sums = {
            name: torch.zeros_like(
                parameter, dtype=torch.promote_types(parameter.dtype, torch.float32), requires_grad=False
            )
            for name, parameter in self._parameters.items()
        }
        self.steps = 0

    def update(self) -> None:
        """Take in the gradients of a step.

        Raises:
            CalibrationError: there is none, or one with NaN or infinity.
        """
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        if not gradients:
            raise CalibrationError(
                "No weight has a gradient",
                where=f"movement, step {self.steps}",
                remedy="Call update() after backward() and before the gradients are zeroed",
            )
        for name, gradient in gradients.items():
            if not torch.isfinite(gradient).all():
                raise CalibrationError(
                    f"The gradient of '{name}' holds NaN or infinity", where=f"movement, step {self.steps}"
                )
        with torch.no_grad():
            for name, gradient in gradients.items():
                total = self._sums[name]
                total.addcmul_(self._parameters[name].to(total.dtype), gradient.to(total.dtype), value=-1)
        self.steps += 1

    def __call__(self, model: nn.Module, weights: Weights) -> WeightScores:
        """Score every weight by its sum, moved so that the smallest of all is zero.

        Returns:
            By parameter, in its shape, float32 (float64 for float64), >= 0; higher = keep.

        Raises:
            CalibrationError: no step was taken in.
        """
        if not self.steps:
            raise CalibrationError(
                "No training step was taken in", where="movement", remedy="Call update() after backward()"
            )
        least = min(float(self._sums[weight.name].min()) for weight in weights)
        return {weight.name: self._sums[weight.name] - least for weight in weights}

    def state_dict(self) -> dict[str, Any]:
        """The sums and the number of steps."""
        return {"steps": self.steps, "sums": {name: total.clone() for name, total in self._sums.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Go on where another one was."""
        self.steps = state_dict["steps"]
        for name, total in self._sums.items():
            total.copy_(_of(state_dict["sums"], name))


def _of(sums: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in sums:
        raise CalibrationError(f"The state has no sums for '{name}'", where="movement")
    return sums[name]
