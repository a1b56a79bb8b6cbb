"""How much a head, or any unit, contributes to the variance of the model's final output."""

from __future__ import annotations

from prunekit.importance.view import GroupView, Rows

OUTPUT_VARIANCE = "output_variance"
"""The statistic ``|sum_k Cov_n(c[n, k], out[n, k])| / sum_k Var_n(out[n, k])``, ``[units]``."""


def score_output_variance(view: GroupView) -> Rows:
    """Score each unit by its share of the variance of the model's output.

    ``score[u] = |sum_k Cov_n(c[u, n, k], out[n, k])| / sum_k Var_n(out[n, k])``, ``c[u] = d out / d gate[u]``

    ``out[n, k]`` is number ``k`` of the model's output for example ``n`` (for a language model, a position
    and a word), ``gate[u]`` multiplies the unit where operators with weights read it, and ``c[u]`` is thus
    what the unit adds to the output: exactly where everything behind it is linear, to first order elsewhere.
    There the signed shares of units that make up the whole output add up to one, so the score reads "this
    head carries 3 % of what the model says about one example and not about another". What is the same for all
    examples counts nothing: a bias can stand in for it.

    The covariance of all units with the output is half the derivative of ``sum_k Var_n(out[n, k])`` with
    respect to the gates: one backward pass for all heads of all layers, without labels, and without ever
    running the model with a head taken out, which would take one pass per head. Variances are computed inside
    each batch and pooled with ``n - 1`` as weight, so batches of one example say nothing and are refused; the
    estimate does not drift with the batch size, as long as examples are drawn into batches at random. The
    first output that is a float tensor counts, scalars aside; its first dimension is that of the examples.

    Returns:
        ``[1, units]`` float64, >= 0, a fraction of the output's variance; higher = keep.

    Raises:
        CalibrationError: the statistic was not gathered.

    Source: own formula. It differs from ``Var(out) - Var(out without the head)``, which is ``2 Cov(c, out) -
    Var(c)`` for a linear rest of the model: the covariance share is linear in the unit and adds up. For gates
    on heads: Michel et al., 2019, https://arxiv.org/abs/1905.10650, who take the derivative of the loss.
    """
    return view.statistic(OUTPUT_VARIANCE)[None, :]
