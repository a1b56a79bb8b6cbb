"""What a criterion may look at when it scores one group."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.importance.gather import gather_present
from prunekit.ranks import whole
from prunekit.types import BoolArray, Group, IntArray, Role, Slice

ROLES: tuple[Role, ...] = ("producer", "consumer", "follower")
"""Every role a slice can have (:class:`prunekit.types.Slice`)."""

Rows = npt.NDArray[np.float64]
"""Scores per row and unit, ``[rows, units]`` float64; NaN where a unit has no part in a row."""

PerIndex = npt.NDArray[np.float64]
"""One figure per index of a dimension, ``[n]`` float64."""


@dataclass(frozen=True)
class Statistics:
    """What one calibration pass gathered.

    Attributes:
        values: by need, then by group name: ``[units]`` float64, or ``[slices, units]`` where each slice that
            takes part has a figure of its own, NaN where a unit has no part in it.
        roles: the roles of the slices that took part.
        batches: how many batches were seen, by all processes together.
        loss: mean of the batch losses; NaN where none was computed.
        readings: by group name, what reached the operators that read its units.
        peak_bytes: the most that a process held at once, as :func:`prunekit.importance.collect` counts it.
    """

    values: Mapping[str, Mapping[str, npt.NDArray[np.float64]]]
    roles: tuple[Role, ...]
    batches: int
    loss: float
    readings: Mapping[str, tuple[Reading, ...]] = field(default_factory=dict)
    peak_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Reading:
    """What calibration saw of a group's units at one operator, index by index of what the operator reads.

    A unit may have several indices (the channels of a head); an index counts every value that it had, over
    examples and positions.

    Attributes:
        where: the operator, by the parameter behind its weight.
        units: ``[n]`` int64, the unit each index belongs to; -1 = none of this group's.
        count: ``[n]`` how many values were seen.
        total: ``[n]`` their sum.
        magnitude: ``[n]`` the sum of their magnitudes.
        squares: ``[n]`` the sum of their squares.
        zeros: ``[n]`` how many of them are zero.
        weight_magnitude: ``[n]`` sum of the magnitudes of the weights that multiply the index; None where the
            units were seen where they are produced, because nothing with weights reads them.
        weight_squares: ``[n]`` sum of the squares of these weights, or None.
    """

    where: str
    units: IntArray
    count: PerIndex
    total: PerIndex
    magnitude: PerIndex
    squares: PerIndex
    zeros: PerIndex
    weight_magnitude: PerIndex | None
    weight_squares: PerIndex | None

    @property
    def variance(self) -> PerIndex:
        """``[n]`` mean squared distance from the mean, 0 where no value was seen."""
        count = np.maximum(self.count, 1)
        return np.maximum(self.squares / count - (self.total / count) ** 2, 0.0)


def check_roles(roles: Collection[str]) -> tuple[Role, ...]:
    """Return the roles in the order of :data:`ROLES`; one may be given as a string.

    Raises:
        SelectionError: there is none, or one that no slice can have.
    """
    roles = (roles,) if isinstance(roles, str) else roles
    unknown = set(roles) - set(ROLES)
    if unknown or not roles:
        raise SelectionError(
            f"The roles are {sorted(roles)}", expected=f"one or more of {list(ROLES)}", where="roles"
        )
    return tuple(role for role in ROLES if role in roles)


def check_seed(seed: object) -> None:
    """Refuse a seed that NumPy or torch would not take.

    Raises:
        SelectionError: it is not an integer from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise SelectionError(f"The seed is {seed!r}", expected="an integer from 0 to 2**63 - 1", where="seed")


def has_magnitude(tensor: Tensor) -> bool:
    """The values are real or complex numbers, and no codes or counts."""
    return tensor.is_floating_point() or tensor.is_complex()


def scored_slices(
    group: Group, parameters: Mapping[str, Tensor], buffers: Collection[str], roles: Collection[str]
) -> tuple[Slice, ...]:
    """Choose the slices whose values say something about a unit.

    Those are the slices of float and complex parameters in the given roles. Buffers are statistics of the
    data, not of the unit's weight, and integers (packed or quantised codes) have no magnitude to compare.

    Args:
        group: the group.
        parameters: every parameter of the model by qualified name.
        buffers: qualified names of the model's buffers.
        roles: the roles that take part.

    Raises:
        ShapeError: the model has none of the group's tensors.
        SelectionError: no slice is left.
    """
    if not any(part.tensor in parameters or part.tensor in buffers for part in group.slices):
        raise ShapeError(
            f"The model has none of the tensors {list(group.tensors)}",
            where=f"group '{group.name}'",
            remedy="The groups were found on another model; find them again on this one",
        )
    chosen = tuple(
        part
        for part in group.slices
        if part.role in roles and part.tensor in parameters and has_magnitude(parameters[part.tensor])
    )
    if not chosen:
        raise SelectionError(
            f"No float parameter of the group has one of the roles {sorted(roles)}",
            where=f"group '{group.name}'",
            remedy="Let more roles take part, or leave the group out with ignore=",
        )
    return chosen


READINGS = "readings"
"""The statistic :class:`Reading`: sums over the activations of a unit where it is read."""


