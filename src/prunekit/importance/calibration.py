"""One calibration pass that gathers what the criteria need."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError, SelectionError
from prunekit.importance.gather import gather
from prunekit.importance.gradient import FIRST_ORDER, first_order_change
from prunekit.importance.untouched import untouched
from prunekit.importance.view import ROLES, Statistics, check_roles, scored_slices
from prunekit.types import Group, Slice

NEEDS = frozenset({FIRST_ORDER})
"""Every statistic that :func:`collect` can gather."""


class ModelInputs(Protocol):
    """What calibration asks of a batch: how to call the model on it."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of the model."""
        ...

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """Keyword arguments of the model."""
        ...


def collect(
    model: nn.Module,
    batches: Iterable[ModelInputs],
    *,
    groups: Iterable[Group],
    needs: Collection[str],
    loss: Callable[[Any, Any], Tensor] | None = None,
    roles: Collection[str] = ROLES,
) -> Statistics:
    """Gather, in one pass of forward and backward, what the criteria need.

    The model runs in evaluation mode and is left as found: weights, gradients, ``requires_grad``, training
    modes, buffers, hooks and random state. Frozen parameters are differentiated all the same; those the loss
    does not depend on count as zero. Memory: one float64 per unit beside the gradients. How the data is cut
    into batches matters where the formula says so (:func:`prunekit.importance.gradient.score_taylor`).

    Args:
        model: the model the groups were found on.
        batches: calibration data, on the model's device; never test data.
        groups: the groups that will be scored.
        needs: the ``needs`` of the criteria, a subset of :data:`NEEDS`; empty gathers and runs nothing.
        loss: ``loss(outputs, batch)``, the mean loss of a batch as a scalar tensor.
        roles: the roles of the slices that take part; give :func:`score` the same.

    Raises:
        CalibrationError: no batches, or something else than batches; no loss, or none that is finite, scalar
            and differentiable; a gradient with NaN or infinity.
        SelectionError: an unknown need or role.
        ShapeError: the groups were found on another model.
    """
    if unknown := set(needs) - NEEDS:
        raise SelectionError(f"There is no statistic {sorted(unknown)}", expected=f"some of {sorted(NEEDS)}")
    taking_part = check_roles(roles)
    if not needs:
        return Statistics(values={}, roles=taking_part, batches=0, loss=math.nan)
    check_batches(batches)
    if not callable(loss):
        given = "none was given" if loss is None else f"a {type(loss).__name__} was given"
        raise CalibrationError(
            f"The statistics {sorted(needs)} need a loss and {given}",
            expected="loss(outputs, batch) that returns the mean loss of the batch",
            where="loss",
        )
    uses, totals = _uses(model, groups, taking_part)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    differentiated = {name: parameters[name] for name in uses}
    losses: list[float] = []
    with untouched(model, differentiated.values()):
        for number, batch in enumerate(batches):
            _check_batch(batch, number)
            value = _loss_of(model, batch, loss, number)
            losses.append(float(value.detach()))
            for name, change in _changes(value, differentiated, uses, number).items():
                totals[name] = totals[name] + change.abs()
    if not losses:
        raise CalibrationError(
            "There are no calibration batches",
            where="batches",
            remedy="Give at least one batch; an iterator that was used before is empty",
        )
    means = {name: (total / len(losses)).numpy() for name, total in totals.items()}
    return Statistics({FIRST_ORDER: means}, taking_part, len(losses), float(np.mean(losses)))


def check_batches(batches: object) -> None:
    """Refuse what cannot be a series of batches, before anything is run.

    Raises:
        CalibrationError: it cannot be iterated over, or is a single tensor.
    """
    steps = hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
    if not steps or isinstance(batches, Tensor | str | Mapping):
        raise CalibrationError(
            f"The calibration data are a {type(batches).__name__}",
            expected="an iterable of batches",
            where="calibration",
            remedy=_AS_BATCH,
        )


_AS_BATCH = "Wrap the inputs and put the batches in a list: [Batch(args=(x,), target=y)]"


def _check_batch(batch: object, number: int) -> None:
    args, kwargs = getattr(batch, "args", None), getattr(batch, "kwargs", None)
    if not isinstance(args, Sequence) or not isinstance(kwargs, Mapping):
        raise CalibrationError(
            f"It is a {type(batch).__name__}",
            expected="a batch with args, a tuple, and kwargs, a mapping",
            where=f"calibration batch {number}",
            remedy=_AS_BATCH,
        )


def _uses(
    model: nn.Module, groups: Iterable[Group], roles: Collection[str]
) -> tuple[dict[str, list[tuple[Group, Slice]]], dict[str, Tensor]]:
    """Which slices use each parameter, and a zero per unit of each group."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    uses: dict[str, list[tuple[Group, Slice]]] = {}
    zeros: dict[str, Tensor] = {}
    for group in groups:
        for part in scored_slices(group, parameters, buffers, roles):
            uses.setdefault(part.tensor, []).append((group, part))
        zeros[group.name] = torch.zeros(group.size, dtype=torch.float64)
    return uses, zeros


def _loss_of(model: nn.Module, batch: ModelInputs, loss: Callable[[Any, Any], Tensor], number: int) -> Tensor:
    value = loss(model(*batch.args, **batch.kwargs), batch)
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


def _changes(
    value: Tensor,
    parameters: Mapping[str, Tensor],
    uses: Mapping[str, list[tuple[Group, Slice]]],
    number: int,
) -> dict[str, Tensor]:
    """First-order change of one batch's loss by group name, ``[units]`` float64 on the CPU, signed."""
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise CalibrationError(
            "It does not depend on any parameter of the groups", where=f"loss of calibration batch {number}"
        )
    changes: dict[str, Tensor] = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is not None and not torch.isfinite(gradient).all():
            raise CalibrationError(
                f"The gradient of the parameter '{name}' holds NaN or infinity",
                where=f"calibration batch {number}",
                remedy="Look for a division by zero or an overflow in the model, or calibrate in float32",
            )
        for group, part in uses[name]:
            change = torch.zeros(group.size, dtype=torch.float64)
            if gradient is not None:
                weight = gather(parameter.detach(), part, group).double()
                change = first_order_change(weight, gather(gradient, part, group).double()).cpu()
            changes[group.name] = changes.get(group.name, 0.0) + change
    return changes
