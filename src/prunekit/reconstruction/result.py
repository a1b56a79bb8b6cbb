"""What reconstruction gives: the model, what became of each layer, and what was left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from prunekit.plan import PackedMask


@dataclass(frozen=True)
class LayerChange:
    """One layer whose weights were updated.

    Attributes:
        name: of its weight, as the result has it.
        operator: that reads it, such as ``aten.linear``.
        before: squared difference between the outputs wanted and those without the update, over the squares
            of the outputs wanted, on the calibration inputs; 0 where those are 0.
        after: the same with the update; never more than ``before``, but for the rounding of the new weights
            to the model's dtype.
        damping: that was used, a fraction of the mean of the diagonal of the second moments.
        dampened_more: it is more than was asked for, because they are singular.
        bias: the bias was updated too.
        rows: inputs that were seen: examples times positions.
    """

    name: str
    operator: str
    before: float
    after: float
    damping: float
    dampened_more: bool
    bias: bool
    rows: int


@dataclass(frozen=True)
class LeftAlone:
    """A tensor that lost inputs and was not updated.

    Attributes:
        tensor: its name.
        reason: one sentence.
    """

    tensor: str
    reason: str


@dataclass(frozen=True)
class Reconstruction:
    """A model whose remaining weights were updated.

    Attributes:
        model: a copy; the models given are untouched.
        layers: what was updated, in the order in which the layers run.
        left_alone: what was not, and why.
        masks: by parameter which weights stay, one bit each, where weights were masked.
        peak_bytes: the most that was held between stages: activations of all batches (none when parallel) and
            second moments.
    """

    model: nn.Module
    layers: tuple[LayerChange, ...]
    left_alone: tuple[LeftAlone, ...]
    masks: Mapping[str, PackedMask] = field(default_factory=dict)
    peak_bytes: int = 0

    def __str__(self) -> str:
        """One line for each layer."""
        lines = [
            f"{layer.name}: {layer.before:.3g} -> {layer.after:.3g}"
            + (f" (singular: dampened by {layer.damping:.1g})" if layer.dampened_more else "")
            for layer in self.layers
        ]
        return "\n".join([*lines, *(f"{item.tensor}: left alone, {item.reason}" for item in self.left_alone)])
