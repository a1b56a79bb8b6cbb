"""What is proved of a removal from a model that no single process holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.graph import Groups
from prunekit.plan import PruningPlan
from prunekit.ranks import Ranks, like, own_part, resharded, whole
from prunekit.surgery.compare import max_relative_error, outputs
from prunekit.surgery.laws import LawResult, block_permutation
from prunekit.surgery.narrow import permute_units, touched, zero
from prunekit.surgery.proof import Proof
from prunekit.surgery.remove import Removal, check_fits, without_gone_groups
from prunekit.surgery.tensors import read

COARSEST = 0.05
"""Relative: no tolerance is above this, however coarse the model's dtype."""


def verify_sharded(
    model: nn.Module,
    removal: Removal,
    plan: PruningPlan,
    groups: Groups,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    ranks: Ranks,
) -> Proof:
    """Check what can be checked where a model lies in parts, on inputs of each process, in the model's dtype.

    1. Permutation law: permuting the units of all pruned groups in the dense model changes no output. It
       proves the coupling of the groups with the weights that the model has.
    2. Mask law: the smaller model gives what the dense one gives with the removed units at zero. Only where
       all pruned groups are mask-equivalent and no layer goes.
    3. Form law: the smaller class runs the operators of the pruned graph, decided by
       :func:`prunekit.surgery.remove_sharded` without values.

    Less than :func:`prunekit.surgery.verify`: weights are not redrawn and nothing is raised to float64, so
    that a coupling behind a weight of zero is not seen, and a dtype of few digits shows only gross errors.
    The dense model is changed meanwhile and put back, bit by bit. Memory on each process: a second copy of
    its part of what loses units, and one whole parameter at a time.

    Args:
        model: the dense model, sharded or not.
        removal: from ``remove_sharded``.
        plan: that was carried out.
        groups: that it was made on.
        args: positional inputs with values, those of this process.
        kwargs: inputs by keyword.
        seed: of the permutations; the same on all processes.
        ranks: the processes that hold the models; all of them call this.

    Raises:
        PlanError: plan, groups and model do not belong together.
        RankError: another process stopped or is lost.
    """
    given = dict(kwargs or {})

    def run(each: nn.Module) -> list[Tensor]:
        found = outputs(each, args, given, released=groups.graph.released_paths)
        resharded(each)
        return found

    with ranks.together("verify_sharded"):
        resharded(model)
        check_fits(model, plan, groups)
        ranks.check_same(seed, "the seed")
        keep = without_gone_groups(plan.keep_mask(), groups)
        widths = {name: mask for name, mask in keep.items() if not groups.whole(name).is_depth}
        tolerance = _tolerance(model)
        size = next((len(each) for each in args if isinstance(each, Tensor) and each.ndim), 1)
        laws = []
        with _permuted(model, groups, list(widths), seed):
            permuted = run(model)
        error = max_relative_error(run(model), permuted)
        laws.append(_result("permutation", widths, error, tolerance, size, ranks))
        reason = _why_no_mask(groups, keep)
        if reason:
            laws.append(LawResult("mask", (), 0.0, tolerance, (), passed=True, note=reason))
        else:
            with _changed(
                model, touched(groups, widths), lambda name, each: zero(groups, name, each, widths)
            ):
                masked = run(model)
            error = max_relative_error(masked, run(removal.model))
            laws.append(_result("mask", widths, error, tolerance, size, ranks))
        laws.append(LawResult("form", tuple(keep), 0.0, 0.0, (), passed=True, note=removal.reason))
    return Proof(tuple(laws))


def _result(
    law: str, names: Iterable[str], error: float, tolerance: float, size: int, ranks: Ranks
) -> LawResult:
    """The worst of all processes."""
    worst = max(float(each) for each in ranks.gather(str(error), f"{law} law"))
    return LawResult(law, tuple(names), worst, tolerance, (size,), worst <= tolerance)


def _tolerance(model: nn.Module) -> float:
    """What the order of sums may change: 512 times the spacing of the coarsest dtype."""
    floating = [each.dtype for each in model.parameters() if each.is_floating_point()]
    return min(512 * max((torch.finfo(each).eps for each in floating), default=1.2e-7), COARSEST)


def _why_no_mask(groups: Groups, keep: Mapping[str, Any]) -> str:
    if groups.bypassed(keep):
        return "whole layers go, which no zero does"
    others = [name for name in keep if not groups.whole(name).mask_equivalent]
    return f"{len(others)} groups are not mask-equivalent" if others else ""


def _permuted(model: nn.Module, groups: Groups, names: list[str], seed: int) -> AbstractContextManager[None]:
    """Every unit of these groups in another place."""
    rng = np.random.default_rng(seed)
    orders = {name: block_permutation(groups.whole(name), rng) for name in names}
    chosen = [groups.whole(name) for name in names]

    def permute(name: str, values: Tensor) -> Tensor:
        for group in chosen:
            for part in group.slices:
                if part.tensor == name:
                    values = permute_units(values, part, group, orders[group.name])
        return values

    tensors = dict.fromkeys(name for group in chosen for name in group.tensors)
    return _changed(model, [name for name in tensors if read(model, name) is not None], permute)


@contextmanager
def _changed(
    model: nn.Module, names: Iterable[str], change: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Other values in some tensors, one gathered at a time; afterwards those from before."""
    before: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name in names:
                tensor = read(model, name)
                if tensor is not None:
                    values = change(name, whole(tensor.detach()))
                    before[name] = own_part(tensor).clone()
                    own_part(tensor).copy_(own_part(like(values, tensor)))
        yield
    finally:
        resharded(model)
        with torch.no_grad():
            for name, values in before.items():
                tensor = read(model, name)
                assert tensor is not None
                own_part(tensor).copy_(values)
