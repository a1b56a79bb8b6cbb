"""What reconstruction gives: the model, what became of each layer, and what was left alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from prunekit.plan import MaskPlan


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
        dampened_more: it is more than was asked for and than few rows need, because they are singular.
        bias: the bias was updated too, or the running mean of the batch norm behind.
        rows: inputs that were seen: examples times positions.
        inputs: numbers in each of them. With fewer rows than that the calibration data is fitted exactly, and
            ``after`` says nothing about other data.
    """

    name: str
    operator: str
    before: float
    after: float
    damping: float
    dampened_more: bool
    bias: bool
    rows: int
    inputs: int

    def __str__(self) -> str:
        """One line."""
        text = f"{self.name}: {self.before:.3g} -> {self.after:.3g}"
        if self.dampened_more:
            text += f" (singular: dampened by {self.damping:.1g})"
        if self.rows < self.inputs:
            text += f" (only {self.rows} rows for {self.inputs} inputs: other data may fare worse)"
        return text


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
        plan: which weights stay, where weights were masked; it can be saved, and attached to another copy.
        peak_bytes: the most that was held between stages: activations of all batches (none when parallel) and
            second moments.
    """

    model: nn.Module
    layers: tuple[LayerChange, ...]
    left_alone: tuple[LeftAlone, ...]
    plan: MaskPlan | None = None
    peak_bytes: int = 0

    def __str__(self) -> str:
        """One line for each layer."""
        alone = (f"{item.tensor}: left alone, {item.reason}" for item in self.left_alone)
        return "\n".join([*map(str, self.layers), *alone])
