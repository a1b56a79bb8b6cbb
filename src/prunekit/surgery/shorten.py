"""Taking whole layers out of the user's own class: fewer modules in a list, and numbers that follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunekit.graph import Groups
from prunekit.surgery.repair import Guess, configurations_of
from prunekit.types import KeepMask


@dataclass(frozen=True)
class Stack:
    """The layers of one container, and which of them stay.

    Attributes:
        path: of the module that holds them.
        names: of all its children, as they were.
        kept: positions of those that stay.
    """

    path: str
    names: tuple[str, ...]
    kept: tuple[int, ...]

    @property
    def change(self) -> tuple[int, int]:
        """How many children there were, and how many are left."""
        return len(self.names), len(self.kept)


def shorten(model: nn.Module, groups: Groups, keep: KeepMask, *, deletes: bool) -> tuple[list[Stack], str]:
    """Take the layers that ``keep`` leaves out from their containers, in place.

    1. From an ``nn.ModuleList`` or ``nn.Sequential`` a layer is deleted, and those behind it move up; an
       integer that states the position of every layer of the list (``layer_idx``) follows.
    2. Under any other name, or where nothing may be deleted, a layer becomes ``nn.Identity``.

    Args:
        model: the user's class, its widths done.
        groups: of the dense model.
        keep: by group name, ``[units]`` bool.
        deletes: rule 1 holds.

    Returns:
        The lists that became shorter; and why the class cannot follow, else "".
    """
    parts = groups.bypassed(keep)
    branches = [part.path for part in parts if not part.inside]
    if branches:
        return [], f"computes the branch {branches[0]!r}, which is left out, inside a layer that stays"
    holders: dict[str, list[str]] = {}
    for part in parts:
        path, _, name = part.path.rpartition(".")
        holders.setdefault(path, []).append(name)
    stacks = []
    for path, names in holders.items():
        holder = model.get_submodule(path)
        children = tuple(holder._modules)
        numbered = children == tuple(map(str, range(len(children))))
        if not deletes or not numbered or not isinstance(holder, nn.ModuleList | nn.Sequential):
            for name in names:
                holder._modules[name] = nn.Identity()
            continue
        kept = tuple(place for place, name in enumerate(children) if name not in names)
        _renumber(list(holder.children()), kept)
        left = [holder._modules[children[place]] for place in kept]
        holder._modules.clear()
        for place, child in enumerate(left):
            holder._modules[str(place)] = child
        stacks.append(Stack(path, children, kept))
    return stacks, ""


def _renumber(children: Sequence[nn.Module], kept: Sequence[int]) -> None:
    """Integers that equal the position of every child that has them become the new position."""
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for place, child in enumerate(children):
        for path, module in child.named_modules():
            for name, value in vars(module).items():
                if type(value) is int and name != "training":
                    found.setdefault((path, name), {})[place] = value
    for (path, name), values in found.items():
        if len(values) > 1 and all(place == value for place, value in values.items()):
            for place, old in enumerate(kept):
                if old in values:
                    setattr(children[old].get_submodule(path), name, place)


def caches_that_go(groups: Groups, keep: KeepMask) -> frozenset[str]:
    """Outputs that are not compared: a model with fewer layers hands fewer caches to its next call."""
    return groups.graph.released_paths if groups.bypassed(keep) else frozenset()


def origins(shorter: nn.Module, before: Mapping[int, str]) -> dict[str, str]:
    """Under which name each parameter and buffer of the shorter model was found before, by its identity."""
    every = (
        *shorter.named_parameters(remove_duplicate=False),
        *shorter.named_buffers(remove_duplicate=False),
    )
    return {name: before[id(tensor)] for name, tensor in every if id(tensor) in before}


def identities(model: nn.Module) -> dict[int, str]:
    """The first name of each parameter and buffer, by its identity."""
    found: dict[int, str] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found.setdefault(id(tensor), name)
    return found


_COUNTS = ("layer", "depth", "block")
"""What the names of fields that count layers contain; others may by chance hold the same number."""


def fields_that_count(config: Any, stacks: Sequence[Stack]) -> dict[str, list[Any]]:
    """Fields of a configuration that may have to follow, each with its options, the likeliest first.

    1. An integer that is the number of layers becomes the new number.
    2. A list with an entry per layer loses the entries of those that go.
    3. A list of numbers of layers, one per stage, changes where the stage's own position is.

    Args:
        config: any object with attributes; those that are configurations themselves are looked into.
        stacks: the lists that became shorter.

    Returns:
        By dotted name.
    """
    found: dict[str, list[Any]] = {}
    for prefix, holder in _configurations(config):
        for name, value in vars(holder).items():
            options = [new for new in _counted(value, stacks) if new != value]
            if options:
                likely = any(word in name for word in _COUNTS)
                found[f"{prefix}{name}"] = [*options, value] if likely else [value, *options]
    return found


def _counted(value: Any, stacks: Sequence[Stack]) -> Iterator[Any]:
    """What a value may become, rule by rule."""
    if type(value) is int:
        yield from dict.fromkeys(
            after for before, after in (stack.change for stack in stacks) if before == value
        )
    if not isinstance(value, list | tuple):
        return
    entries = list(value)
    for stack in stacks:
        for part in stack.path.split("."):
            before, after = stack.change
            if part.isdecimal() and int(part) < len(value) and value[int(part)] == before:
                entries[int(part)] = after
    yield type(value)(entries)
    for stack in stacks:
        if len(value) == len(stack.names):
            yield type(value)(value[place] for place in stack.kept)


def _configurations(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    yield prefix, config
    for name, value in list(vars(config).items()):
        if hasattr(value, "__dict__") and type(value).__name__.endswith("Config"):
            yield from _configurations(value, f"{prefix}{name}.")


def counters(model: nn.Module, stacks: Sequence[Stack]) -> list[Guess]:
    """Integers of the modules around a list that equal its old length, each to become its new one."""
    found = []
    for stack in stacks:
        before, after = stack.change
        parts = stack.path.split(".")
        for end in range(len(parts) + 1):
            module = model.get_submodule(".".join(parts[:end]))
            for holder in (module, *configurations_of(module)):
                found += [
                    Guess([holder], name, before, [after])
                    for name, value in list(vars(holder).items())
                    if type(value) is int and value == before and not name.startswith("_")
                ]
    return found
