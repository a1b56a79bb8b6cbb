"""Mistakes in a recipe: what a check raises, and how a value and its nearest neighbour are shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from pydantic import AfterValidator


class MistakeError(ValueError):
    """Settings that contradict each other; ``key`` is the place, relative to their section."""

    def __init__(self, key: str, given: str, expected: str) -> None:
        super().__init__(given)
        self.key, self.given, self.expected = key, given, expected


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean '...'?)", or "" where nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: object) -> str:
    """Return a value as the user may recognise it, 80 characters at most."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def one_of(table: Mapping[str, object]) -> AfterValidator:
    """The check that a name is a key of the table."""

    def check(name: str) -> str:
        if name not in table:
            raise MistakeError(
                "", f"There is no {name!r}{nearest(name, table)}", f"one of {', '.join(table)}"
            )
        return name

    return AfterValidator(check)
