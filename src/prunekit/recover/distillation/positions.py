"""Which positions of a batch count: padding does not, nor do positions whose label is ignored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ShapeError
from prunekit.workload import Batch

Counted = Callable[[Batch], Tensor | None]
"""``counted(batch)``: ``[examples, positions]`` bool, which positions count; None for all."""

REMEDY = "Give Distillation counted=, a function from a batch to [examples, positions], or to None for all"


@dataclass(frozen=True)
class Positions:
    """Which positions of a batch hold something rather than padding; None where all do.

    Attributes:
        tokens: ``[examples, positions]`` bool, of what the model reads.
        outputs: the same of what it gives; another one only where an encoder reads and a decoder writes.
    """

    tokens: Tensor | None
    outputs: Tensor | None


def positions_of(batch: Batch, teacher: nn.Module, counted: Counted | None) -> Positions:
    """The positions of a batch.

    1. ``counted``, where it is given, says it for all tensors.
    2. Else it is the keyword input ``attention_mask``.
    3. A teacher whose configuration says that it is an encoder with a decoder has two kinds of positions, and
       which of its hidden states has which cannot be told: outputs go by ``decoder_attention_mask``, and
       everything else counts.

    Raises:
        ShapeError: a mask is not of two dimensions.
    """
    if counted is not None:
        found = _mask(counted(batch), "counted(batch)")
        return Positions(found, found)
    config = getattr(teacher, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return Positions(None, _mask(batch.kwargs.get("decoder_attention_mask"), "decoder_attention_mask"))
    found = _mask(batch.kwargs.get("attention_mask"), "attention_mask")
    return Positions(found, found)


def mask_for(values: Tensor, mask: Tensor | None, where: str) -> Tensor | None:
    """The mask for ``[examples, positions, features]``; None for tensors of other dimensions, without tokens.

    Raises:
        ShapeError: the tensor has another number of examples or positions than the mask.
    """
    if mask is None or values.ndim != 3:
        return None
    if values.shape[:2] != mask.shape:
        raise ShapeError(
            f"it has the shape {list(values.shape)}, and the mask of positions {list(mask.shape)}",
            expected="the examples and positions of the mask",
            where=where,
            remedy=REMEDY,
        )
    return mask


def labelled(
    values: Tensor, batch: Batch, *, causal: bool, ignore_index: int, class_dim: int
) -> Tensor | None:
    """Bool of the logits' shape without the classes: which positions have a label that is not ignored.

    Labels are the target, or the keyword input ``labels``. None where they say nothing: there are none, they
    have another shape, or there is one for each example, which may go unlabelled here. With ``causal`` the
    label of position ``t + 1`` says what position ``t`` should give, and the last position has none.
    """
    shape = torch.Size(size for dim, size in enumerate(values.shape) if dim != class_dim % values.ndim)
    for labels in (batch.target, batch.kwargs.get("labels")):
        if isinstance(labels, Tensor) and labels.shape == shape and len(shape) > 1:
            if labels.is_floating_point():
                continue
            has = (labels != ignore_index).to(values.device)
            return torch.cat([has[:, 1:], torch.zeros_like(has[:, :1])], dim=1) if causal else has
    return None


def is_causal(teacher: nn.Module) -> bool:
    """A teacher of transformers that generates by itself, and is no encoder with a decoder.

    A decoder with an encoder before it shifts its inputs, not its labels.
    """
    generates: Any = getattr(teacher, "can_generate", None)
    config = getattr(teacher, "config", None)
    return callable(generates) and bool(generates()) and not getattr(config, "is_encoder_decoder", False)


def _mask(found: Tensor | None, where: str) -> Tensor | None:
    if found is None:
        return None
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ShapeError(
            f"it is {shape}", expected="a tensor [examples, positions]", where=where, remedy=REMEDY
        )
    return found.bool()
