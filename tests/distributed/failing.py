"""Processes of which one goes wrong; each gives what it was told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from tests.distributed.gathering import batch, groups, loss, net, sharded_net

import prunekit as pk
from prunekit.errors import PrunekitError
from prunekit.plan import Goal, allocate
from prunekit.ranks import ALONE, Ranks

LAST = 1


def told(call: Callable[[], Any]) -> dict[str, Any]:
    """The error that a call ends with, and after how long."""
    started = time.monotonic()
    try:
        call()
    except PrunekitError as error:
        return {"error": type(error).__name__, "text": str(error), "s": time.monotonic() - started}
    return {"error": "", "text": "", "s": time.monotonic() - started}


def mistakes(ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Everything here goes wrong on the last process alone, or differs there."""
    is_last = ranks.rank == LAST
    model, batches = net(), [batch(0), batch(1)]

    def collect(batches, need="readings", each=loss, on=model, ranks=ranks):
        return lambda: pk.collect(on, batches, groups=groups().select(), needs={need}, loss=each, ranks=ranks)

    broken = batch(1)
    broken.args[0][0] = torch.nan

    def bad_loss(outputs, batch):
        if is_last:
            raise ValueError("the user's own")
        return loss(outputs, batch)

    def plan(criterion):
        widths = groups().select(granularity="neuron")
        return allocate(
            widths,
            pk.score(model, widths, criterion, seed=1),
            Goal("sparsity", remove=0.5),
            criterion=criterion,
        )

    def other_weights():
        twin = net()
        with torch.no_grad():
            twin.blocks[0].up.weight += is_last
        pk.remove(twin, plan("random"), groups(), ranks=ranks)

    parts = sharded_net()
    deeper = pk.Batch(args=(torch.zeros(3, 2, 6),))
    return {
        "parts, nan": told(collect([batches[0], broken] if is_last else batches, on=parts)),
        "parts, gradient": told(collect([batches[0], broken] if is_last else batches, "gradient", on=parts)),
        "parts, user": told(collect(batches, "first_order", bad_loss, on=parts)),
        "parts, shape": told(collect([batches[0], deeper] if is_last else batches, on=parts)),
        "parts, alone": told(collect(batches, on=parts, ranks=ALONE)),
        "parts, other call": told(
            (lambda: ranks.wait("something else")) if is_last else collect(batches, on=parts)
        ),
        "nan": told(collect([batches[0], broken] if is_last else batches)),
        "no batch": told(collect([batches[0], 3] if is_last else batches)),
        "no batches": told(collect([])),
        "arguments": told(collect(batches, need="nonsense" if is_last else "readings")),
        "user": told(collect(batches, "first_order", bad_loss)),
        "other call": told((lambda: ranks.wait("something else")) if is_last else collect(batches)),
        "plans": told(lambda: pk.remove(model, plan("l1" if is_last else "l2"), groups(), ranks=ranks)),
        "weights": told(other_weights),
        "right": told(lambda: pk.remove(model, plan("random"), groups(), ranks=ranks)),
    }


def dies(ranks: Ranks) -> dict[str, Any]:
    """The last process ends in the middle of it."""
    model = net()

    def give():
        yield batch(0)
        if ranks.rank == LAST:
            os._exit(9)

    return told(lambda: pk.collect(model, give(), groups=groups().select(), needs={"readings"}, ranks=ranks))


def hangs(ranks: Ranks) -> dict[str, Any]:
    """The last process does something else for longer than the others wait."""
    if ranks.rank == LAST:
        time.sleep(6)
        return {}
    return told(
        lambda: pk.collect(net(), [batch(0)], groups=groups().select(), needs={"readings"}, ranks=ranks)
    )
