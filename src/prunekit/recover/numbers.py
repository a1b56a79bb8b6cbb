"""What counts as a number in arguments and settings, and the error where one is none."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from prunekit.errors import UsageError


def is_number(value: object) -> TypeGuard[float]:
    """A finite int or float; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> TypeGuard[int]:
    """An int; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check(name: str, value: Any, expected: str, right: bool, *, where: str) -> None:
    """Say what is wrong with an argument.

    Args:
        name: of the argument.
        value: that was given.
        expected: in words.
        right: whether it is that.
        where: what takes the argument.

    Raises:
        UsageError: it is not right.
    """
    if not right:
        raise UsageError(f"{name} is {value!r}", expected=expected, where=where)


def check_count(name: str, value: object, *, where: str) -> None:
    """Raise UsageError unless it is a whole number of at least 1."""
    check(name, value, "a whole number of at least 1", is_whole(value) and value >= 1, where=where)


def check_share(name: str, value: object, *, where: str) -> None:
    """Raise UsageError unless it is a number from 0 to 1."""
    check(name, value, "a number from 0 to 1", is_number(value) and 0 <= value <= 1, where=where)
