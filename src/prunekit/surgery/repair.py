"""Letting the user's own class follow its narrower tensors: attributes that state widths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from prunekit.graph.rewrite import Change


def follow_shapes(model: nn.Module, names: Iterable[str], changes: Iterable[Change]) -> None:
    """Set the attributes of torch's own layers to what their tensors and operators now say."""
    owners = {name.rpartition(".")[0] for name in names}
    for path, module in model.named_modules():
        if path in owners:
            _known(module)
    for change in changes:
        module = _module(model, change)
        if change.argument == "groups" and isinstance(module, nn.modules.conv._ConvNd):
            module.groups = change.new
            _known(module)
        elif change.argument == "num_groups" and isinstance(module, nn.GroupNorm):
            module.num_groups = change.new
        elif change.argument == "normalized_shape" and isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.normalized_shape = tuple(change.new)


@dataclass(frozen=True)
class Attribute:
    """An attribute that was set, and what it was."""

    module: nn.Module
    name: str
    old: Any
    new: Any


def follow_constants(model: nn.Module, changes: Iterable[Change]) -> list[Attribute]:
    """Set integer attributes, of the module an operator runs in, that equal a constant that changed.

    A guess, which is why the caller proves it: the class is only given to the user if it computes what
    the pruned graph computes.

    Returns:
        The attributes that were set.
    """
    done: dict[tuple[int, str], Attribute] = {}
    for change in changes:
        module = _module(model, change)
        if module is None:
            continue
        for attribute, value in list(vars(module).items()):
            new = _new_value(value, change)
            if new is not None and (id(module), attribute) not in done:
                setattr(module, attribute, new)
                done[id(module), attribute] = Attribute(module, attribute, value, new)
    return list(done.values())


def _new_value(value: Any, change: Change) -> Any:
    """What an attribute that equals the old constant, or a number in it, becomes; None where it does not."""
    if type(value) is int:
        return next((new for old, new in _pairs(change.old, change.new) if old == value), None)
    if isinstance(value, list | tuple) and value and list(value) == change.old:
        return type(value)(change.new)
    return None


def _pairs(old: Any, new: Any) -> list[tuple[int, int]]:
    if type(old) is int and type(new) is int:
        return [(old, new)] if old != new else []
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return list(dict.fromkeys(pair for a, b in zip(old, new, strict=True) for pair in _pairs(a, b)))
    return []


def _module(model: nn.Module, change: Change) -> nn.Module | None:
    """The innermost module the operator ran in."""
    stack = list((change.node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    path = path.removeprefix("L['self'].").removeprefix("L['self']")
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _known(module: nn.Module) -> None:
    """Widths of torch's own layers, read off their tensors."""
    if isinstance(module, nn.RNNBase):
        module.hidden_size, module.input_size = module.weight_hh_l0.shape[1], module.weight_ih_l0.shape[1]
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
