"""The laws of one traced model, checked in float64.

Permutation law: permuting the units of a group in every slice leaves the outputs unchanged. A slice that is
missing, superfluous or misaligned breaks it; norms and softmax do not. It proves the coupling.

Mask law: for a mask-equivalent group, the removed model equals the model in which every slice of the removed
units is zero. It proves the removal.

Bypass law: a model without some layers equals the whole model in which, whenever such a layer has been
computed, what it was given takes the place of what it gave. It proves that nothing else depended on it.

They are laws of the traced graph, whose every dtype can be raised to double precision, whatever
the model's code pins. They hold for any weights, so they are checked on redrawn ones: a norm scale
initialised to zero would hide a wrong coupling behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import ProofError, ShapeError
from prunekit.graph import Groups
from prunekit.surgery.around import run_around
from prunekit.surgery.carried import Inputs, narrowed_inputs, permuted_inputs
from prunekit.surgery.compare import (
    double_by_default,
    double_throughout,
    input_batches,
    max_relative_error,
    outputs,
)
from prunekit.surgery.narrow import permute_units
from prunekit.surgery.remove import masked, reduced_graph
from prunekit.surgery.tensors import names_of, read, replace
from prunekit.types import BoolArray, Group, IntArray, KeepMask

TOLERANCE = 1e-6
"""Relative, in float64. A wrong coupling is off by its whole effect; rounding stays below 1e-10."""


_EXTREME = 1e4


@dataclass(frozen=True)
class LawResult:
    """One law, checked.

    Attributes:
        law: ``permutation``, ``mask``, ``bypass``, ``removal``, ``form`` or ``use``.
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


def broken_groups(model: nn.Module, groups: Groups, *, seed: int = 0) -> dict[str, LawResult]:
    """The prunable groups that break a law, found by bisection, with the law.

    First the permutation law, then, for those that obey it, removal of half of their units at random: the
    pruned graph has to run, give outputs of the same shapes and obey the mask law.
    """
    if not len(groups):
        return {}
    laws = Laws(model, groups, seed=seed)
    names = [group.name for group in groups]
    found = _bisect(laws.permutation, names)
    keep = half_of(groups, seed)
    found |= _bisect(
        lambda part: laws.removal({name: keep[name] for name in part}),
        [name for name in names if name not in found],
    )
    return found


