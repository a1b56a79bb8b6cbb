"""The weights that are left, updated in closed form so that a layer's own outputs change least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import ShapeError
from prunekit.reconstruction.damping import DAMPING, factor
from prunekit.reconstruction.moments import centred

ROWS_AT_ONCE = 2**22
"""Numbers in the matrices that are solved at once where every row has its own."""


@dataclass(frozen=True)
class Solution:
    """New weights of one layer and what they do to its outputs.

    Attributes:
        weight: ``[out, kept]``, or ``[out, in]`` with zeros for a mask.
        bias: what is added to the bias, ``[out]``; None where it is not compensated.
        before: sum of the squared differences of the outputs without the update.
        after: the same with it; never more than ``before``.
        damping: that was used, a fraction of the mean of the diagonal; more than was asked where the second
            moments are singular.
    """

    weight: Tensor
    bias: Tensor | None
    before: float
    after: float
    damping: float


def correct(
    gram: Tensor, cross: Tensor, squares: float | Tensor, damping: float
) -> tuple[Tensor, float, float]:
    """The change of weights that explains most of a residual.

    ``D = argmin |E - X D.T|^2 + d |D|^2 = (X.T X + d I)^-1 X.T E``, transposed. Dampened towards no change:
    whatever ``d``, the residual does not grow.

    Args:
        gram: ``X.T X``, ``[in, in]`` float64.
        cross: ``X.T E``, ``[in, out]`` float64.
        squares: ``|E|^2``.
        damping: as a fraction of the mean of the diagonal.

    Returns:
        ``D`` as ``[out, in]``; ``|E - X D.T|^2``, never above ``squares`` and never below 0; the dampening.
    """
    lower, used = factor(gram, damping)
    change = torch.cholesky_solve(cross, lower)
    left = float(squares - 2 * (change * cross).sum() + (change * (gram @ change)).sum())
    if not left <= float(squares):  # Nothing to explain but rounding.
        return torch.zeros_like(cross.T), float(squares), used
    return change.T, max(left, 0.0), used


def least_squares(
    weight: Tensor,
    moment: Tensor,
    keep: Tensor,
    *,
    mean: Tensor | None = None,
    count: float = 1.0,
    damping: float = DAMPING,
) -> Solution:
    """Remove input columns and update the others so that the layer's outputs change least.

    ``V = W_K + W_R H_RK (H_KK + d I)^-1``, the minimum of ``|X W.T - X_K V.T|^2 + d |V - W_K|^2`` over the
    calibration inputs. With ``mean`` the bias takes up what is constant: ``H`` is centred, and the bias
    changes by ``mean_R W_R.T - mean_K (V - W_K).T``.

    Args:
        weight: ``[out, in]``, any float dtype.
        moment: ``H = X.T X``, ``[in, in]``.
        keep: ``[in]`` bool; True = keep.
        mean: ``[in]``, mean of the inputs, where the layer has a bias.
        count: number of inputs that ``moment`` sums over; used with ``mean``.
        damping: ``d`` as a fraction of the mean of the diagonal of ``H_KK``.

    Returns:
        ``weight`` is ``[out, kept]`` float64.

    Raises:
        ShapeError: shapes that do not fit together.
        CalibrationError: NaN or infinity in ``moment``.

    Source: normal equations; with equal dampening the group OBS update of Frantar & Alistarh, 2022, eq. 5,
    https://arxiv.org/abs/2208.11580, and of Kurtic et al., 2023 (ZipLM), eq. 3, https://arxiv.org/abs/2302.04089.
    Deviation: the mean of the diagonal is that of the kept inputs.
    """
    wide, full = _checked(weight, moment, keep, mean)
    about = full if mean is None else centred(full, mean.double(), count)
    kept, gone = torch.where(keep)[0], torch.where(~keep)[0]
    cross = about[kept][:, gone] @ wide[:, gone].T
    lost = wide[:, gone]
    before = float((lost @ full[gone][:, gone] * lost).sum())
    constant = float((lost @ about[gone][:, gone] * lost).sum())
    change, after, used = correct(about[kept][:, kept], cross, constant, damping)
    bias = None
    if mean is not None:
        bias = lost @ mean.double()[gone] - change @ mean.double()[kept]
    return Solution(wide[:, kept] + change, bias, before, min(before, after), used)


def masked_least_squares(
    weight: Tensor, moment: Tensor, keep: Tensor, *, damping: float = DAMPING
) -> Solution:
    """:func:`least_squares` for a mask: every output solves for the inputs that it keeps.

    One factorisation for each different row of the mask: for layers of up to some hundred inputs. Larger ones
    take :func:`prunekit.reconstruction.sparsegpt`, which only shares the order.

    Args:
        weight: ``[out, in]``.
        moment: ``H = X.T X``, ``[in, in]``; dampened as a whole.
        keep: ``[out, in]`` bool; True = keep.
        damping: as a fraction of the mean of the diagonal of ``H``.

    Returns:
        ``weight`` is ``[out, in]`` float64, exactly 0 where it is not kept.

    Raises:
        ShapeError: shapes that do not fit together.
        CalibrationError: NaN or infinity in ``moment``.
    """
    wide, full = _checked(weight, moment, keep, None)
    _, used = factor(full, damping)
    damped = full.clone()
    damped.diagonal().add_(used * (float(full.diagonal().mean()) or 1.0))
    cross = (wide * ~keep) @ full
    solved = torch.where(keep, wide, 0.0)
    at_once = max(1, ROWS_AT_ONCE // max(1, full.numel()))
    for rows in torch.arange(len(wide), device=wide.device).split(at_once):
        kept = keep[rows].double()
        system = damped * kept[:, :, None] * kept[:, None, :] + torch.diag_embed(1 - kept)
        change = torch.linalg.solve(system, (cross[rows] * kept)[..., None])[..., 0]
        solved[rows] += change * kept
    return guarded(wide, solved, keep, full, used)


def guarded(wide: Tensor, solved: Tensor, keep: Tensor, moment: Tensor, damping: float) -> Solution:
    """The solution, but for rows that rounding or an order has made worse than no update.

    Args:
        wide: ``[out, in]`` the dense weights.
        solved: ``[out, in]`` the updated ones, 0 where not kept.
        keep: ``[out, in]`` bool.
        moment: ``[in, in]``.
        damping: that was used.
    """
    plain = torch.where(keep, wide, 0.0)
    before, after = (errors_of(wide - other, moment) for other in (plain, solved))
    better = after <= before
    weight = torch.where(better[:, None], solved, plain)
    left = torch.where(better, after, before)
    return Solution(weight, None, float(before.sum()), float(left.sum()), damping)


def errors_of(change: Tensor, moment: Tensor) -> Tensor:
    """``[out]`` squared differences of the outputs, ``c H c.T`` for each row, never below 0."""
    return ((change @ moment) * change).sum(1).clamp_min(0)


def _checked(weight: Tensor, moment: Tensor, keep: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor]:
    inputs = weight.shape[1] if weight.ndim == 2 else -1
    fits = keep.dtype == torch.bool and keep.shape in (weight.shape, weight.shape[1:])
    if moment.shape != (inputs, inputs) or not fits or (mean is not None and mean.shape != (inputs,)):
        raise ShapeError(
            f"The weight has the shape {list(weight.shape)}, the second moments {list(moment.shape)}, "
            f"the mask {list(keep.shape)} of {keep.dtype}",
            expected="[out, in], [in, in] and a bool mask over the inputs",
        )
    return weight.double(), moment.double()
