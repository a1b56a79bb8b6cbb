"""Putting a smaller model into the modules of the dense one, so that the dense one becomes the smaller."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.surgery import Removal
from prunekit.surgery.tensors import copied, owner

ORIGIN = "_prunekit_origin"
"""Under which name a module of a copy knows the path of the module it was copied from."""

PLAIN = (bool, int, float, complex, str, bytes, type(None))
REGISTERED = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class Edit:
    """One dictionary of a module or of an object that it holds.

    Attributes:
        target: the dictionary itself.
        before: what it holds now.
        after: what it is to hold.
    """

    target: dict[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def do(self) -> None:
        """Let it hold what it is to hold."""
        _fill(self.target, self.after)

    def undo(self) -> None:
        """Let it hold what it held before."""
        _fill(self.target, self.before)


def with_origins(model: nn.Module) -> nn.Module:
    """A copy whose modules, and copies of them, know which of ``model``'s they stand for."""
    twin = copied(model)
    for path, module in twin.named_modules():
        vars(module)[ORIGIN] = path
    return twin


def keep_untouched(model: nn.Module, removal: Removal) -> None:
    """Put the dense model's own parameters into the smaller one wherever nothing about them changed.

    Args:
        model: the dense model.
        removal: of it; its model is changed.
    """
    dense = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in list(removal.model.named_parameters(remove_duplicate=False)):
        own = dense.get(removal.moved.get(name, name))
        if own is not None and _same(own, parameter):
            holder, leaf = owner(removal.model, name)
            holder._parameters[leaf] = own


def edits_of(model: nn.Module, copied_from: nn.Module, smaller: nn.Module) -> list[Edit]:
    """What has to be written where so that ``model`` is ``smaller``, with its own modules and objects.

    1. A module that is left stays the same object: its hooks, mode and class stay, its parameters and buffers
       become those of ``smaller``, its children those that are left.
    2. Numbers, strings and lists of them that the removal changed follow, in modules and in the objects they
       hold (configurations). What changed in the model since it was copied, such as a list that a hook
       appends to, is no change of the removal.
    3. Everything else, such as functions and references to other objects, stays.

    Args:
        model: the dense model, or a copy of it; it is not changed.
        copied_from: what :func:`with_origins` gave of it.
        smaller: made from ``copied_from``.
    """
    return list(_Transplant(dict(model.named_modules()), dict(copied_from.named_modules())).edits(smaller))


class _Transplant:
    def __init__(self, modules: Mapping[str, nn.Module], origins: Mapping[str, nn.Module]) -> None:
        self._modules, self._origins = modules, origins
        self._visited: set[int] = set()
        self._pending: list[tuple[Any, Any, Any]] = []

    def edits(self, smaller: nn.Module) -> Iterator[Edit]:
        for new in smaller.modules():
            path = vars(new).get(ORIGIN)
            if path is not None:
                yield from self._registered(self._modules[path], new)
                yield from self._attributes(self._modules[path], self._origins[path], new)
        while self._pending:
            yield from self._attributes(*self._pending.pop())

    def _registered(self, old: nn.Module, new: nn.Module) -> Iterator[Edit]:
        pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (old._parameters, dict(new._parameters)),
            (
                old._buffers,
                {name: _left(old._buffers.get(name), each) for name, each in new._buffers.items()},
            ),
            (old._modules, {name: self._module(child, old) for name, child in new._modules.items()}),
        ]
        for target, after in pairs:
            if not _alike(target, after):
                yield Edit(target, dict(target), after)

    def _attributes(self, old: Any, origin: Any, new: Any) -> Iterator[Edit]:
        """Of a module or of an object, and of the objects that it holds."""
        before, source, target = vars(old), vars(origin), vars(new)
        after = {
            name: self._value(value, source[name], target[name])
            if name in source and name in target and name not in REGISTERED
            else value
            for name, value in before.items()
        }
        if not _alike(before, after):
            yield Edit(before, dict(before), after)

    def _value(self, old: Any, origin: Any, new: Any) -> Any:
        """What stands in the place of ``old``, where the removal made ``new`` of ``origin``."""
        if old is new or origin is new:
            return old
        if isinstance(new, Tensor):
            return _left(old, new)
        if isinstance(new, nn.Module):
            return self._module(new, None) if isinstance(old, nn.Module) else old
        if isinstance(origin, PLAIN) and isinstance(new, PLAIN):
            same = type(origin) is type(new) and (origin == new or origin != origin)
            return old if same or not isinstance(old, PLAIN) else new
        if not type(old) is type(origin) is type(new):
            return old
        if isinstance(old, list | tuple):
            return self._sequence(old, origin, new)  # type: ignore[arg-type]
        if isinstance(old, dict) and isinstance(origin, dict) and isinstance(new, dict):
            if not old.keys() == origin.keys() == new.keys():
                return old
            found = {key: self._value(value, origin[key], new[key]) for key, value in old.items()}
            return old if _alike(old, found) else _dict_like(old, found)
        if hasattr(old, "__dict__") and not callable(old) and not isinstance(old, type):
            self._visit(old, origin, new)
        return old

    def _sequence(self, old: Sequence[Any], origin: Sequence[Any], new: Sequence[Any]) -> Any:
        if len(old) == len(origin) == len(new):
            items = [self._value(*three) for three in zip(old, origin, new, strict=True)]
            if all(left is right for left, right in zip(items, old, strict=True)):
                return old
        elif len(origin) == len(new):  # The removal changed nothing that is known; something else did.
            return old
        elif all(isinstance(item, PLAIN) for item in new):
            items = list(new)
        elif all(isinstance(item, nn.Module) for item in new):
            items = [self._module(item, None) for item in new]
        else:
            return old
        return type(old)(*items) if hasattr(old, "_fields") else type(old)(items)  # type: ignore[call-arg]

    def _visit(self, old: Any, origin: Any, new: Any) -> None:
        if id(old) not in self._visited:
            self._visited.add(id(old))
            self._pending.append((old, origin, new))

    def _module(self, new: nn.Module | None, parent: nn.Module | None) -> nn.Module | None:
        """The dense model's own module, or a new one that stands where a layer was left out."""
        if new is None:
            return None
        path = vars(new).get(ORIGIN)
        if path is not None:
            return self._modules[path]
        return new.train(parent.training) if parent is not None else new


def _left(old: Any, new: Any) -> Any:
    """The old tensor if the new one is like it; what is no tensor stays."""
    return new if isinstance(old, Tensor) and isinstance(new, Tensor) and not _same(old, new) else old


def _same(old: Tensor, new: Tensor) -> bool:
    return (
        old.shape == new.shape
        and old.dtype == new.dtype
        and old.device == new.device
        and torch.equal(old.detach(), new.detach())
    )


def _alike(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return list(before) == list(after) and all(before[name] is after[name] for name in before)


def _dict_like(old: dict, content: dict) -> dict:
    made = copy.copy(old)
    made.update(content)
    return made


def _fill(target: dict[str, Any], content: Mapping[str, Any]) -> None:
    if list(target) != list(content):
        target.clear()
    target.update(content)
