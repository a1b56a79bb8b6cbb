"""Which widths a target rewards: measured, not guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prunekit.graph import Groups
from prunekit.graph.operations import Operations
from prunekit.measure.operation import Operation
from prunekit.plan.levers import Lever
from prunekit.plan.select import keep_mask
from prunekit.targeting.operator_times import OperatorTimes, Progress
from prunekit.targeting.rig import Rig
from prunekit.targeting.space import Space
from prunekit.types import Scores

FINER = 3
"""Widths that are timed for each one that is offered."""

ALIKE = 0.01
"""Times that differ by less than this share of the whole group's are taken as equal."""


def rewarded_widths(
    groups: Groups,
    space: Space,
    scores: Scores,
    rig: Rig,
    times: OperatorTimes,
    *,
    progress: Progress | None = None,
) -> dict[str, tuple[int, ...]]:
    """Time the operators of each group at many widths, the others whole, and take the widths that pay.

    Time falls with the width in stairs, as wide as the registers and kernels of the runtime make them. Near
    each of ``most_levels`` evenly spread widths the one is taken whose time lies farthest below the straight
    line between the narrowest and the whole group; of about equal ones the widest. The narrowest is always
    offered.

    Args:
        groups: all groups of the model.
        space: which of them may be pruned, how far and at how many widths; a ``round_to`` leaves less to
            find out.
        scores: by group name ``[units]``.
        rig: where operations are timed.
        times: of this rig's target.
        progress: called with (operations done, of how many).

    Returns:
        By group name the units to keep, falling, for :meth:`prunekit.targeting.Space.levers`.

    Source: that libraries reward some numbers of channels and punish others: Radu et al., 2019, Performance
    Aware Convolutional Neural Network Channel Pruning for Embedded GPUs, https://arxiv.org/abs/2002.08697.
    How the widths are picked is ours.
    """
    most = space.most_levels
    fine = replace(space, most_levels=FINER * (most - 1) + 1).levers(space.select(groups), scores)
    operations = Operations(groups)
    widths = [lever for lever in fine if lever.unit is None]
    along = {lever.name: _along(lever, operations, groups, rig.batch) for lever in widths}
    times.measure(rig, [each for lists in along.values() for each in lists], progress=progress)
    found = {}
    for lever in widths:
        ms = np.sum([[times.net_ms(one) for one in each] for each in along[lever.name]], axis=0)
        kept = lever.kept if not along[lever.name] else lever.kept[_best(lever.kept, ms, most)]
        found[lever.name] = tuple((kept * lever.group.blocks).tolist())
    return found


def _along(lever: Lever, operations: Operations, groups: Groups, batch: int | None) -> list[list[Operation]]:
    """For each timed operator of a group the operations at the lever's widths."""
    name = lever.group.name
    masks = [groups.tied({name: keep_mask(lever.order, int(kept))}) for kept in lever.kept]
    found = [
        [operations.operation(placed, mask, batch) for mask in masks]
        for placed in operations.placed
        if name in placed.groups
    ]
    return [each for each in found if each[0].is_timed]


def _best(kept: np.ndarray, ms: np.ndarray, most: int) -> list[int]:
    """The places of the widths to offer: the whole group, the narrowest, and the best near each between."""
    if len(kept) <= most:
        return list(range(len(kept)))
    last = len(kept) - 1
    if most == 2:
        return [0, last]
    share = (kept - kept[-1]) / (kept[0] - kept[-1])
    below = ms[-1] + share * (ms[0] - ms[-1]) - ms
    bins: Sequence[np.ndarray] = np.array_split(np.arange(1, last), most - 2)
    # argmax finds the first, which is the widest, of those that noise does not tell apart
    best = [places[np.argmax(below[places] >= below[places].max() - ALIKE * ms[0])] for places in bins]
    return [0, *map(int, best), last]
