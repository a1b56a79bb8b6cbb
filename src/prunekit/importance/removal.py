"""Importance as the error that is left once a unit is gone and the other weights have made up for it."""

from __future__ import annotations

from prunekit.importance.view import GroupView, Rows

REMOVAL = "removal"
"""The statistic: by group ``[units]``, gathered by :func:`prunekit.reconstruction.removal_errors`."""


def score_removal(view: GroupView) -> Rows:
    """Score each unit by the error of the layers that read its group once it is gone and the rest is updated.

    ``score[u] = error(u and all that went before it)``: a group is emptied one unit after another, always the
    one that the others best make up for (:func:`prunekit.reconstruction.removal_errors`).

    Returns:
        ``[1, units]`` float64, >= 0, a share of the squares of the layers' outputs; higher = keep.

    Raises:
        CalibrationError: it was not gathered.

    Source: Kurtic et al., 2023 (ZipLM), Algorithm 1, https://arxiv.org/abs/2302.04089. Deviation: several
    layers may read one group; grouped convolutions take no part.
    """
    return view.statistic(REMOVAL)[None, :]


def why_no_removal(view: GroupView) -> str:
    """Say why a group cannot be emptied, or ""; whether weights read it is known once it was tried."""
    if view.group.is_depth:
        return "its units are whole layers or branches, which are no columns of weights"
    gathered = None if view.stats is None else view.stats.values.get(REMOVAL)
    if gathered is None or view.group.name in gathered:
        return ""
    return "no linear layer or convolution reads it as a whole"
