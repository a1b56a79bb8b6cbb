"""Euclidean norms of what linear layers and convolutions read, gathered while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError, SelectionError
from prunekit.importance.batches import ModelInputs, check_batches, checked_batches
from prunekit.importance.matrix import is_transposed_linear
from prunekit.importance.untouched import untouched
from prunekit.importance.weight_tensors import Weights, WeightTensor, owners_of
from prunekit.ranks import ALONE, Ranks

AT_ONCE = 2**20
"""Values that are turned into float64 at once."""

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def input_norms(
    model: nn.Module, weights: Weights, calibration: Iterable[ModelInputs], *, ranks: Ranks = ALONE
) -> dict[str, Tensor]:
    """Gather the Euclidean norm of every input of every parameter, in one pass of the model.

    ``norm[j] = sqrt(sum_t x[t, j] ** 2)`` over all examples and positions ``t`` that the modules with the
    parameter are called on, summed in float64: how the data is cut into batches changes the last bits of a
    float64 at most. The model runs in evaluation mode and is left as found.

    Args:
        model: the model the weights were found on.
        weights: in modules like ``nn.Linear`` or ``nn.ConvNd``.
        calibration: batches, on the model's device; never test data.
        ranks: the processes whose batches count, as in :func:`prunekit.importance.collect`.

    Returns:
        By parameter ``[in]`` float64; of a convolution one for each input channel.

    Raises:
        SelectionError: a parameter whose module does not say what its inputs are.
        CalibrationError: no batches, or something else than batches; a module that was never called; NaN or
            infinity in its inputs.

    Source: ``||X_j||_2`` of Sun et al., 2024, eq. 1, https://arxiv.org/abs/2306.11695. Deviation: the
    published code divides the squares by the number of examples, one factor for all parameters.
    """
    with ranks.together("input_norms"):
        return _input_norms(model, weights, calibration, ranks)


def _input_norms(
    model: nn.Module, weights: Weights, calibration: Iterable[ModelInputs], ranks: Ranks
) -> dict[str, Tensor]:
    check_batches(calibration)
    squares: dict[str, Tensor] = {}
    with untouched(model, ()), torch.no_grad(), ExitStack() as hooks:
        for weight in weights:
            for owner in dict.fromkeys(owners_of(model, weight)):
                _check_owner(owner, weight)
                handle = owner.register_forward_pre_hook(_adding(squares, weight, owner), with_kwargs=True)
                hooks.callback(handle.remove)
        for _, batch in checked_batches(calibration, ranks):
            model(*batch.args, **batch.kwargs)
    _pool(squares, ranks)
    return {weight.name: _norms(squares, weight) for weight in weights}


def _pool(squares: dict[str, Tensor], ranks: Ranks) -> None:
    """Add what the other processes saw, from rank 0 upwards; a module may have been called on some only."""
    sizes: dict[str, int] = {}
    for found in ranks.gather({name: len(sums) for name, sums in squares.items()}, "sizes of inputs"):
        sizes |= found
    zeros = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
    totals = ranks.sum_all([squares.get(name, none) for name, none in zeros.items()], "squares of inputs")
    squares.update(zip(sizes, totals, strict=True))


def _check_owner(owner: nn.Module, weight: WeightTensor) -> None:
    if not (isinstance(owner, nn.Linear | Convolution) or is_transposed_linear(owner)):
        raise SelectionError(
            f"What a {type(owner).__name__} multiplies it with is not known",
            expected="a parameter of a linear layer or a convolution",
            where=f"weight '{weight.name}'",
            remedy="Leave it out with ignore=, or give norms= of your own",
        )


def _adding(
    squares: dict[str, Tensor], weight: WeightTensor, owner: nn.Module
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """A hook that adds the squares of what ``owner`` is called with."""

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read = args[0] if args else kwargs.get("input", kwargs.get("x"))
        if not isinstance(read, Tensor):
            raise CalibrationError(f"It is called with a {type(read).__name__}", where=weight.name)
        value = read.detach()
        if isinstance(owner, Convolution):
            value = value.movedim(value.ndim - len(owner.kernel_size) - 1, -1)
        rows = value.reshape(-1, value.shape[-1])
        sums = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        for piece in rows.split(max(1, AT_ONCE // max(1, rows.shape[1]))):
            sums += piece.double().square().sum(0)
        before = squares.get(weight.name)
        squares[weight.name] = sums if before is None else before.to(sums.device) + sums

    return add


def _norms(squares: dict[str, Tensor], weight: WeightTensor) -> Tensor:
    found = squares.get(weight.name)
    if found is None:
        raise CalibrationError(
            "Its module was never called on the calibration data",
            where=f"weight '{weight.name}'",
            remedy="Leave it out with ignore=, or give norms= of your own; torch's attention reads "
            "the weights of its output layer without calling it",
        )
    if not torch.isfinite(found).all():
        raise CalibrationError(
            "The inputs that it reads hold NaN or infinity",
            where=f"weight '{weight.name}'",
            remedy="Look for NaN in the data or the weights, or calibrate in float32",
        )
    return found.sqrt()
