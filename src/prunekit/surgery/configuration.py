"""Letting a model's configuration describe its narrower self, so that its class builds it again from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from prunekit.surgery.repair import combinations_by_departure
from prunekit.surgery.tensors import owner

BUILDS = 150
"""At most so many configurations are tried, each by building the class on the meta device."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Described:
    """Whether a model's configuration describes it.

    Attributes:
        holds: building the class from the configuration gives every tensor of the state dict its shape.
        changed: the fields that were set: name -> (before, after).
        reason: why it does not hold, else "".
    """

    holds: bool
    changed: Mapping[str, tuple[Any, Any]]
    reason: str = ""


def fit_widths(
    model: nn.Module, known: Iterable[tuple[int, int]], is_equal: Callable[[nn.Module], bool]
) -> Described | None:
    """Set the integer fields of ``model.config`` so that ``type(model)(config)`` is the model again.

    Every field may take the values that a group's size or a changed shape suggests. A configuration counts if
    the class built from it takes the state dict and then computes what the model computes.

    Args:
        model: a pruned model; only its ``config`` is changed, and only if it then holds.
        known: sizes of groups before and after.
        is_equal: whether a rebuilt model computes what ``model`` computes.

    Returns:
        None where the model has no configuration that its class can be built from.
    """
    original = getattr(model, "config", None)
    if original is None or not hasattr(original, "__dict__"):
        return None
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    build = _Builder(type(model))
    dense = build(original)
    if dense is None:
        return None
    if dense.keys() != wanted.keys():
        return Described(False, {}, "a model built from it has other tensors")
    if dense == wanted and _builds(model, original, is_equal):
        return Described(True, {})
    fields = _fields(original, {*known}, _pairs(dense, wanted))
    misfit = ""
    for picks in _from_both_ends(original, fields):
        config = copy.deepcopy(original)
        for (name, options), pick in zip(fields.items(), picks, strict=True):
            setattr(config, name, options[pick])
        shapes = build(config)
        if shapes != wanted:
            misfit = misfit or (_misfit(shapes, wanted) if shapes and shapes.keys() == wanted.keys() else "")
            if build.is_spent:
                break
            continue
        if _builds(model, config, is_equal):
            changed = _adopt(model, original, config, is_equal)
            _take_numbers(model, is_equal)
            return Described(True, changed)
        misfit = "a model built from it has these shapes but computes something else"
    return Described(False, {}, misfit or "its class does not accept the new sizes")


def fit_depth(model: nn.Module, fields: Mapping[str, list[Any]]) -> None:
    """Set fields of ``model.config`` so that ``type(model)(config)`` has tensors of the model's names.

    Nothing is set where no combination of values gives them, or the class cannot be built.

    Args:
        model: whose modules already are what they should be.
        fields: by dotted name, what each may become, the likeliest first.
    """
    build = _Builder(type(model))
    wanted = model.state_dict().keys()
    for picks in combinations_by_departure([len(options) for options in fields.values()]):
        chosen = {name: options[pick] for (name, options), pick in zip(fields.items(), picks, strict=True)}
        config = copy.deepcopy(model.config)
        shapes = build(config) if _set(config, chosen) else None
        if shapes is not None and shapes.keys() == wanted:
            _set(model.config, _without_chance(model.config, chosen, build, wanted))
            return
        if build.is_spent:
            return


def _without_chance(
    config: Any, chosen: Mapping[str, Any], build: _Builder, wanted: Collection[str]
) -> dict[str, Any]:
    """The values without those of integers that only happened to be the number of layers."""
    needed = dict(chosen)
    for name in chosen:
        holder, leaf = owner(config, name)
        if type(getattr(holder, leaf)) is not int or getattr(holder, leaf) == chosen[name]:
            continue
        trial = copy.deepcopy(config)
        fewer = {other: value for other, value in needed.items() if other != name}
        shapes = build(trial) if _set(trial, fewer) else None
        if shapes is not None and shapes.keys() == wanted:
            needed = fewer
    return needed


def _set(config: Any, values: Mapping[str, Any]) -> bool:
    """Set fields by dotted name; false where the configuration does not accept one."""
    try:
        for name, value in values.items():
            holder, leaf = owner(config, name)
            setattr(holder, leaf, value)
    except Exception:  # whatever a configuration raises about a value it does not accept
        return False
    return True


def _builds(model: nn.Module, config: Any, is_equal: Callable[[nn.Module], bool]) -> bool:
    """The class built from the configuration takes the model's tensors and computes what it computes."""
    try:
        with torch.random.fork_rng(devices=[]):
            rebuilt = type(model)(copy.deepcopy(config))
    except Exception:  # whatever the user's class raises about a configuration it does not accept
        return False
    state = model.state_dict()
    if {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} != {
        name: tensor.shape for name, tensor in state.items()
    }:
        return False
    rebuilt.load_state_dict(state)
    return is_equal(rebuilt)


