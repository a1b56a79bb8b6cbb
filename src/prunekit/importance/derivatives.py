"""What calibration gathers from gradients: of the loss, and of the variance of the model's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.errors import CalibrationError
from prunekit.importance.gather import gather_present, has_unit
from prunekit.importance.gradient import (
    FIRST_ORDER,
    FISHER,
    GATE,
    GRADIENT,
    OF_THE_LOSS,
    SENSITIVITY,
    first_order_change,
)
from prunekit.importance.layers import LAYER_GATE
from prunekit.importance.output_variance import OUTPUT_VARIANCE
from prunekit.importance.view import Role, has_magnitude, scored_slices
from prunekit.ranks import Ranks
from prunekit.types import Group, Slice

Values = dict[str, npt.NDArray[np.float64]]
Loss = Callable[[Any, Any], Tensor]

_ROW: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    GRADIENT: lambda weight, gradient: gradient.abs().sum(dim=1),
    SENSITIVITY: lambda weight, gradient: (weight * gradient).abs().sum(dim=1),
    FISHER: lambda weight, gradient: (weight * gradient).square().sum(dim=1),
}
"""What one batch adds to the row of a slice, from ``[units, k]`` weights and gradients."""


class Derivatives:
    """Gathers everything that is computed from gradients, batch by batch.

    Memory: one float64 per unit, or per slice and unit, beside the gradients of one batch.

    Args:
        model: the model; only read.
        groups: the groups that will be scored.
        needs: the statistics, among :data:`OF_THE_LOSS` and the variance of the output; for the gates of
            layers the loss is differentiated, and those who watch see its gradients.
        roles: the roles of the slices that take part.

    Raises:
        SelectionError: a group without a float parameter in these roles.
        ShapeError: the groups were found on another model.
    """

    def __init__(
        self, model: nn.Module, groups: Iterable[Group], needs: Collection[str], roles: tuple[Role, ...]
    ) -> None:
        self.losses: list[float] = []
        self._batches = 0
        self._variance = self._rounding = 0.0
        self._needs = [need for need in (*OF_THE_LOSS, OUTPUT_VARIANCE) if need in needs]
        self._loss = bool(self.of_the_loss) or LAYER_GATE in needs
        self._groups = tuple(groups)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        self._parts = {g.name: scored_slices(g, parameters, buffers, roles) for g in self._groups}
        self._gates = {g.name: _consumers(g, parameters) for g in self._groups}
        used = {part.tensor: None for parts in self._parts.values() for part in parts}
        if GATE in needs or OUTPUT_VARIANCE in needs:
            used |= {part.tensor: None for parts in self._gates.values() for part in parts}
        self.parameters: dict[str, nn.Parameter] = {name: parameters[name] for name in used}
        self._sums: dict[str, dict[str, Tensor]] = {
            need: {g.name: torch.zeros(self._shape(need, g), dtype=torch.float64) for g in self._groups}
            for need in self._needs
        }

    @property
    def of_the_loss(self) -> list[str]:
        """The statistics among its own that need a loss."""
        return [need for need in self._needs if need in OF_THE_LOSS]

    @property
    def state_bytes(self) -> int:
        """Bytes of the sums, and of one gradient per parameter that takes part."""
        sums = sum(8 * total.numel() for named in self._sums.values() for total in named.values())
        return sums + sum(p.numel() * p.element_size() for p in self.parameters.values())

    def _shape(self, need: str, group: Group) -> tuple[int, ...]:
        return (len(self._parts[group.name]), group.size) if need in _ROW else (group.size,)

    def update(self, outputs: Any, batch: Any, loss: Loss | None, number: int) -> None:
        """Take in one batch.

        Raises:
            CalibrationError: the loss or the output cannot be used, or a gradient holds NaN or infinity.
        """
        self._batches += 1
        both = OUTPUT_VARIANCE in self._needs and self._loss
        if self._loss:
            assert loss is not None
            value = checked_loss(loss(outputs, batch), number)
            self.losses.append(float(value.detach()))
            gradients = self._gradients(value, f"loss of calibration batch {number}", number, keep=both)
            for need in self.of_the_loss:
                for group in self._groups:
                    self._sums[need][group.name] += self._of_batch(need, group, gradients)
        if OUTPUT_VARIANCE in self._needs:
            spread, rounding = _spread(outputs, number)
            self._variance += float(spread.detach())
            self._rounding += rounding
            gradients = self._gradients(spread, f"variance of calibration batch {number}", number, keep=False)
            for group in self._groups:
                gate = self._change(self._gates[group.name], group, gradients)
                self._sums[OUTPUT_VARIANCE][group.name] += gate / 2

    def pool(self, ranks: Ranks) -> None:
        """Add what the other processes took in, from rank 0 upwards."""
        figures = (self.losses, self._batches, self._variance, self._rounding)
        found = ranks.gather(figures, "losses of calibration")
        self.losses = [value for losses, *_ in found for value in losses]
        self._batches = sum(batches for _, batches, *_ in found)
        self._variance = sum(variance for _, _, variance, _ in found)
        self._rounding = sum(rounding for *_, rounding in found)
        for need, named in self._sums.items():
            totals = ranks.sum_all(list(named.values()), need)
            self._sums[need] = dict(zip(named, totals, strict=True))

    def finish(self) -> dict[str, Values]:
        """Return the statistics by need and group name.

        Raises:
            CalibrationError: the model's outputs do not vary.
        """
        found: dict[str, Values] = {}
        for need, named in self._sums.items():
            scale = self._batches
            if need == OUTPUT_VARIANCE:
                scale = self._variance
                if scale <= self._rounding:
                    raise CalibrationError(
                        "The model's outputs are the same for all examples",
                        where="calibration",
                        remedy="Calibrate on batches of several different examples",
                    )
            found[need] = {name: (total / scale).numpy() for name, total in named.items()}
            if need in _ROW:
                for group in self._groups:
                    for row, part in enumerate(self._parts[group.name]):
                        found[need][group.name][row, ~has_unit(part, group)] = np.nan
        if OUTPUT_VARIANCE in found:
            found[OUTPUT_VARIANCE] = {n: np.abs(values) for n, values in found[OUTPUT_VARIANCE].items()}
        return found

    def _of_batch(self, need: str, group: Group, gradients: Mapping[str, Tensor | None]) -> Tensor:
        """What one batch adds to a statistic of the loss."""
        if need == FIRST_ORDER:
            return self._change(self._parts[group.name], group, gradients).abs()
        if need == GATE:
            return self._change(self._gates[group.name], group, gradients).abs()
        rows = []
        for part in self._parts[group.name]:
            row = torch.zeros(group.size, dtype=torch.float64)
            if gradients[part.tensor] is not None:
                weight, gradient, present = self._gathered(part, group, gradients)
                row[present] = _ROW[need](weight, gradient).cpu()
            rows.append(row)
        return torch.stack(rows)

    def _change(
        self, parts: tuple[Slice, ...], group: Group, gradients: Mapping[str, Tensor | None]
    ) -> Tensor:
        """First-order change over some slices together, ``[units]`` float64 on the CPU, signed."""
        change = torch.zeros(group.size, dtype=torch.float64)
        for part in parts:
            if gradients[part.tensor] is not None:
                weight, gradient, present = self._gathered(part, group, gradients)
                change[present] += first_order_change(weight, gradient).cpu()
        return change

    def _gathered(
        self, part: Slice, group: Group, gradients: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and gradients, ``[present units, k]`` float64; and ``[units]`` bool, which those are."""
        gradient = gradients[part.tensor]
        assert gradient is not None
        weight, present = gather_present(self.parameters[part.tensor].detach(), part, group)
        rows, _ = gather_present(gradient, part, group)
        return weight.double(), rows.double(), torch.from_numpy(present)

    def _gradients(self, value: Tensor, where: str, number: int, *, keep: bool) -> dict[str, Tensor | None]:
        found = torch.autograd.grad(
            value, list(self.parameters.values()), allow_unused=True, retain_graph=keep
        )
        if all(gradient is None for gradient in found):
            raise CalibrationError("It does not depend on any parameter of the groups", where=where)
        named: dict[str, Tensor | None] = dict(zip(self.parameters, found, strict=True))
        for name, gradient in named.items():
            if gradient is not None and not torch.isfinite(gradient).all():
                raise CalibrationError(
                    f"The gradient of the parameter '{name}' holds NaN or infinity",
                    where=f"calibration batch {number}",
                    remedy="Look for a division by zero or an overflow in the model, or calibrate in float32",
                )
        return named