def _bisect(check: Callable[[list[str]], LawResult], names: list[str]) -> dict[str, LawResult]:
    found: dict[str, LawResult] = {}
    pending = [names] if names else []
    while pending:
        part = pending.pop()
        result = check(part)
        if result.passed:
            continue
        if len(part) == 1:
            found[part[0]] = result
        else:
            pending += [part[: len(part) // 2], part[len(part) // 2 :]]
    return found


def half_of(groups: Groups, seed: int) -> dict[str, BoolArray]:
    """Half of the units of every block of every group, at random; at least as many as have to stay."""
    rng = np.random.default_rng(seed)
    keep: dict[str, BoolArray] = {}
    for group in groups:
        draw = rng.random((group.blocks, group.units_per_block))
        draw.ravel()[list(group.pinned)] = -1.0
        ranks = draw.argsort(axis=1).argsort(axis=1)
        least = max(-(-group.least // group.blocks), len(group.pinned))
        keep[group.name] = (ranks < max(least, group.units_per_block // 2)).ravel()
    return keep


def _in_every_block(group: Group, mask: BoolArray) -> BoolArray:
    """The mask with some units kept in blocks that go altogether, as they do with a group around them.

    That group may be left out of the law; where it is not, it takes the block away all the same.
    """
    rows = mask.reshape(group.blocks, -1)
    left = rows.sum(axis=1)
    front = np.arange(group.units_per_block) < left.max()
    return np.where(left[:, None] > 0, rows, front).ravel()


class Laws:
    """The laws of one traced model, checked on its graph in double precision with redrawn weights.

    Raises:
        ProofError: nothing can be compared: no values, no tensors or no finite numbers in the outputs.
    """

    def __init__(self, model: nn.Module, groups: Groups, *, seed: int = 0) -> None:
        self._groups = groups
        self._seed = seed
        self._batches = input_batches(groups.graph)
        self._reference, self._expected = self._generic(model)

    def permutation(self, names: Sequence[str]) -> LawResult:
        """Permuting the units of these groups changes no output."""
        names = [name for name in names if not self._groups.whole(name).is_depth]
        permuted = copy.deepcopy(self._reference)
        rng = np.random.default_rng(self._seed)
        orders = {name: block_permutation(self._groups.whole(name), rng) for name in names}
        try:
            for name, order in orders.items():
                _permute(permuted, self._groups.whole(name), order)
            batches = [permuted_inputs(self._groups, orders, batch) for batch in self._batches]
        except ShapeError as error:
            return LawResult("permutation", tuple(names), float("inf"), TOLERANCE, (), False, str(error))
        return self._compare("permutation", names, self._expected, permuted, batches)

    def mask(self, keep: KeepMask) -> LawResult:
        """Removed equals masked, for the part of ``keep`` that is mask-equivalent."""
        equivalent = self._equivalent(keep)
        others = [name for name, mask in keep.items() if mask.any() and name not in equivalent]
        note = f"{len(others)} groups are not mask-equivalent" if others else ""
        with double_by_default():
            expected = self._outputs(masked(self._reference, equivalent, self._groups))
        return self._compare("mask", list(equivalent), expected, *self._removed(equivalent), note=note)

    def _equivalent(self, keep: KeepMask) -> dict[str, BoolArray]:
        """The masks of mask-equivalent groups, as they are where no group around them goes."""
        return {
            name: _in_every_block(self._groups.whole(name), mask)
            for name, mask in keep.items()
            if self._groups.whole(name).mask_equivalent and mask.any()
        }

    def removal(self, keep: KeepMask) -> LawResult:
        """The pruned graph runs, its outputs keep their shapes, and the mask law and the bypass law hold."""
        for law in (self.mask, self.bypass):
            result = law(keep)
            if not result.passed or len(result.groups) == len(keep):
                return result
        runs = self._compare("removal", list(keep), self._expected, *self._removed(keep), shapes_only=True)
        return runs if not runs.passed else self.mask(keep)

    def bypass(self, keep: KeepMask) -> LawResult:
        """Leaving layers and branches out equals computing them and going on with what they were given.

        With the mask-equivalent part of ``keep`` masked on one side and removed on the other.
        """
        whole = {name: mask for name, mask in keep.items() if self._groups.whole(name).is_depth}
        if not self._groups.bypassed(whole):
            return LawResult("bypass", (), 0.0, TOLERANCE, (), True)
        both = self._equivalent(keep) | whole
        with double_by_default():
            dense = masked(self._reference, self._equivalent(keep), self._groups)
            expected = [run_around(dense, self._groups, whole, *batch) for batch in self._batches]
        return self._compare("bypass", list(whole), expected, *self._removed(both))

    def _removed(self, keep: KeepMask) -> tuple[nn.Module, list[Inputs]]:
        """The pruned graph, and the inputs that it takes."""
        small = double_throughout(reduced_graph(self._reference, keep, self._groups))
        return small, [narrowed_inputs(self._groups, keep, batch) for batch in self._batches]

    def _outputs(self, module: nn.Module, batches: list[Inputs] | None = None) -> list[list[Tensor]]:
        released = self._groups.graph.released_paths
        given = self._batches if batches is None else batches
        return [outputs(module, args, kwargs, released=released) for args, kwargs in given]

    def _compare(
        self,
        law: str,
        names: Sequence[str],
        expected: list[list[Tensor]],
        other: nn.Module,
        batches: list[Inputs],
        note: str = "",
        *,
        shapes_only: bool = False,
    ) -> LawResult:
        graph = self._groups.graph
        sizes = tuple(graph.batch_size + more for more in range(len(expected)))
        try:
            with double_by_default():
                found = self._outputs(other, batches)
        except Exception as error:  # whatever an operator raises at shapes that do not fit
            text = f"the model does not run: {type(error).__name__}: {error}"
            return LawResult(law, tuple(names), float("inf"), TOLERANCE, (), False, text)
        pairs = list(zip(expected, found, strict=True))
        if shapes_only:
            same = all(list(map(_kind, left)) == list(map(_kind, right)) for left, right in pairs)
            text = "" if same else "removing units changes the shape of an output"
            return LawResult(law, tuple(names), 0.0 if same else float("inf"), TOLERANCE, sizes, same, text)
        worst = max(max_relative_error(*pair) for pair in pairs)
        return LawResult(law, tuple(names), worst, TOLERANCE, sizes, worst <= TOLERANCE, note)

    def _generic(self, model: nn.Module) -> tuple[nn.Module, list[list[Tensor]]]:
        """The graph with redrawn weights, or with its own where those overflow; and its outputs."""
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            raise ProofError(
                f"tensors of {type(model).__name__} lie on the meta device",
                expected="weights with values, on which removal can be proved",
                remedy="trace, find_groups and cost work without values; load the weights before pruning",
            )
        dense = double_throughout(reduced_graph(model, {}, self._groups))
        for candidate in (_perturbed(copy.deepcopy(dense), self._groups, self._seed), dense):
            try:
                with double_by_default():
                    found = self._outputs(candidate)
            except Exception as error:  # whatever an operator raises
                raise ProofError(
                    f"the graph of {type(model).__name__} does not run in float64: "
                    f"{type(error).__name__}: {error}",
                    expected="a graph that runs in double precision, in which removal is proved",
                    remedy="Leave the part it comes from out: pk.prune(model.body, ...)",
                ) from error
            if not any(found):
                raise ProofError(
                    f"{type(model).__name__} gives no tensor that could be compared",
                    expected="at least one tensor among its outputs that is not released",
                )
            if all(bool(torch.isfinite(tensor).all()) for batch in found for tensor in batch):
                return candidate, found
        bad = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
        raise ProofError(
            f"the outputs of {type(model).__name__} on the example inputs are not finite"
            + (f"; the parameter '{bad[0]}' holds NaN or infinity" if bad else ""),
            expected="finite outputs, so that removal can be proved",
            remedy="Look for NaN or inf in the weights and in the example inputs",
        )


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


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


def block_permutation(group: Group, rng: np.random.Generator) -> IntArray:
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
