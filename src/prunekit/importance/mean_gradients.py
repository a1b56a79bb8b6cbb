"""Gradients of a mean loss over the calibration data, for criteria of single weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError
from prunekit.importance.batches import ModelInputs, check_batches, checked_batches, examples_in
from prunekit.importance.derivatives import checked_loss
from prunekit.importance.untouched import untouched
from prunekit.importance.weight_tensors import Weights, stored_parameter
from prunekit.ranks import ALONE, Ranks


def mean_gradients(
    model: nn.Module,
    weights: Weights,
    calibration: Iterable[ModelInputs],
    loss: Callable[[Any, Any], Tensor] | None,
    *,
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """Gather the gradient of the mean loss over all examples, in one pass of the model.

    ``gradient = sum_b n[b] * d loss(b) / d w / sum_b n[b]``, ``n[b]`` the number of examples of batch ``b``

    With a loss that is the mean over its examples the result does not depend on how the data is cut into
    batches, but for the rounding of float32 sums. The model runs in evaluation mode and is left as found.

    Args:
        model: the model the weights were found on.
        weights: from :func:`prunekit.importance.find_weights`.
        calibration: batches on the model's device; never test data. A batch counts by its ids, or else by the
            first dimension of its first input.
        loss: ``loss(outputs, batch)``, the mean loss of a batch as a scalar tensor.
        ranks: the processes whose batches count, as in :func:`prunekit.importance.collect`.

    Returns:
        By parameter, in its shape, float32 (float64 for float64); of a parameter that the loss does not
        depend on zeros.

    Raises:
        CalibrationError: no loss, or one that is not finite, scalar and differentiable; no batches, or
            something else than batches; a gradient with NaN or infinity.
    """
    with ranks.together("mean_gradients"):
        return _mean_gradients(model, weights, calibration, loss, ranks)


def _mean_gradients(
    model: nn.Module,
    weights: Weights,
    calibration: Iterable[ModelInputs],
    loss: Callable[[Any, Any], Tensor] | None,
    ranks: Ranks,
) -> dict[str, Tensor]:
    if not callable(loss):
        raise CalibrationError(
            "The criterion needs a loss and none was given",
            expected="loss(outputs, batch) that returns the mean loss of the batch",
            where="loss",
        )
    check_batches(calibration)
    parameters = {weight.name: stored_parameter(model, weight) for weight in weights}
    sums = {name: _zeros(parameter) for name, parameter in parameters.items()}
    examples = 0
    with untouched(model, parameters.values()):
        for number, batch in checked_batches(calibration, ranks):
            value = checked_loss(loss(model(*batch.args, **batch.kwargs), batch), number)
            found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    sums[name].add_(_finite(gradient, name, number), alpha=examples_in(batch))
            examples += examples_in(batch)
    examples = sum(ranks.gather(examples, "number of examples"))
    if ranks.size > 1:
        sums = {name: ranks.sum(total, f"gradients of {name}") for name, total in sums.items()}
    return {name: total.div_(examples) for name, total in sums.items()}


def _zeros(parameter: Tensor) -> Tensor:
    wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    return torch.zeros_like(parameter, dtype=wide, requires_grad=False)


def _finite(gradient: Tensor, name: str, number: int) -> Tensor:
    if not torch.isfinite(gradient).all():
        raise CalibrationError(
            f"The gradient of the parameter '{name}' holds NaN or infinity",
            where=f"calibration batch {number}",
            remedy="Look for a division by zero or an overflow in the model, or calibrate in float32",
        )
    return gradient