def _adopt(
    model: nn.Module, original: Any, config: Any, is_equal: Callable[[nn.Module], bool]
) -> dict[str, tuple[Any, Any]]:
    """Set in ``original`` what has to differ; a field that only happened to have an old size stays."""
    changed: dict[str, tuple[Any, Any]] = {}
    for name, old in list(vars(original).items()):
        new = vars(config)[name]
        if new == old:
            continue
        setattr(config, name, old)
        if not _builds(model, config, is_equal):
            setattr(config, name, new)
            changed[name] = (old, new)
    for name, (_, new) in changed.items():
        setattr(original, name, new)
    return changed


def _take_numbers(model: nn.Module, is_equal: Callable[[nn.Module], bool]) -> None:
    """Give the model's modules the integers that their class gives them when it is built anew.

    Some are not read on the path that was traced (how often keys are repeated, where the operator does that
    by itself), and have to be right all the same.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        rebuilt = type(model)(copy.deepcopy(model.config))
    changed: list[tuple[nn.Module, str, Any]] = []
    modules = dict(model.named_modules())
    for path, module in rebuilt.named_modules():
        own = modules.get(path)
        if own is None:
            continue
        for name, value in vars(module).items():
            old = vars(own).get(name)
            if type(value) is int and type(old) is int and value != old:
                changed.append((own, name, old))
                setattr(own, name, value)
    if changed and not _builds(model, model.config, is_equal):
        for own, name, old in changed:
            setattr(own, name, old)


def _from_both_ends(config: Any, fields: Mapping[str, list[Any]]) -> Iterator[tuple[int, ...]]:
    """Combinations in which nearly every field changes, in turn with those in which hardly any does."""
    counts = [len(options) for options in fields.values()]
    stays = [options.index(vars(config)[name]) for name, options in fields.items()]

    def few() -> Iterator[tuple[int, ...]]:
        for picks in combinations_by_departure(counts):  # 0 stands for the value that stays.
            yield tuple(
                stay if pick == 0 else 0 if pick == stay else pick
                for pick, stay in zip(picks, stays, strict=True)
            )

    for pair in zip_longest(combinations_by_departure(counts), few()):
        yield from (picks for picks in pair if picks is not None)


class _Builder:
    """Builds a class from a configuration without memory or values, at most :data:`BUILDS` times."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self._kind = kind
        self._left = BUILDS

    @property
    def is_spent(self) -> bool:
        """No more configurations are tried."""
        return self._left <= 0

    def __call__(self, config: Any) -> Shapes | None:
        """The shapes of the state dict; None where the class cannot be built from that."""
        self._left -= 1
        if self._left < 0:
            return None
        try:
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                built = self._kind(copy.deepcopy(config))
        except Exception:  # whatever the user's class raises about a configuration it does not accept
            return None
        return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}


def _pairs(have: Shapes, want: Shapes) -> set[tuple[int, int]]:
    """Sizes of dimensions before and after, where they changed."""
    return {
        (before, after)
        for name in want
        for before, after in zip(have[name], want[name], strict=False)
        if before != after
    }


def _fields(config: Any, known: set[tuple[int, int]], pairs: set[tuple[int, int]]) -> dict[str, list[Any]]:
    """The fields that may have to change, each with the values it may take, the likeliest first."""
    found: dict[str, list[Any]] = {}
    for name, value in vars(config).items():
        options: list[Any] = []
        if name.startswith("_"):
            continue
        if type(value) is int and value > 1:
            options = _shrunk(value, known | pairs)
        elif isinstance(value, list) and value and all(type(item) is int for item in value):
            swapped = dict(sorted(known | pairs))
            options = [[swapped.get(item, item) for item in value]]
        elif value is None and name.endswith(("_dim", "_inner", "_kv")):
            options = sorted({after for _, after in known | pairs} | _quotients(config))
        options = [option for option in options if option != value]
        if options and value is not None:
            found[name] = [*options, value]
        elif options:
            found[name] = [None, *options]
    return found


def _shrunk(value: int, pairs: set[tuple[int, int]]) -> list[int]:
    """What a size becomes: where it changed itself, and where it is a multiple of one that did."""
    exact = sorted({after for before, after in pairs if before == value and after > 0})
    multiples = sorted(
        {value // before * after for before, after in pairs if value % before == 0 and after > 0}
    )
    return [*exact, *(option for option in multiples if option not in exact)]


def _quotients(config: Any) -> set[int]:
    """What a class may derive from two other fields, such as the width of a head."""
    sizes = {value for value in vars(config).values() if type(value) is int and 1 < value < 2**16}
    return {larger // smaller for larger in sizes for smaller in sizes if larger % smaller == 0} - {1}


def _misfit(shapes: Shapes, wanted: Shapes) -> str:
    name = next(name for name in wanted if shapes[name] != wanted[name])
    return f"no configuration gives {name} the shape {list(wanted[name])}"
