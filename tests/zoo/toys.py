"""The table of all toy nets, and what the engine finds in them (each traced once)."""

from __future__ import annotations

from functools import cache

from tests.zoo import (
    attention,
    constants,
    convolutional,
    experts,
    heads,
    inplace,
    interfaces,
    joins,
    lookups,
    norms,
    parameters,
    rearranged,
    recurrent,
    refused,
    residual,
    vision,
    wrapped,
)
from tests.zoo.case import Case

from prunekit.graph import Groups, find_groups, trace

CASES: tuple[Case, ...] = (
    *residual.CASES,
    *convolutional.CASES,
    *joins.CASES,
    *norms.CASES,
    *parameters.CASES,
    *attention.CASES,
    *heads.CASES,
    *vision.CASES,
    *rearranged.CASES,
    *recurrent.CASES,
    *lookups.CASES,
    *constants.CASES,
    *experts.CASES,
    *wrapped.CASES,
    *inplace.CASES,
    *interfaces.CASES,
    *refused.CASES,
)
BY_NAME = {case.name: case for case in CASES}


@cache
def everything_in(name: str) -> Groups:
    """What is found in the toy of that name."""
    case = BY_NAME[name]
    return find_groups(trace(case.model(), *case.inputs()))


@cache
def groups_of(name: str) -> Groups:
    """The groups in the toy of that name whose units lie along dimensions."""
    found = everything_in(name)
    return found._with(tuple(group for group in found if not group.is_depth), found.frozen)


@cache
def depth_of(name: str) -> Groups:
    """The groups in the toy of that name whose units are layers and branches."""
    found = everything_in(name)
    return found._with(tuple(group for group in found if group.is_depth), found.frozen)
