"""From a YAML file to a recipe; every mistake becomes one paragraph with its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError
from yaml.constructor import ConstructorError

from prunekit.errors import RecipeError
from prunekit.recipe.base import Section, section_in
from prunekit.recipe.mistakes import MistakeError, nearest, shown
from prunekit.recipe.sections import Recipe

MAX_RECIPE_BYTES = 1_000_000


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or says something that cannot be.
    """
    text = _read(path)
    try:
        document = yaml.compose(text, Loader=_Loader)
        content = yaml.load(text, Loader=_Loader)  # _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise RecipeError(f"It is not YAML: {problem}", where=f"{path}{line}") from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"The recipe is {shown(content)}",
            expected="keys such as name, workload and goal",
            where=str(path),
        )
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        _explain(error, path, document)


class Places:
    """Where the keys of a recipe stand, as the file is now.

    Args:
        path: a recipe that can be loaded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._document = yaml.compose(_read(path), Loader=_Loader)

    def of(self, key: str) -> str:
        """The place of a key such as ``groups.only.0``: file, key and the line of what the file has of it."""
        return _where(self._path, self._document, _parts(key))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError("It is larger than a megabyte", expected="a recipe in YAML", where=str(path))
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"The recipe cannot be read: {error.strerror}", expected="a YAML file", where=str(path)
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError("It is not UTF-8 text", expected="a YAML file", where=str(path)) from error


class _Loader(yaml.SafeLoader):
    """``yaml.SafeLoader`` that reads 1e-3 as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _explain(error: ValidationError, path: Path, document: yaml.Node | None) -> NoReturn:
    """Say the first problem in full and name the places of the others."""
    found = [_problem(details) for details in error.errors(include_url=False)]
    problems = [(_as_written(document, place), given, expected) for place, given, expected in found]
    place, given, expected = problems[0]
    others = ", ".join(_dotted(other) for other, _, _ in problems[1:6])
    raise RecipeError(
        given,
        expected=expected,
        where=_where(path, document, place),
        remedy=f"Also wrong: {others}" if others else "",
    ) from error


def _problem(details: Any) -> tuple[list[str | int], str, str]:
    """Where, what was given, what is expected."""
    place = [part for part in details["loc"] if _is_key(part)]
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, MistakeError):
        return place + _parts(cause.key), cause.given, cause.expected
    if details["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        where = f"a key of {_dotted(place[:-1])}" if place[:-1] else "a key of a recipe"
        return place, f"The key is unknown{nearest(str(place[-1]), known)}", f"{where}: {', '.join(known)}"
    expected = _description(place)
    if details["type"] == "missing":
        return place, "It is missing", expected
    if details["type"] == "invalid_key":
        return place[:-1], f"The key {shown(details['loc'][-1])} is not text", "keys that are words"
    if details["type"] == "string_type" and isinstance(details["input"], int | float):
        return (
            place,
            f"YAML reads {details['input']} as {type(details['input']).__name__}",
            f"{expected}, in quotes",
        )
    return place, f"It is {shown(details['input'])}", expected or details["msg"]


def _is_key(part: str | int) -> bool:
    """Pydantic also puts the names of validators and union members into the path."""
    return isinstance(part, int) or re.fullmatch(r"[a-z_]\w*|[^\[\](){}]*", part) is not None


def _as_written(node: yaml.Node | None, place: list[str | int]) -> list[str | int]:
    """The place without the number of a section that was given alone where a list may stand."""
    found: list[str | int] = []
    for part in place:
        if isinstance(part, int) and node is not None and not isinstance(node, yaml.SequenceNode):
            continue
        found.append(part)
        node = _below(node, part)
    return found


def _below(node: yaml.Node | None, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        held = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
        return held.get(str(part))
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    return None


def _section_at(place: list[str | int]) -> type[Section] | None:
    section: type[Section] | None = Recipe
    for part in place:
        if isinstance(part, int) and section is not None:  # a section of a list
            continue
        field = _fields_of(section).get(str(part)) if section else None
        section = section_in(field.annotation) if field is not None else None
    return section


def _fields_of(section: type[Section]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _keys_at(place: list[str | int]) -> list[str]:
    section = _section_at(place)
    return list(_fields_of(section)) if section else []


def _description(place: list[str | int]) -> str:
    for end in range(len(place), 0, -1):  # an item of a list is described with the list
        section = _section_at(place[: end - 1])
        if section and str(place[end - 1]) in _fields_of(section):
            return _fields_of(section)[str(place[end - 1])].description or ""
    return ""


def _where(path: Path, document: yaml.Node | None, place: list[str | int]) -> str:
    line = _line(document, place)
    return ", ".join(
        part for part in (str(path), _dotted(place) + (f" (line {line})" if line else "")) if part
    )


def _parts(key: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in key.split(".") if part]


def _dotted(place: list[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _line(node: yaml.Node | None, place: list[str | int]) -> int | None:
    """The line of the deepest part of the path that the document has."""
    mark = None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
            if str(part) not in pairs:
                break
            key, node = pairs[str(part)]
            mark = key.start_mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            item = node.value[part]
            node, mark = item, item.start_mark
        else:
            break
    return mark.line + 1 if mark else None
