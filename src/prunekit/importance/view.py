"""What a criterion may look at when it scores one group."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.importance.gather import gather, has_unit
from prunekit.types import BoolArray, Group, Slice

Role = Literal["producer", "consumer", "follower"]
ROLES: tuple[Role, ...] = ("producer", "consumer", "follower")
"""Every role a slice can have (:class:`prunekit.types.Slice`)."""

Rows = npt.NDArray[np.float64]
"""Scores per row and unit, ``[rows, units]`` float64; NaN where a unit has no part in a row."""


@dataclass(frozen=True)
class Statistics:
    """What one calibration pass gathered.

    Attributes:
        values: by need, then by group name: ``[units]`` float64.
        roles: the roles of the slices that took part.
        batches: how many batches were seen.
        loss: mean of the batch losses.
    """

    values: Mapping[str, Mapping[str, npt.NDArray[np.float64]]]
    roles: tuple[Role, ...]
    batches: int
    loss: float


def check_roles(roles: Collection[str]) -> tuple[Role, ...]:
    """Return the roles in the order of :data:`ROLES`.

    Raises:
        SelectionError: there is none, or one that no slice can have.
    """
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


@dataclass(frozen=True)
class GroupView:
    """One group, and everything a criterion may know about it.

    Attributes:
        group: the group to score.
        model: the model the groups were found on; only read.
        roles: the roles of the slices that take part.
        stats: what calibration gathered, if it ran.
        seed: for criteria that draw.
    """

    group: Group
    model: nn.Module
    roles: tuple[Role, ...]
    stats: Statistics | None
    seed: int

    def slices(self) -> Iterator[tuple[Tensor, BoolArray]]:
        """Yield each scored slice as ``[units, k]`` float64 values and ``[units]`` bool presence.

        Of complex parameters the values are the magnitudes ``|w|``.

        Raises:
            CalibrationError: a parameter holds NaN or infinity, or has no values (meta device).
        """
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = {name for name, _ in self.model.named_buffers(remove_duplicate=False)}
        for part in scored_slices(self.group, parameters, buffers, self.roles):
            tensor = parameters[part.tensor].detach()
            values = gather(tensor.abs() if tensor.is_complex() else tensor, part, self.group)
            if values.is_meta:
                raise CalibrationError(
                    "The parameter has no values: it is on the meta device",
                    where=part.tensor,
                    remedy="Load the weights first, or use the criterion 'random'",
                )
            values = values.double()
            if not torch.isfinite(values).all():
                raise CalibrationError(
                    "The parameter holds NaN or infinity",
                    where=part.tensor,
                    remedy="A model with such weights cannot be scored; train or load it again",
                )
            yield values, has_unit(part, self.group)

    def statistic(self, need: str) -> npt.NDArray[np.float64]:
        """Return what calibration gathered for this group, ``[units]`` float64.

        Raises:
            CalibrationError: calibration did not run, did not gather it, or ran over other groups or roles.
        """
        gathered = {} if self.stats is None else self.stats.values.get(need, {})
        remedy = (
            f"Call collect(model, batches, groups=groups, needs={{'{need}'}}, loss=loss) with these groups"
        )
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
        if values.shape != (self.group.size,):
            raise ShapeError(
                f"The statistic '{need}' has the shape {values.shape}",
                expected=f"({self.group.size},)",
                where=f"group '{self.group.name}'",
                remedy=remedy,
            )
        return values

    def generator(self) -> np.random.Generator:
        """Return a generator that depends on the seed and the group's name, and on nothing else."""
        name = hashlib.sha256(self.group.name.encode()).digest()
        return np.random.default_rng([self.seed, int.from_bytes(name[:16], "little")])
