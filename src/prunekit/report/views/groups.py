"""Which group touches which tensor: a row per tensor in the model's order, a column per group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prunekit.report.figures import Figure, count
from prunekit.report.reading import Entry, RunRecord

MOST_COLUMNS = 40
MOST_TENSORS = 200
MOST_ROWS = 120
MOST_PHRASES = 6
LETTERS = {"producer": "P", "consumer": "C", "follower": "F"}
ROOT = "(the model itself)"
FROZEN = ""
"""Stands for the column of frozen axes, where others have the name of their group."""


@dataclass(frozen=True)
class Column:
    """A group: its name, the kind of its units, and how many there were and are.

    Attributes:
        after: None where the recipe did not choose the group, or nothing is planned yet.
    """

    name: str
    granularity: str
    before: Figure
    after: Figure | None


@dataclass(frozen=True)
class Mark:
    """A role that a tensor has for a group, or an axis of it that is frozen.

    Attributes:
        letter: of the role; "" for what is frozen.
        style: its CSS class.
        title: dimensions, numbers of indices, and for what is frozen the reason.
    """

    letter: str
    style: str
    title: str


@dataclass(frozen=True)
class Row:
    """Tensors of one module that every group touches in the same way; all of them where rows are modules.

    Attributes:
        span: over how many rows the module's name reaches; 0 where it was said above.
        tensors: their names without the module.
        cells: the marks under each column.
        frozen: the marks of frozen axes.
    """

    module: str
    span: int
    tensors: str
    cells: tuple[tuple[Mark, ...], ...]
    frozen: tuple[Mark, ...]


@dataclass(frozen=True)
class Matrix:
    """The picture.

    Attributes:
        by_module: the model is too large for a row per tensor, so there is one per module.
        has_frozen: a frozen axis lies along one of the tensors.
        left_out: what there was no room for: ``and 12 more groups``.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    by_module: bool
    has_frozen: bool
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Touch:
    """One recorded slice.

    Attributes:
        column: the name of its group, or FROZEN.
        reason: for what is frozen: why, by which operator and where.
    """

    column: str
    module: str
    leaf: str
    dim: str
    role: str
    indices: str
    reason: str

    @property
    def way(self) -> tuple[str, ...]:
        """How the group touches the tensor, whichever tensor it is."""
        return (self.column, self.dim, self.role, self.indices, self.reason)


Ways = tuple[tuple[str, ...], ...]


def matrix(run: RunRecord) -> Matrix | None:
    """Lay out the recorded slices; None where the baseline stage recorded none."""
    baseline = run.result("baseline")
    columns = _columns(run)
    shown, more = columns[:MOST_COLUMNS], len(columns) - MOST_COLUMNS
    touches = list(_touches(baseline))
    if not touches:
        return None
    names = {FROZEN, *(column.name for column in shown)}
    by_tensor = _by_tensor(baseline, [touch for touch in touches if touch.column in names])
    tensors = {(touch.module, touch.leaf) for touch in touches}
    by_module = more > 0 or len(tensors) > MOST_TENSORS
    lines = _lines(by_tensor, by_module)
    rows = [
        _row(module, part if i == 0 else 0, line, shown)
        for module, part, i, line in _numbered(lines[:MOST_ROWS])
    ]
    left_out = [_more(more, "group")] if more > 0 else []
    if len(lines) > MOST_ROWS:
        left_out.append(_more(len(lines) - MOST_ROWS, "module" if by_module else "row"))
    return Matrix(
        columns=tuple(shown),
        rows=tuple(rows),
        by_module=by_module,
        has_frozen=any(row.frozen for row in rows),
        left_out=tuple(left_out),
    )


def _columns(run: RunRecord) -> list[Column]:
    """The groups of the last plan in its order, then those that it leaves whole."""
    groups = {entry.at("name").text: entry for entry in run.result("baseline").at("groups").elements()}
    planned = {name: pair for cycle in run.cycles for name, pair in cycle.plan.at("widths").items()}
    order = dict.fromkeys([*(name for name in planned if name in groups), *groups])
    return [
        Column(
            name=name,
            granularity=groups[name].at("granularity").text,
            before=count(groups[name].at("size")),
            after=count(planned[name].at(1)) if name in planned else None,
        )
        for name in order
        if name != FROZEN
    ]


