"""The baseline that every criterion must beat: random scores."""

from __future__ import annotations

from prunekit.importance.view import GroupView, Rows


def score_random(view: GroupView) -> Rows:
    """Score each unit by a draw that knows nothing about it.

    ``score[u] ~ uniform[0, 1)``, from NumPy's PCG64 seeded with the seed and the group's name; so the scores
    of a group depend neither on the other groups nor on their order.

    Returns:
        ``[1, units]`` float64 in ``[0, 1)``.

    Source: Mittal et al., 2018, Recovering from Random Pruning, https://arxiv.org/abs/1801.10447.
    Deviation: none.
    """
    return view.generator().random(view.group.size)[None, :]
