"""Reading a report back: its tags, its numbers, and where in the run directory each number stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "br"}
STEP = re.compile(r'\.?([A-Za-z_][A-Za-z0-9_]*|\d+)|\[("(?:[^"\\]|\\.)*")\]')


class Page(HTMLParser):
    """The tags with their attributes, the text, and headings of a page; asserts that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "data":
            self.numbers.append((str(attributes["value"]), str(attributes["title"]), ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._open and self._open[-1] == "data":
            raw, title, _ = self.numbers[-1]
            self.numbers[-1] = (raw, title, data)

    def attributes(self, name: str) -> Iterator[str]:
        """Go through the values of an attribute over all tags."""
        yield from (str(attrs[name]) for _, attrs in self.tags if name in attrs)


def resolve(run_dir: Path, source: str) -> Any:
    """Return the value that a source names, or raise KeyError."""
    file, _, keys = source.partition("#")
    value = json.loads((run_dir / file).read_text(encoding="utf-8"))
    while keys:
        found = STEP.match(keys)
        if not found:
            raise KeyError(source)
        key = json.loads(found[2]) if found[2] else found[1]
        value = value[int(key)] if isinstance(value, list) else value[key]
        keys = keys[found.end() :]
    return value
