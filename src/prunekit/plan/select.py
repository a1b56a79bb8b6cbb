"""Exact selection: which units stay when so many stay."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunekit.errors import CalibrationError, ShapeError
from prunekit.types import BoolArray, FloatArray, Group, IntArray, Scores


def scores_of(group: Group, scores: Scores) -> FloatArray:
    """The scores of a group, those of units that stay in any case above all others.

    Raises:
        ShapeError: there are none, or they do not fit.
        CalibrationError: one is NaN or infinite.
    """
    values = scores.get(group.name)
    if values is None or values.shape != (group.size,):
        raise ShapeError(
            "The group has no scores" if values is None else f"The scores have the shape {values.shape}",
            expected=f"scores of the shape ({group.size},)",
            where=f"group '{group.name}'",
            remedy="Score the same groups that are planned over",
        )
    if not np.isfinite(values).all():
        raise CalibrationError("A score is NaN or infinite", where=f"group '{group.name}'")
    if not group.pinned:
        return values
    raised = values.copy()
    raised[list(group.pinned)] = np.inf
    return raised


def keep_order(scores: npt.NDArray[np.floating], blocks: int = 1) -> IntArray:
    """Order the units of each block from the first to keep to the first to go.

    Rule 1: a higher score is kept first. Rule 2: of equal scores the lower unit id is kept first.

    Args:
        scores: ``[units]``, finite; higher = keep.
        blocks: number of equal blocks the units lie in; divides ``units``.

    Returns:
        ``[blocks, units / blocks]`` int64, unit ids.
    """
    per_block = scores.reshape(blocks, -1)
    within = np.argsort(-per_block, axis=1, kind="stable")
    return within + np.arange(blocks)[:, None] * per_block.shape[1]


def keep_mask(order: IntArray, kept_per_block: int) -> BoolArray:
    """Keep exactly ``kept_per_block`` units of each block, the first of the order.

    Nothing is compared with a threshold, so ties cannot change the count; and the units kept at a lower
    count are a subset of those kept at a higher one.

    Args:
        order: ``[blocks, units / blocks]``, from :func:`keep_order`.
        kept_per_block: in ``[0, units / blocks]``.

    Returns:
        ``[units]`` bool with exactly ``blocks * kept_per_block`` ``True``; True = keep.
    """
    assert 0 <= kept_per_block <= order.shape[1]
    mask = np.zeros(order.size, dtype=np.bool_)
    mask[order[:, :kept_per_block].ravel()] = True
    return mask
