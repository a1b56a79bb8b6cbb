"""One calibration pass that gathers what the criteria need."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError, SelectionError
from prunekit.graph import Groups
from prunekit.importance.batches import ModelInputs, check_batches, checked_batches
from prunekit.importance.criteria import CRITERIA, Criterion
from prunekit.importance.derivatives import Derivatives
from prunekit.importance.experts import EXPERT_OUTPUT
from prunekit.importance.gradient import OF_THE_LOSS
from prunekit.importance.layers import BYPASS_LOSS, LAYER_GATE, OF_LAYERS
from prunekit.importance.lending import Lending, lending_of
from prunekit.importance.observe import Observer, check_traced
from prunekit.importance.output_variance import OUTPUT_VARIANCE
from prunekit.importance.replay import Ledger
from prunekit.importance.untouched import untouched
from prunekit.importance.view import ELSEWHERE, READINGS, ROLES, Role, Statistics, check_roles
from prunekit.ranks import ALONE, Ranks
from prunekit.types import Group

OF_ACTIVATIONS = frozenset({READINGS, EXPERT_OUTPUT, *OF_LAYERS})
"""The statistics that need the traced graph."""

NEEDS = frozenset({*OF_THE_LOSS, OUTPUT_VARIANCE, *OF_ACTIVATIONS})
"""Every statistic that :func:`collect` can gather."""


CALIBRATED: dict[str, Criterion] = {name: row for name, row in CRITERIA.items() if row.needs <= NEEDS}
"""The criteria that need no more than calibration, no training."""


def collect(
    model: nn.Module,
    calibration: Iterable[ModelInputs],
    *,
    groups: Iterable[Group],
    needs: Collection[str],
    loss: Callable[[Any, Any], Tensor] | None = None,
    roles: Collection[str] = ROLES,
    memory_bytes: int | None = None,
    ranks: Ranks = ALONE,
) -> Statistics:
    """Gather, in one pass over the data, what the criteria need: the union of the ``needs`` of all of them.

    The model runs in evaluation mode and is left as found: weights, gradients, ``requires_grad``, training
    modes, buffers, hooks and random state. Frozen parameters are differentiated all the same; those the loss
    does not depend on count as zero. How the data is cut into batches matters where the formula says so
    (:func:`prunekit.importance.gradient.score_taylor`).

    Activations are observed in the traced graph, run with the model's own weights of now, so that functional
    code, unwrapped parameters and fused projections are seen like any module. Inputs of another shape than
    the example's are traced again, once per shape.

    Memory beside the model, the data and the results: with ``memory_bytes`` set, batches are cut into pieces
    for statistics of activations alone, as large as fit; statistics of gradients need a batch's loss whole,
    and a batch that passes the limit is refused. Counted are the activations alive between two operators,
    what autograd saves, the gradients and the sums; not what an operator allocates and frees while it runs.
    A model larger than memory is streamed by the operating system, layer by layer, where its checkpoint is
    mapped: ``model.load_state_dict(torch.load(path, mmap=True), assign=True)`` on a model made on the meta
    device. Its weights are read as the graph reaches them and are never copied.

    With several processes, each gives batches of its own (or none, where others have some) and all get the
    same statistics, bit by bit: sums in float64 are added from rank 0 upwards. They are those of one process
    that sees the batches of rank 0, then those of rank 1, and so on, but for the rounding of the sums; counts
    and the mean loss are exactly those, and everything is where no process has more than one batch. An error
    of one process is raised on all of them.

    A model that FSDP2 shards stays sharded: its graph, which may have been traced on the meta device, runs on
    whole parameters that all processes lend, each from the first operator that reads it to the last (an
    embedding that is tied to the head: nearly the whole forward pass), and each parameter's gradient is held
    alone. Batches then have the shape of the example, but for the number of examples.

    Args:
        model: the model the groups were found on.
        calibration: batches, on the model's device; never test data.
        groups: the groups that will be scored; for statistics of activations a
            :class:`prunekit.graph.Groups`, which knows its graph.
        needs: a subset of :data:`NEEDS`; empty gathers and runs nothing.
        loss: ``loss(outputs, batch)``, the mean loss of a batch as a scalar tensor.
        roles: the roles of the slices that take part; give :func:`score` the same.
        memory_bytes: the most that calibration may hold, or None.
        ranks: the processes whose batches count, such as ``all_ranks()``; all of them call this. Default:
            this process alone.

    Raises:
        CalibrationError: no batches, or something else than batches; no loss, or none that is finite, scalar
            and differentiable; a gradient or an activation with NaN or infinity; what has to be held at
            once does not fit into ``memory_bytes``.
        SelectionError: an unknown need or role, groups without their graph, a limit that is none.
        ShapeError: the groups were found on another model.
        RankError: another process stopped, is lost or does something else.
    """
    with ranks.together("collect"):
        return _collect(model, calibration, groups, needs, loss, roles, memory_bytes, ranks)


def _collect(
    model: nn.Module,
    calibration: Iterable[ModelInputs],
    groups: Iterable[Group],
    needs: Collection[str],
    loss: Callable[[Any, Any], Tensor] | None,
    roles: Collection[str],
    memory_bytes: int | None,
    ranks: Ranks,
) -> Statistics:
    """:func:`collect` on this process."""
    taking_part = _checked(needs, roles, memory_bytes)
    if not needs:
        return Statistics(values={}, roles=taking_part, batches=0, loss=math.nan)
    check_batches(calibration)
    if set(needs) & {*OF_THE_LOSS, LAYER_GATE, BYPASS_LOSS}:
        _check_loss(loss, needs)
    with torch.inference_mode(False):  # sums made in that mode could not be added to later
        return _gather(model, calibration, groups, needs, loss, taking_part, memory_bytes, ranks)


def _gather(
    model: nn.Module,
    calibration: Iterable[ModelInputs],
    groups: Iterable[Group],
    needs: Collection[str],
    loss: Callable[[Any, Any], Tensor] | None,
    roles: tuple[Role, ...],
    memory_bytes: int | None,
    ranks: Ranks,
) -> Statistics:
    """The pass itself, once everything is checked."""
    lending = lending_of(model, ranks)
    traced = _traced(groups, needs, lending)
    groups = tuple(groups)
    differentiated = set(needs) - OF_ACTIVATIONS or LAYER_GATE in needs
    derivatives = Derivatives(model, groups, needs, roles, lending) if differentiated else None
    ledger = Ledger(memory_bytes, (*model.parameters(), *model.buffers()))
    observer = None if traced is None else Observer(model, traced, needs, ledger, lending)
    seen = 0
    with untouched(model, () if derivatives is None else derivatives.parameters.values()):
        for number, batch in checked_batches(calibration, ranks, None if lending is None else lending.serve):
            ledger.ignore((batch.args, batch.kwargs))
            if derivatives is not None:
                _differentiate(model, observer, derivatives, ledger, batch, loss, number, lending)
            elif observer is not None:
                observer.look(tuple(batch.args), batch.kwargs)
            if observer is not None:
                observer.finish_batch(batch, loss, number)
            seen += 1
    pooled = ranks.gather([seen, ledger.peak], "what calibration saw")
    for each in (derivatives, observer):
        if each is not None:
            each.pool(ranks)
    values: dict[str, Any] = {} if derivatives is None else derivatives.finish()
    if observer is not None and EXPERT_OUTPUT in needs:
        values[EXPERT_OUTPUT] = observer.expert_outputs()
    if observer is not None:
        values |= observer.layers.finish()
    losses = [] if derivatives is None else derivatives.losses
    return Statistics(
        values,
        roles,
        sum(batches for batches, _ in pooled),
        float(np.mean(losses)) if losses else math.nan,
        observer.readings() if observer is not None and READINGS in needs else {},
        max(peak for _, peak in pooled),
    )


def _differentiate(
    model: nn.Module,
    observer: Observer | None,
    derivatives: Derivatives,
    ledger: Ledger,
    batch: ModelInputs,
    loss: Callable[[Any, Any], Tensor] | None,
    number: int,
    lending: Lending | None,
) -> None:
    """One forward and backward pass over a whole batch."""
    ledger.start(derivatives.state_bytes + (0 if observer is None else observer.state_bytes))
    with ExitStack() as saving:
        if lending is not None:
            saving.enter_context(lending.saving(ledger.save))
        elif ledger.limit is not None:
            saving.enter_context(ledger.saving())
        if observer is None:
            outputs = model(*batch.args, **batch.kwargs)
        else:
            outputs = observer.forward(tuple(batch.args), batch.kwargs)
        derivatives.update(outputs, batch, loss, number)


def _checked(needs: Collection[str], roles: Collection[str], memory_bytes: object) -> tuple[Role, ...]:
    for need in sorted(set(needs) & ELSEWHERE.keys()):
        raise SelectionError(f"Calibration does not gather '{need}'", where="needs", remedy=ELSEWHERE[need])
    if unknown := set(needs) - NEEDS:
        raise SelectionError(f"There is no statistic {sorted(unknown)}", expected=f"some of {sorted(NEEDS)}")
    whole = isinstance(memory_bytes, int) and not isinstance(memory_bytes, bool) and memory_bytes > 0
    if memory_bytes is not None and not whole:
        raise SelectionError(
            f"The limit is {memory_bytes!r}", expected="a whole number of bytes above 0", where="memory_bytes"
        )
    return check_roles(roles)


def _traced(groups: object, needs: Collection[str], lending: Lending | None) -> Groups | None:
    """The groups with their graph, where it is what runs."""
    if lending is not None:
        return check_traced(groups, "A sharded model runs as its traced graph")
    if set(needs) & OF_ACTIVATIONS:
        return check_traced(groups, f"The statistics {sorted(needs)} look at activations")
    return None


def _check_loss(loss: object, needs: Collection[str]) -> None:
    if callable(loss):
        return
    given = "none was given" if loss is None else f"a {type(loss).__name__} was given"
    raise CalibrationError(
        f"The statistics {sorted(needs)} need a loss and {given}",
        expected="loss(outputs, batch) that returns the mean loss of the batch",
        where="loss",
    )
