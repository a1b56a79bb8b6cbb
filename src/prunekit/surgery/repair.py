"""Letting the user's own class follow its narrower tensors: attributes that state widths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from prunekit.graph.change import Change


def follow_shapes(model: nn.Module, names: Iterable[str], changes: Iterable[Change]) -> None:
    """Set the attributes of torch's own layers to what their tensors and operators now say."""
    owners = {name.rpartition(".")[0] for name in names}
    for path, module in model.named_modules():
        if path in owners:
            _known(module)
    for change in changes:
        module = _innermost(model, change)
        if change.argument == "groups" and isinstance(module, nn.modules.conv._ConvNd):
            module.groups = change.new
            _known(module)
        elif change.argument == "num_groups" and isinstance(module, nn.GroupNorm):
            module.num_groups = change.new
        elif change.argument == "normalized_shape" and isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.normalized_shape = tuple(change.new)
        elif change.argument == "query_heads_per_key_head" and module is not None:
            _share_key_heads(module, change)


def _share_key_heads(module: nn.Module, change: Change) -> None:
    """An attention that states how many query heads share a key head (``num_key_value_groups``, ``n_rep``).

    Where the operator shares them by itself nothing reads it, so that no comparison would miss it.
    """
    for name, value in list(vars(module).items()):
        if type(value) is int and value == change.old and ("group" in name or "rep" in name):
            setattr(module, name, change.new)


@dataclass
class Guess:
    """An attribute that may have to follow, the same in all modules of a kind.

    Attributes:
        holders: the modules and configurations that have it.
        name: of the attribute.
        old: its value in the dense model.
        options: what it may become, the likeliest first.
    """

    holders: list[Any]
    name: str
    old: Any
    options: list[Any]

    def set(self, value: Any) -> None:
        """Give it this value everywhere."""
        for holder in self.holders:
            setattr(holder, self.name, value)


ATTEMPTS = 64
"""At most so many combinations of guesses are tried before the class is given up."""


def attempts(model: nn.Module, changes: Sequence[Change], *, most: int = ATTEMPTS) -> Iterator[list[Guess]]:
    """Set integer attributes that equal a constant that changed; each step is another combination.

    Attributes of the module an operator runs in, of the one around it, and of the configuration objects they
    share. Where one value may become several, the likeliest comes first, then ever more departures from it.

    A guess, which is why the caller proves it: the class is only given to the user if it computes what the
    pruned graph computes. When the caller asks for the next combination, the last one is undone.

    Yields:
        The attributes that are set.
    """
    guesses = guesses_of(model, changes)
    for picks in islice(combinations_by_departure([len(guess.options) for guess in guesses]), most):
        for guess, pick in zip(guesses, picks, strict=True):
            guess.set(guess.options[pick])
        yield guesses
        for guess in guesses:
            guess.set(guess.old)


def combinations_by_departure(counts: list[int]) -> Iterator[tuple[int, ...]]:
    """Every combination of options, those with fewer departures from the first options first."""
    for departures in range(len(counts) + 1 if counts else 0):
        for places in combinations(range(len(counts)), departures):
            for picks in product(*(range(1, counts[place]) for place in places)):
                chosen = dict(zip(places, picks, strict=True))
                yield tuple(chosen.get(place, 0) for place in range(len(counts)))


def guesses_of(model: nn.Module, changes: Sequence[Change]) -> list[Guess]:
    """The attributes that still equal a constant that changed, near where it is used."""
    found: dict[tuple[type, str, str], Guess] = {}
    for change in changes:
        for holder in _holders(model, change):
            for name, value in list(vars(holder).items()):
                options = [] if name.startswith("_") else _new_values(value, change)
                if not options:
                    continue
                key = (type(holder), name, repr(value))
                guess = found.setdefault(key, Guess([], name, value, []))
                if all(holder is not other for other in guess.holders):
                    guess.holders.append(holder)
                guess.options.extend(options)
    for guess in found.values():
        distinct = {repr(value): value for value in guess.options}
        guess.options = [
            *sorted(distinct.values(), key=lambda value: -guess.options.count(value)),
            guess.old,
        ]
    return list(found.values())


def _holders(model: nn.Module, change: Change) -> list[Any]:
    """The module the operator ran in, the one around it, and the configurations they hold."""
    stack = list((change.node.meta.get("nn_module_stack") or {}).values())[-2:]
    modules = [module for path, _ in stack if (module := submodule(model, path)) is not None]
    return [*modules[::-1], *configurations_of(*modules)]


def configurations_of(*modules: nn.Module) -> list[Any]:
    """The configuration objects that modules hold, each once."""
    found = {
        id(value): value for module in modules for value in vars(module).values() if is_configuration(value)
    }
    return list(found.values())


def is_configuration(value: Any) -> bool:
    """An object that is no module and holds integers."""
    return (
        hasattr(value, "__dict__")
        and not callable(value)
        and not isinstance(value, nn.Module | Tensor | type)
        and any(type(item) is int for item in vars(value).values())
    )


def _new_values(value: Any, change: Change) -> list[Any]:
    """What an attribute that equals the old constant, or a number in it, may become."""
    if type(value) is int:
        return [new for old, new in _pairs(change.old, change.new) if old == value]
    if isinstance(value, list | tuple) and value and list(value) == change.old:
        return [type(value)(change.new)]
    return []


def _pairs(old: Any, new: Any) -> list[tuple[int, int]]:
    if type(old) is int and type(new) is int:
        return [(old, new)] if old != new else []
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return list(dict.fromkeys(pair for a, b in zip(old, new, strict=True) for pair in _pairs(a, b)))
    return []


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path as torch.export writes it in a node's module stack."""
    try:
        return model.get_submodule(path.removeprefix("L['self'].").removeprefix("L['self']"))
    except AttributeError:
        return None


def _innermost(model: nn.Module, change: Change) -> nn.Module | None:
    stack = list((change.node.meta.get("nn_module_stack") or {}).values())
    return submodule(model, stack[-1][0] if stack else "")


def _known(module: nn.Module) -> None:
    """Widths of torch's own layers, read off their tensors."""
    if isinstance(module, nn.RNNBase):
        state, arriving = module.get_parameter("weight_hh_l0"), module.get_parameter("weight_ih_l0")
        module.hidden_size, module.input_size = state.shape[1], arriving.shape[1]
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, _NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