def _consumers(group: Group, parameters: Mapping[str, Tensor]) -> tuple[Slice, ...]:
    """The slices at which operators with weights read the units."""
    return tuple(
        part
        for part in group.slices
        if part.role == "consumer" and part.tensor in parameters and has_magnitude(parameters[part.tensor])
    )


def checked_loss(value: Any, number: int) -> Tensor:
    """The loss of a batch as a tensor without dimensions.

    Raises:
        CalibrationError: it is no scalar tensor, not finite, or does not depend on a parameter.
    """
    where = f"loss of calibration batch {number}"
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"the type {type(value)}"
        raise CalibrationError(f"It has {shape}", expected="one scalar tensor", where=where)
    if not math.isfinite(float(value.detach())):
        raise CalibrationError(
            f"It is {float(value.detach())}",
            expected="a finite number",
            where=where,
            remedy="Look for NaN in the data or the weights",
        )
    if not value.requires_grad:
        raise CalibrationError(
            "It does not depend on any parameter of the groups",
            expected="a loss computed from the model's outputs",
            where=where,
            remedy="Look for .detach(), .item() or torch.no_grad() in the model or the loss",
        )
    return value.reshape(())


def _spread(outputs: Any, number: int) -> tuple[Tensor, float]:
    """``sum_k sum_n (out[n, k] - mean_n out[n, k]) ** 2`` of the first output with examples.

    With it, how large that may be by rounding alone where all examples have the same output.
    """
    where = f"outputs of calibration batch {number}"
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    usable = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.ndim]
    if not usable:
        raise CalibrationError(
            "None of them is a float tensor with a dimension of examples",
            where=where,
            remedy="Use a criterion that does not look at the output's variance",
        )
    if len(usable[0]) < 2:
        raise CalibrationError(
            "The batch has one example, so nothing varies",
            expected="batches of two or more examples",
            where=where,
        )
    given = usable[0].reshape(len(usable[0]), -1)
    given = given.float() if given.dtype in (torch.float16, torch.bfloat16) else given
    spread = (given - given.mean(dim=0)).square().sum()
    if not torch.isfinite(spread):
        raise CalibrationError(
            "They hold NaN or infinity", where=where, remedy="Look for NaN in the data or the weights"
        )
    if not spread.requires_grad:
        raise CalibrationError(
            "They do not depend on any parameter of the groups",
            where=where,
            remedy="Look for .detach() or torch.no_grad() in the model",
        )
    rounding = (2 * torch.finfo(usable[0].dtype).eps) ** 2 * float(given.detach().square().sum())
    return spread, rounding
