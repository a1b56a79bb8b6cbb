"""Measuring what losing units costs: one lever pulled at a time, the user's own loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunekit.errors import SelectionError
from prunekit.graph import Groups
from prunekit.plan.levers import Lever, Levers
from prunekit.plan.losses import Sensitivities, removed_shares
from prunekit.surgery.narrow import touched, zero
from prunekit.surgery.remove import reduced_graph
from prunekit.surgery.sensitivity import loss_of
from prunekit.surgery.tensors import read
from prunekit.types import KeepMask

Loss = Callable[[nn.Module], float]


def middle_and_last(lever: Lever) -> tuple[int, ...]:
    """The levels of a lever that are measured where nothing else is said: the middle one and the last."""
    last = len(lever) - 1
    return tuple(sorted({(last + 1) // 2, last}))


def measure_unit_sensitivity(
    model: nn.Module,
    levers: Levers,
    groups: Groups,
    loss: Loss,
    *,
    levels: Callable[[Lever], Sequence[int]] = middle_and_last,
    known: Sensitivities | None = None,
    measured: Callable[[str, Mapping[float, float]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[float, float]]:
    """Measure, for each lever alone, by how much the loss grows at some of its levels.

    ``curve[lever][share] = loss(model without these units) - loss(model)``. Where the lever's group is
    mask-equivalent, its slices of the removed units are set to zero in place and put back afterwards, also
    after an error, which costs no copy of the model. Otherwise, and for layers and branches, the pruned graph
    is judged, which shares no tensor with the model; it takes the inputs that the model was traced with.
    ``loss`` decides about modes and gradients, as in :func:`prunekit.surgery.measure_sensitivity`; the graph
    is given in the model's own mode. The loss of the whole model is computed once, and not at all where
    everything is known.

    Args:
        model: the model the groups were found on.
        levers: from :func:`prunekit.plan.levers.find_levers`.
        groups: of the model.
        loss: the loss of a model on data of your choice; never test data. Give the same data every time.
        levels: which levels of a lever are measured, none for a lever that is left out; level 0 is never.
        known: what was measured before on the same model, data and order of units; it is not measured again,
            and is part of the result as far as its shares are asked for.
        measured: called with a lever's name and its curve as soon as that is complete, also where it was
            known: whoever writes it down can go on from there with ``known``.
        progress: called with (levers done, all levers) after each.

    Returns:
        By lever, by the share of its units that go (1 for a layer), the increase of the loss; negative where
        it falls. Levers of which no level is asked for are absent.

    Raises:
        CalibrationError: a loss that raises, or that is not one finite number; it names the lever and the
            level.
        SelectionError: a level that a lever has not.
    """
    chosen = [_levels_of(lever, levels) for lever in levers]
    dense: float | None = None
    curves: dict[str, dict[float, float]] = {}
    for place, (lever, own) in enumerate(zip(levers, chosen, strict=True)):
        curve: dict[float, float] = {}
        before = (known or {}).get(lever.name, {})
        for level, share in own.items():
            if share in before:
                curve[share] = before[share]
                continue
            if dense is None:
                dense = loss_of(loss, model, "the whole model")
            keep = levers.masks([level if other == place else 0 for other in range(len(levers))])
            curve[share] = _loss_without(model, lever, level, keep, groups, loss) - dense
        if own:
            curves[lever.name] = curve
            if measured is not None:
                measured(lever.name, curve)
        if progress is not None:
            progress(place + 1, len(levers))
    return curves


def _levels_of(lever: Lever, levels: Callable[[Lever], Sequence[int]]) -> dict[int, float]:
    """The levels to measure, ascending, each with the share of the lever's units that go."""
    asked = sorted({int(level) for level in levels(lever)} - {0})
    if asked and not 0 < asked[0] <= asked[-1] < len(lever):
        raise SelectionError(
            f"The levels {asked} are to be measured",
            expected=f"levels from 1 to {len(lever) - 1}",
            where=f"lever '{lever.name}'",
        )
    shares = removed_shares(lever)
    return {level: float(shares[level]) for level in asked}


def _loss_without(
    model: nn.Module, lever: Lever, level: int, keep: KeepMask, groups: Groups, loss: Loss
) -> float:
    group, where = lever.group, f"lever '{lever.name}' at level {level}"
    if not group.is_depth and group.mask_equivalent:
        own = {group.name: keep[group.name]}  # What lies inside these units is zero along with them.
        tensors = _writable(model, groups, own)
        if tensors is not None:
            with _zeroed(tensors, groups, own):
                return loss_of(loss, model, where)
    smaller = reduced_graph(model, keep, groups)
    return loss_of(loss, smaller.train(model.training), where)


def _writable(model: nn.Module, groups: Groups, keep: KeepMask) -> dict[str, Tensor] | None:
    """The tensors that lose something, by name; None where zeros cannot be written into all of them.

    A tensor that is computed anew whenever it is read is another one each time, and one whose elements share
    memory cannot be zero in places.
    """
    found: dict[str, Tensor] = {}
    for name in touched(groups, keep):
        tensor = read(model, name)
        if tensor is None or tensor is not read(model, name) or tensor.is_inference():
            return None
        if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
            return None
        found[name] = tensor.detach()
    return found


@contextmanager
def _zeroed(tensors: Mapping[str, Tensor], groups: Groups, keep: KeepMask) -> Iterator[None]:
    """The removed units' slices are zero inside; every bit as before afterwards."""
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(zero(groups, name, tensor, keep))
        yield
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])