def _touches(baseline: Entry) -> Iterator[_Touch]:
    shapes = baseline.at("tensors")
    for group in baseline.at("groups").elements():
        yield from _slices(group, shapes, group.at("name").text, reason="")
    for axis in baseline.at("frozen").elements():
        reason = f"{axis.at('reason').text} [{axis.at('operator').text}] {axis.at('source').text}".strip()
        yield from _slices(axis, shapes, FROZEN, reason)


def _slices(owner: Entry, shapes: Entry, column: str, reason: str) -> Iterator[_Touch]:
    for part in owner.at("slices").elements():
        tensor = part.at("tensor").text
        module, _, leaf = tensor.rpartition(".")
        dim = part.at("dim").number
        length = shapes.at(tensor, int(dim)) if dim is not None else Entry(None, shapes.source)
        indices = count(part.at("indices")).text + (f" of {count(length).text}" if length.known else "")
        role = part.at("role").text
        yield _Touch(column, module or ROOT, leaf, part.at("dim").text, role, f"{indices} indices", reason)


def _by_tensor(baseline: Entry, touches: Iterable[_Touch]) -> list[list[_Touch]]:
    """The touches of each tensor, the tensors in the model's order as far as it is recorded."""
    found: dict[tuple[str, str], list[_Touch]] = {}
    for touch in touches:
        found.setdefault((touch.module, touch.leaf), []).append(touch)
    recorded = [name.rpartition(".") for name, _ in baseline.at("tensors").items()]
    order = dict.fromkeys((module or ROOT, leaf) for module, _, leaf in recorded)
    return [found[tensor] for tensor in dict.fromkeys([*order, *found]) if tensor in found]


def _lines(by_tensor: list[list[_Touch]], by_module: bool) -> list[list[_Touch]]:
    """The touches of each row; rows of a module stand together."""
    modules: dict[str, dict[Ways, list[_Touch]]] = {}
    for touches in by_tensor:
        ways = () if by_module else tuple(touch.way for touch in touches)
        modules.setdefault(touches[0].module, {}).setdefault(ways, []).extend(touches)
    return [line for lines in modules.values() for line in lines.values()]


def _numbered(lines: list[list[_Touch]]) -> Iterator[tuple[str, int, int, list[_Touch]]]:
    """Each row with its module, the number of rows that this has, and its place among them."""
    modules: dict[str, list[list[_Touch]]] = {}
    for line in lines:
        modules.setdefault(line[0].module, []).append(line)
    for module, part in modules.items():
        for i, line in enumerate(part):
            yield module, len(part), i, line


def _row(module: str, span: int, line: list[_Touch], columns: Iterable[Column]) -> Row:
    by_column: dict[str, list[_Touch]] = {}
    for touch in line:
        by_column.setdefault(touch.column, []).append(touch)
    return Row(
        module=module,
        span=span,
        tensors=", ".join(dict.fromkeys(touch.leaf for touch in line)),
        cells=tuple(tuple(_marks(column.name, by_column.get(column.name, []))) for column in columns),
        frozen=tuple(_marks(FROZEN, by_column.get(FROZEN, []))),
    )


def _marks(column: str, touches: list[_Touch]) -> Iterator[Mark]:
    if column == FROZEN:
        if touches:
            yield Mark("", "frozen", _title("frozen", touches))
        return
    roles = {touch.role for touch in touches}
    for role in (*LETTERS, *sorted(roles - set(LETTERS))):
        own = [touch for touch in touches if touch.role == role]
        if own:
            known = role in LETTERS
            yield Mark(
                LETTERS.get(role, "?"), role if known else "unknown", _title(f"{column}, {role or '?'}", own)
            )


def _title(what: str, touches: list[_Touch]) -> str:
    """``layer1.conv1:channel, producer: weight dim 0, 32 of 32 indices``; equal ones are said once."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for touch in touches:
        alike.setdefault(touch.way, []).append(touch.leaf)
    phrases = [
        f"{', '.join(leaves)} dim {dim}, {indices}" + (f": {reason}" if reason else "")
        for (_, dim, _, indices, reason), leaves in alike.items()
    ]
    rest = [_more(len(phrases) - MOST_PHRASES, "slice")] if phrases[MOST_PHRASES:] else []
    return f"{what}: {'; '.join([*phrases[:MOST_PHRASES], *rest])}"


def _more(number: int, what: str) -> str:
    return f"and {number:,} more {what}{'' if number == 1 else 's'}"
