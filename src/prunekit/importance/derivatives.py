"""What calibration gathers from gradients: of the loss, and of the variance of the model's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from prunekit.importance.lending import Lending, Taking
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


@dataclass(frozen=True)
class _Use:
    """A slice of a parameter, and the statistics that its gradient has a part in.

    Attributes:
        group: whose slice it is.
        part: the slice.
        place: its number among the slices of the statistic.
        needs: the statistics.
    """

    group: Group
    part: Slice
    place: int
    needs: tuple[str, ...]


class Derivatives:
    """Gathers everything that is computed from gradients, batch by batch.

    Memory: one float64 per unit, or per slice and unit, beside the gradients of one batch.

    Args:
        model: the model; only read.
        groups: the groups that will be scored.
        needs: the statistics, among :data:`OF_THE_LOSS` and the variance of the output; for the gates of
            layers the loss is differentiated, and those who watch see its gradients.
        roles: the roles of the slices that take part.
        lending: of a sharded model, what lends its parameters whole; each one's gradient is then held alone.

    Raises:
        SelectionError: a group without a float parameter in these roles.
        ShapeError: the groups were found on another model.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[Group],
        needs: Collection[str],
        roles: tuple[Role, ...],
        lending: Lending | None = None,
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
        self._uses = self._used()
        self.parameters: dict[str, nn.Parameter] = {name: parameters[name] for name in self._uses}
        self._lending = lending
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
        """Bytes of the sums, and of one gradient per parameter that takes part.

        Of a sharded model, of the largest parameter with its gradient.
        """
        sums = sum(8 * total.numel() for named in self._sums.values() for total in named.values())
        gradients = [p.numel() * p.element_size() for p in self.parameters.values()]
        return sums + (sum(gradients) if self._lending is None else 2 * max(gradients, default=0))

    def _used(self) -> dict[str, list[_Use]]:
        """What is computed from the gradient of each parameter."""
        uses: dict[str, list[_Use]] = {}
        for group in self._groups:
            for parts, needs in (
                (self._parts[group.name], (*_ROW, FIRST_ORDER)),
                (self._gates[group.name], (GATE, OUTPUT_VARIANCE)),
            ):
                wanted = tuple(need for need in needs if need in self._needs)
                for place, part in enumerate(parts):
                    if wanted or parts is self._parts[group.name]:
                        uses.setdefault(part.tensor, []).append(_Use(group, part, place, wanted))
        return uses

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
            changes = self._changes(
                value, self.of_the_loss, f"loss of calibration batch {number}", number, both
            )
            for need in self.of_the_loss:
                for group in self._groups:
                    rows = changes[need, group.name]
                    added = torch.stack(rows) if need in _ROW else _summed(rows, group).abs()
                    self._sums[need][group.name] += added
        if OUTPUT_VARIANCE in self._needs:
            spread, rounding = _spread(outputs, number)
            self._variance += float(spread.detach())
            self._rounding += rounding
            where = f"variance of calibration batch {number}"
            changes = self._changes(spread, [OUTPUT_VARIANCE], where, number, False)
            for group in self._groups:
                rows = changes[OUTPUT_VARIANCE, group.name]
                self._sums[OUTPUT_VARIANCE][group.name] += _summed(rows, group) / 2

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

    def _changes(
        self, value: Tensor, needs: Sequence[str], where: str, number: int, keep: bool
    ) -> dict[tuple[str, str], list[Tensor]]:
        """What a value's gradients say: by need and group ``[units]`` float64 for each slice, on the CPU."""
        changes = {
            (need, group.name): [
                torch.zeros(group.size, dtype=torch.float64)
                for _ in (self._parts if need in (*_ROW, FIRST_ORDER) else self._gates)[group.name]
            ]
            for need in needs
            for group in self._groups
        }
        taken: list[str] = []

        def take(name: str, gradient: Tensor) -> None:
            taken.append(name)
            _check_finite(gradient, name, number)
            self._take(name, gradient, changes)

        self._differentiate(value, take, keep)
        if not taken:
            raise CalibrationError("It does not depend on any parameter of the groups", where=where)
        return changes

    def _differentiate(self, value: Tensor, take: Taking, keep: bool) -> None:
        """Call ``take`` with each parameter that the value depends on."""
        if self._lending is not None:
            self._lending.differentiate(value, take, among=self.parameters, keep=keep)
            return
        found = torch.autograd.grad(
            value, list(self.parameters.values()), allow_unused=True, retain_graph=keep
        )
        for name, gradient in zip(self.parameters, found, strict=True):
            if gradient is not None:
                take(name, gradient)

    def _take(self, name: str, gradient: Tensor, changes: dict[tuple[str, str], list[Tensor]]) -> None:
        """Fill in what follows from the gradient of one parameter."""
        parameter = self.parameters[name].detach()
        whole = parameter if self._lending is None else self._lending.put_together(name)
        for use in self._uses[name]:
            needs = [need for need in use.needs if (need, use.group.name) in changes]
            if not needs:
                continue
            weight, present = gather_present(whole, use.part, use.group)
            rows, _ = gather_present(gradient, use.part, use.group)
            weight, rows, units = weight.double(), rows.double(), torch.from_numpy(present)
            for need in needs:
                found = _ROW.get(need, first_order_change)(weight, rows)
                changes[need, use.group.name][use.place][units] = found.cpu()


def _summed(rows: Sequence[Tensor], group: Group) -> Tensor:
    """The change over some slices together, ``[units]`` float64, signed."""
    return sum(rows, torch.zeros(group.size, dtype=torch.float64))


def _check_finite(gradient: Tensor, name: str, number: int) -> None:
    if not torch.isfinite(gradient).all():
        raise CalibrationError(
            f"The gradient of the parameter '{name}' holds NaN or infinity",
            where=f"calibration batch {number}",
            remedy="Look for a division by zero or an overflow in the model, or calibrate in float32",
        )


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