ELSEWHERE = {
    "movement": "Call Movement(model, groups).update() in each training step and give score its statistics()",
    "removal": "Give score what prunekit.reconstruction.removal_errors(model, groups, calibration) returns",
}
"""How to get the statistics that calibration does not gather."""


def _how_to_collect(need: str) -> str:
    if need in ELSEWHERE:
        return ELSEWHERE[need]
    return f"Call collect(model, calibration, groups=groups, needs={{'{need}'}}, loss=loss) with these groups"


@dataclass(frozen=True)
class ModelTensors:
    """The tensors of a model by name, listed once for all groups.

    Attributes:
        model: only read.
    """

    model: nn.Module

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by every qualified name it has."""
        return dict(self.model.named_parameters(remove_duplicate=False))

    @cached_property
    def buffers(self) -> frozenset[str]:
        """Every name of a buffer."""
        return frozenset(name for name, _ in self.model.named_buffers(remove_duplicate=False))

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every module by every name it has."""
        return dict(self.model.named_modules(remove_duplicate=False))


@dataclass(frozen=True)
class GroupView:
    """One group, and everything a criterion may know about it.

    Attributes:
        group: the group to score.
        tensors: those of the model the groups were found on; only read.
        roles: the roles of the slices that take part.
        stats: what calibration gathered, if it ran.
        seed: for criteria that draw.
    """

    group: Group
    tensors: ModelTensors
    roles: tuple[Role, ...]
    stats: Statistics | None
    seed: int

    def slices(self) -> Iterator[tuple[Tensor, BoolArray]]:
        """Yield each scored slice as ``[present units, k]`` float64 values and ``[units]`` bool presence.

        Of complex parameters the values are the magnitudes ``|w|``.

        Raises:
            CalibrationError: a parameter holds NaN or infinity, or has no values (meta device).
        """
        for part in self.parts:
            tensor = whole(self.parameters[part.tensor].detach())
            magnitudes = tensor.abs() if tensor.is_complex() else tensor
            values, present = gather_present(magnitudes, part, self.group)
            yield self.checked(part.tensor, values), present

    @property
    def parts(self) -> tuple[Slice, ...]:
        """The slices that take part (:func:`scored_slices`)."""
        return scored_slices(self.group, self.parameters, self.tensors.buffers, self.roles)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter of the model by every qualified name it has."""
        return self.tensors.parameters

    def checked(self, name: str, values: Tensor) -> Tensor:
        """Return the values of a parameter in float64.

        Raises:
            CalibrationError: they hold NaN or infinity, or are not there (meta device).
        """
        if values.is_meta:
            raise CalibrationError(
                "The parameter has no values: it is on the meta device",
                where=name,
                remedy="Load the weights first, or use the criterion 'random'",
            )
        values = values.detach().double()
        if not torch.isfinite(values).all():
            raise CalibrationError(
                "The parameter holds NaN or infinity",
                where=name,
                remedy="A model with such weights cannot be scored; train or load it again",
            )
        return values

    def statistic(self, need: str) -> npt.NDArray[np.float64]:
        """Return what calibration gathered for this group, ``[units]`` or ``[slices, units]`` float64.

        Raises:
            CalibrationError: calibration did not run, did not gather it, or ran over other groups or roles.
        """
        gathered = {} if self.stats is None else self.stats.values.get(need, {})
        remedy = _how_to_collect(need)
        if self.group.name not in gathered:
            raise CalibrationError(
                f"The criterion needs the calibration statistic '{need}', which was not gathered",
                where=f"group '{self.group.name}'",
                remedy=remedy,
            )
        assert self.stats is not None
        if self.stats.roles != self.roles:
            raise CalibrationError(
                f"The statistics were gathered over the roles {list(self.stats.roles)}",
                expected=f"the roles that are to be scored, {list(self.roles)}",
                remedy=f"{remedy} and roles={list(self.roles)}",
            )
        values = gathered[self.group.name]
        if values.shape[-1:] != (self.group.size,):
            raise ShapeError(
                f"The statistic '{need}' has the shape {values.shape}",
                expected=f"({self.group.size},)",
                where=f"group '{self.group.name}'",
                remedy=remedy,
            )
        return values

    def readings(self) -> tuple[Reading, ...]:
        """Return what calibration saw of the group's units where they are read.

        Raises:
            CalibrationError: calibration did not run, did not look at activations, or ran over other groups.
        """
        found = None if self.stats is None else self.stats.readings.get(self.group.name)
        if found is None:
            raise CalibrationError(
                "The criterion needs the activations of the units, which were not gathered",
                where=f"group '{self.group.name}'",
                remedy=_how_to_collect(READINGS),
            )
        return found

    def why_no_common_slice(self) -> str:
        """Say why units cannot be compared inside a slice, or ""."""
        whole = "its units are whole layers or branches, no two of which share a tensor"
        return whole if self.group.is_depth else ""

    def generator(self) -> np.random.Generator:
        """Return a generator that depends on the seed and the group's name, and on nothing else."""
        name = hashlib.sha256(self.group.name.encode()).digest()
        return np.random.default_rng([self.seed, int.from_bytes(name[:16], "little")])
