"""Taking whole layers out of the user's own class: fewer modules in a list, and numbers that follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunekit.graph import Groups
from prunekit.surgery.repair import Guess, configurations_of, is_configuration
from prunekit.types import KeepMask


@dataclass(frozen=True)
class Shortened:
    """A list of modules that lost some, and which of them stay.

    Attributes:
        path: of the list, as it was.
        names: of all its modules, as they were.
        kept: positions of those that stay.
        around: the modules it lies in, the model first and the list itself last.
    """

    path: str
    names: tuple[str, ...]
    kept: tuple[int, ...]
    around: tuple[nn.Module, ...]

    @property
    def change(self) -> tuple[int, int]:
        """How many modules there were, and how many are left."""
        return len(self.names), len(self.kept)


def shorten(
    model: nn.Module,
    groups: Groups,
    keep: KeepMask,
    *,
    deletes: bool,
    substitute: type[nn.Module] = nn.Identity,
) -> list[Shortened]:
    """Take the layers that ``keep`` leaves out from the modules that hold them, in place.

    1. From an ``nn.ModuleList`` or ``nn.Sequential`` a layer is deleted, and those behind it move up; an
       integer that states the position of every layer of the list (``layer_idx``) follows.
    2. Under any other name, or where nothing may be deleted, a layer becomes the substitute.

    Args:
        model: the user's class, its widths done.
        groups: of the dense model.
        keep: by group name, ``[units]`` bool; leaves no branch out.
        deletes: rule 1 holds.
        substitute: its class; ``nn.Identity`` can be called with one argument.

    Returns:
        The lists that became shorter.
    """
    leaving: dict[str, list[str]] = {}
    for part in groups.bypassed(keep):
        path, _, name = part.path.rpartition(".")
        leaving.setdefault(path, []).append(name)
    around = {path: _around(model, path) for path in leaving}  # Before any of them moves.
    shortened = []
    for path, modules in around.items():
        holder = modules[-1]
        children = tuple(holder._modules)
        numbered = children == tuple(map(str, range(len(children))))
        if not deletes or not numbered or not isinstance(holder, nn.ModuleList | nn.Sequential):
            for name in leaving[path]:
                holder._modules[name] = substitute()
            continue
        kept = tuple(place for place, name in enumerate(children) if name not in leaving[path])
        _renumber(list(holder._modules.values()), kept)
        left = [holder._modules[children[place]] for place in kept]
        holder._modules.clear()
        for place, child in enumerate(left):
            holder._modules[str(place)] = child
        shortened.append(Shortened(path, children, kept, modules))
    return shortened


def _around(model: nn.Module, path: str) -> tuple[nn.Module, ...]:
    """The modules on the way to a path, the model first."""
    parts = path.split(".") if path else []
    return tuple(model.get_submodule(".".join(parts[:end])) for end in range(len(parts) + 1))


def _renumber(children: Sequence[nn.Module | None], kept: Sequence[int]) -> None:
    """Integers that equal the position of every child that has them become the new position."""
    found: dict[tuple[str, str], dict[int, nn.Module]] = {}
    wrong: set[tuple[str, str]] = set()
    for place, child in enumerate(children):
        for path, module in () if child is None else child.named_modules():
            for name, value in vars(module).items():
                if type(value) is int:
                    found.setdefault((path, name), {})[place] = module
                    if value != place:
                        wrong.add((path, name))
    for (path, name), modules in found.items():
        if len(modules) > 1 and (path, name) not in wrong:
            for place, old in enumerate(kept):
                if old in modules:
                    setattr(modules[old], name, place)


def names_before(model: nn.Module, shortened: Sequence[Shortened]) -> dict[str, str]:
    """Under which name each parameter and buffer of the shorter model was found before.

    Args:
        model: with every list of ``shortened`` as it is now.
        shortened: from :func:`shorten`.
    """
    by_path = {item.path: item for item in shortened}
    every = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    found = {}
    for name, _ in every:
        before: list[str] = []
        for part in name.split("."):
            item = by_path.get(".".join(before))
            before.append(part if item is None else item.names[item.kept[int(part)]])
        found[name] = ".".join(before)
    return found


_COUNTS = ("layer", "depth", "block")
"""What the names of fields that count layers contain; others may by chance hold the same number."""


def fields_that_count(config: Any, shortened: Sequence[Shortened]) -> dict[str, list[Any]]:
    """Fields of a configuration that may have to follow, each with its options, the likeliest first.

    1. An integer that is the number of layers becomes the new number.
    2. A list of numbers of layers, one per stage, changes where the stage's own position is.
    3. A list with an entry per layer loses the entries of those that go.

    Args:
        config: any object with attributes; those that are configurations themselves are looked into.
        shortened: the lists that became shorter.

    Returns:
        By dotted name.
    """
    found: dict[str, list[Any]] = {}
    for prefix, holder in _configurations(config):
        for name, value in vars(holder).items():
            options = [new for new in _counted(value, shortened) if new != value]
            if options:
                likely = any(word in name for word in _COUNTS)
                found[f"{prefix}{name}"] = [*options, value] if likely else [value, *options]
    return found


def _counted(value: Any, shortened: Sequence[Shortened]) -> Iterator[Any]:
    """What a value may become, rule by rule."""
    if type(value) is int:
        yield from dict.fromkeys(
            after for before, after in (item.change for item in shortened) if before == value
        )
    if not isinstance(value, list | tuple):
        return
    entries = list(value)
    for item in shortened:
        for part in item.path.split("."):
            before, after = item.change
            if part.isdecimal() and int(part) < len(value) and value[int(part)] == before:
                entries[int(part)] = after
    yield type(value)(entries)
    for item in shortened:
        if len(value) == len(item.names):
            yield type(value)(value[place] for place in item.kept)


def _configurations(
    config: Any, prefix: str = "", seen: frozenset[int] = frozenset()
) -> Iterator[tuple[str, Any]]:
    """A configuration and those inside it, with what their fields' dotted names begin with."""
    yield prefix, config
    seen |= {id(config)}
    for name, value in list(vars(config).items()):
        if is_configuration(value) and id(value) not in seen:
            yield from _configurations(value, f"{prefix}{name}.", seen)


def counters(shortened: Sequence[Shortened]) -> list[Guess]:
    """Integers of the modules around a list that equal its old length, each to become its new one."""
    found = []
    for item in shortened:
        before, after = item.change
        for module in item.around:
            for holder in (module, *configurations_of(module)):
                found += [
                    Guess([holder], name, before, [after])
                    for name, value in list(vars(holder).items())
                    if type(value) is int and value == before and not name.startswith("_")
                ]
    return found
