"""The laws that removal obeys, checked in float64 on the model at hand.

Permutation law: permuting the units of a group in every slice leaves the outputs unchanged. A slice that is
missing, superfluous or misaligned breaks it; norms and softmax do not. It proves the coupling.

Mask law: for a mask-equivalent group, the removed model equals the model in which every slice of the removed
units is zero. It proves the removal.

Form law: the model the user gets equals the pruned graph.

A law that holds for any weights is checked on perturbed ones: a norm scale initialised to zero would hide a
wrong coupling behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import ProofError, ShapeError
from prunekit.graph import Groups
from prunekit.plan import PruningPlan
from prunekit.surgery.compare import in_float64, input_batches, max_relative_error, outputs
from prunekit.surgery.narrow import permute_units
from prunekit.surgery.remove import Removal, check_fits, masked, reduced_graph
from prunekit.surgery.tensors import names_of, read, replace
from prunekit.types import Group, IntArray, KeepMask

TOLERANCE = 1e-6
"""Relative, in float64. A wrong coupling is off by its whole effect; rounding stays below 1e-10."""


_EXTREME = 1e4


@dataclass(frozen=True)
class LawResult:
    """One law, checked.

    Attributes:
        law: ``permutation``, ``mask`` or ``form``.
        groups: the groups it was checked for.
        max_relative_error: over all outputs and batches, relative to the largest output.
        tolerance: what it was held against.
        batch_sizes: the sizes of the first dimension it was checked at.
        passed: error <= tolerance.
        note: what was left out, or why it fails.
    """

    law: str
    groups: tuple[str, ...]
    max_relative_error: float
    tolerance: float
    batch_sizes: tuple[int, ...]
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Proof:
    """All laws checked for one removal; ``passed`` if every one holds."""

    laws: tuple[LawResult, ...]

    @property
    def passed(self) -> bool:
        """Every law holds."""
        return all(law.passed for law in self.laws)

    def __str__(self) -> str:
        lines = [
            f"{law.law} law: {'holds' if law.passed else 'BROKEN'} for {_named(law)}, "
            f"max relative error {law.max_relative_error:.1e} (tolerance {law.tolerance:.0e}), "
            f"batch sizes {', '.join(map(str, law.batch_sizes))}" + (f"; {law.note}" if law.note else "")
            for law in self.laws
        ]
        return "\n".join(lines)


def _named(law: LawResult) -> str:
    """How many groups, and which where the law is broken."""
    count = f"{len(law.groups)} groups"
    return count if law.passed else f"{count} ({', '.join(law.groups[:8])})"


def verify(
    model: nn.Module, small: nn.Module | Removal, plan: PruningPlan, groups: Groups, *, seed: int = 0
) -> Proof:
    """Check all laws for one plan carried out.

    Args:
        model: the dense model.
        small: what ``remove(model, plan, groups)`` gave, or its model.
        plan: the plan.
        groups: that the plan was made on.
        seed: of the permutations and perturbations.

    Raises:
        PlanError: plan, groups and model do not belong together.
    """
    check_fits(model, plan, groups)
    small = small.model if isinstance(small, Removal) else small
    keep = plan.keep_mask()
    names = [group.name for group in groups.prunable if group.name in keep]
    return Proof(
        (
            check_permutation(model, groups, names, seed=seed),
            check_mask(model, groups, keep, seed=seed),
            _check_form(model, small, groups, keep),
        )
    )


def check_permutation(
    model: nn.Module, groups: Groups, names: Sequence[str] | None = None, *, seed: int = 0
) -> LawResult:
    """Permute all named groups at once (default: every prunable one) and compare outputs."""
    names = [group.name for group in groups] if names is None else list(names)
    reference = _generic(model, groups, seed)
    permuted = in_float64(reference)
    rng = np.random.default_rng(seed)
    try:
        for name in names:
            group = groups.whole(name)
            _permute(permuted, group, _block_permutation(group, rng))
    except ShapeError as error:
        return LawResult("permutation", tuple(names), float("inf"), TOLERANCE, (), False, str(error))
    return _compare("permutation", names, reference, permuted, groups)


def broken_groups(model: nn.Module, groups: Groups, *, seed: int = 0) -> dict[str, LawResult]:
    """The prunable groups that break the permutation law, found by bisection."""
    names = [group.name for group in groups]
    found: dict[str, LawResult] = {}
    pending = [names] if names else []
    while pending:
        part = pending.pop()
        result = check_permutation(model, groups, part, seed=seed)
        if result.passed:
            continue
        if len(part) == 1:
            found[part[0]] = result
        else:
            pending += [part[: len(part) // 2], part[len(part) // 2 :]]
    return found


def check_mask(model: nn.Module, groups: Groups, keep: KeepMask, *, seed: int = 0) -> LawResult:
    """Removed equals masked, for the part of ``keep`` that is mask-equivalent."""
    equivalent = {name: mask for name, mask in keep.items() if groups.whole(name).mask_equivalent}
    left_out = len(keep) - len(equivalent)
    note = f"{left_out} groups are not mask-equivalent" if left_out else ""
    reference = _generic(model, groups, seed)
    removed = in_float64(reduced_graph(reference, equivalent, groups))
    return _compare(
        "mask", list(equivalent), masked(reference, equivalent, groups), removed, groups, note=note
    )


def _check_form(model: nn.Module, small: nn.Module, groups: Groups, keep: KeepMask) -> LawResult:
    expected = in_float64(reduced_graph(model, keep, groups))
    return _compare("form", list(keep), expected, in_float64(small), groups)


def _compare(
    law: str, names: list[str], reference: nn.Module, other: nn.Module, groups: Groups, note: str = ""
) -> LawResult:
    worst = 0.0
    checked: list[int] = []
    for more, (args, kwargs) in enumerate(input_batches(groups.graph)):
        expected = outputs(reference, args, kwargs)
        try:
            found = outputs(other, args, kwargs)
        except Exception as error:  # whatever the model's forward raises
            worst, note = float("inf"), f"the model does not run: {type(error).__name__}: {error}"
            break
        worst = max(worst, max_relative_error(expected, found))
        checked.append(groups.graph.batch_size + more)
    return LawResult(law, tuple(names), worst, TOLERANCE, tuple(checked), worst <= TOLERANCE, note)


def _generic(model: nn.Module, groups: Groups, seed: int) -> nn.Module:
    """The model in float64 with perturbed weights, or with its own where the perturbed ones overflow.

    Raises:
        ProofError: its own outputs are not finite either, so nothing can be compared.
    """
    for candidate in (_perturbed(in_float64(model), groups, seed), in_float64(model)):
        batches = input_batches(groups.graph)
        try:
            found = [tensor for args, kwargs in batches for tensor in outputs(candidate, args, kwargs)]
        except Exception as error:  # whatever the model's forward raises
            raise ProofError(
                f"{type(model).__name__} does not run in float64: {type(error).__name__}: {error}",
                expected="a model that runs in double precision, in which removal is proved",
                remedy="Look for a dtype that its forward pins, such as .float() or torch.zeros(...)",
            ) from error
        if not found:
            raise ProofError(
                f"{type(model).__name__} gives no tensor that could be compared",
                expected="at least one tensor among its outputs",
            )
        if all(bool(torch.isfinite(tensor).all()) for tensor in found):
            return candidate
    raise ProofError(
        f"the outputs of {type(model).__name__} on the example inputs are not finite",
        expected="finite outputs, so that removal can be proved",
        remedy="Look for NaN or inf in the weights and in the example inputs",
    )


def _perturbed(model: nn.Module, groups: Groups, seed: int) -> nn.Module:
    """Parameters redrawn, of either sign and of the old size; buffers moved, so that variances stay positive.

    Infinite and extreme entries, as attention masks have, stay what they are.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in dict.fromkeys(groups.graph.tied.get(name, name) for name in groups.graph.tensors.values()):
        tensor = read(model, name)
        if tensor is None or not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        old = tensor.detach()
        ordinary = old.isfinite() & (old.abs() < _EXTREME)
        size = float(old[ordinary].abs().mean()) if ordinary.any() else 0.0
        moved = torch.where(old == 0, (size or 0.02) * noise, old * (0.8 + 0.4 * noise))
        if isinstance(tensor, nn.Parameter):
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            moved = drawn * (size or 0.1)
        moved = torch.where(ordinary, moved, old)
        _set(model, name, moved)
    return model


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    old = read(model, name)
    parameter = nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value
    for alias in names_of(model, name):
        replace(model, alias, parameter)


def _block_permutation(group: Group, rng: np.random.Generator) -> IntArray:
    """``[units]``: every unit goes to another place in its block, along one random cycle per block."""
    size = group.units_per_block
    order = np.empty(group.size, dtype=np.int64)
    for block in range(group.blocks):
        cycle = block * size + rng.permutation(size)
        order[cycle] = np.roll(cycle, 1)
    return order


def _permute(model: nn.Module, group: Group, order: IntArray) -> None:
    """Put unit ``order[u]`` in the place of unit ``u`` in every slice."""
    for part in group.slices:
        tensor = read(model, part.tensor)
        if tensor is not None:
            _set(model, part.tensor, permute_units(tensor.detach(), part, group, order))
