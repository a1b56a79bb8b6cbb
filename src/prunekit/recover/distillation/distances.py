"""How far what a student computes is from what its teacher computes: pure functions of tensors.

All of them compute in float32 at least, take no gradient of the teacher, and are 0 with a gradient where no
position counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logit_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    counted: Tensor | None = None,
    class_dim: int = -1,
) -> Tensor:
    """Mean divergence of the student's softened class distribution from the teacher's.

    ``T^2 * mean over positions of sum_i p_i (log p_i - log q_i)``, with ``p = softmax(teacher / T)`` and
    ``q = softmax(student / T)``. A class that the teacher excludes (``-inf``) adds nothing.

    Args:
        student: logits ``[examples, ..., classes]``, or with the classes along ``class_dim``.
        teacher: logits of the same shape.
        temperature: T, > 0.
        counted: bool of that shape without the classes; None where every position counts.
        class_dim: where the classes lie.

    Source: Hinton, Vinyals, Dean, 2015, Distilling the Knowledge in a Neural Network, eq. 1 and section 2
    (the factor T^2, which keeps gradients in proportion to the task's), https://arxiv.org/abs/1503.02531.
    Deviation: the divergence instead of the cross entropy; the two differ by the teacher's entropy, which has
    no gradient.
    """
    student, teacher = (_wide(each).movedim(class_dim, -1) for each in (student, teacher.detach()))
    ours, theirs = (_rows(each, counted) / temperature for each in (student, teacher))
    kl = _divergence(theirs.log_softmax(-1), ours.log_softmax(-1))
    return kl * temperature**2 / max(1, len(ours))


def hidden_distance(
    student: Tensor, teacher: Tensor, *, distance: str, counted: Tensor | None = None, feature_dim: int = -1
) -> Tensor:
    """Mean distance of hidden states.

    ``mse``: ``mean (s - t)^2`` over positions and features. ``cosine``: the mean over positions of
    ``1 - s . t / (|s| |t|)``, computed as half the squared distance of the two unit vectors, so that equal
    states are at distance 0 exactly, zeros too.

    Args:
        student: ``[examples, ..., features]``, or with the features along ``feature_dim``.
        teacher: of the same shape.
        distance: ``mse`` or ``cosine``.
        counted: bool of that shape without the features; None where every position counts.
        feature_dim: where the features lie.

    Source: ``mse``: Jiao et al., 2020, TinyBERT, eq. 8, https://arxiv.org/abs/1909.10351. ``cosine``: Sanh et
    al., 2019, DistilBERT, section 3, https://arxiv.org/abs/1910.01108. Deviation: a state of zeros beside
    one that is not is at cosine distance 1/2.
    """
    student, teacher = (_wide(each).movedim(feature_dim, -1) for each in (student, teacher.detach()))
    ours, theirs = (_rows(each, counted) for each in (student, teacher))
    if distance == "mse":
        return (ours - theirs).square().sum() / max(1, ours.numel())
    apart = F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)
    return apart.square().sum() / (2 * max(1, len(ours)))


def attention_distance(
    student: Tensor, teacher: Tensor, *, distance: str, counted: Tensor | None = None
) -> Tensor:
    """Mean distance of attention maps.

    ``kl``: the mean over heads and queries that count of ``sum_k p_k (log p_k - log q_k)``, with p the
    teacher's attention. ``mse``: the mean over heads, queries and keys that count of ``(q - p)^2``.

    Args:
        student: attention probabilities ``[examples, heads, queries, keys]``.
        teacher: of the same shape.
        distance: ``kl`` or ``mse``.
        counted: ``[examples, positions]`` bool, which tokens count, as queries and as keys; None for all.

    Source: ``kl``: Wang et al., 2020, MiniLM, section 3.1 (L_AT), https://arxiv.org/abs/2002.10957. ``mse``:
    Jiao et al., 2020, TinyBERT, eq. 7, https://arxiv.org/abs/1909.10351. Deviation: both on probabilities of
    every pair of layers; TinyBERT compares scores before the softmax, MiniLM the last layer only.
    """
    ours, theirs = _wide(student), _wide(teacher.detach())
    heads, pairs, queries = ours.shape[1], ours[0, 0].numel() * len(ours), ours.shape[2] * len(ours)
    if counted is not None:
        both = (counted[:, :, None] & counted[:, None, :])[:, None]
        ours, theirs = (torch.where(both, each, 0.0) for each in (ours, theirs))
        pairs, queries = int(both.sum()), int(counted.sum())
    if distance == "mse":
        return (ours - theirs).square().sum() / max(1, heads * pairs)
    tiny = torch.finfo(ours.dtype).tiny
    kl = _divergence(*(each.clamp_min(tiny).log() for each in (theirs, ours)), weight=theirs)
    return kl / max(1, heads * queries)


def _divergence(log_p: Tensor, log_q: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """``sum p (log p - log q)`` over everything where p is not 0; NaN where it is NaN."""
    p = log_p.exp() if weight is None else weight
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum()


def _rows(values: Tensor, counted: Tensor | None) -> Tensor:
    """``[positions that count, last dimension]``."""
    return values.flatten(0, -2) if counted is None else values[counted]


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
