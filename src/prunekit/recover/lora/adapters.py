"""Parameter-efficient recovery: low-rank updates of pruned layers are trained and merged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunekit.errors import PlanError, SelectionError, TrainingError, UsageError
from prunekit.graph import Groups
from prunekit.plan import MaskPlan, PruningPlan
from prunekit.recover.numbers import check, check_count, is_number
from prunekit.surgery import Pruned, Removal, fold_masks
from prunekit.surgery.narrow import touched
from prunekit.surgery.remove import without_gone_groups
from prunekit.surgery.weight_masks import check_masks_fit, masked_places
from prunekit.types import lies_in

if TYPE_CHECKING:
    from types import ModuleType

WHERE = "add_lora"

READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read the weights of layers in them without calling these."""


@dataclass(frozen=True)
class Adapters:
    """What :func:`add_lora` put into a model.

    Attributes:
        layers: names of the layers that are adapted.
        left_out: layers that were meant and are not, by name the reason.
        trained: elements of all that is trained now.
        requires_grad: by name, which parameters were trained before.
    """

    layers: tuple[str, ...]
    left_out: Mapping[str, str]
    trained: int
    requires_grad: Mapping[str, bool]


def add_lora(
    model: nn.Module,
    only: str | Sequence[str] = (),
    *,
    ignore: str | Sequence[str] = (),
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    masks: MaskPlan | None = None,
    also: str | Sequence[str] = (),
    seed: int = 0,
) -> Adapters:
    """Freeze a pruned model and put trainable low-rank updates beside the weights of its layers, in place.

    ``W' = W + keep * (alpha / rank) B A`` with ``B = 0`` at first, so that the model computes what it did.

    1. What is pruned stays zero, in training and after merging: ``keep`` is the mask of the weight, from the
       model (its masks are made permanent), or from ``masks``; where there is neither, it is ``W != 0``,
       unless the whole weight is zero.
    2. Buffers are not parameters: batch norms go on gathering statistics in training mode.
    3. Make the optimizer afterwards, of what requires a gradient now.

    Args:
        model: in its own class; dense, masked, or smaller.
        only: patterns of the layers to adapt, such as the names of :func:`pruned_layers`; by default the
            masked layers where there are masks, else all that can be.
        ignore: patterns of layers to leave alone.
        rank: of each update, >= 1.
        alpha: scale of the updates, > 0; default ``rank``.
        dropout: probability that an input of an update is dropped in training, in [0, 1).
        masks: of a model whose masks were folded: zeros that were not pruned may change.
        also: patterns of parameters that are trained along with the updates, such as ``*norm*``.
        seed: of the values of A.

    Raises:
        UsageError: peft is missing; a number that is out of range; there are adapters already.
        SelectionError: a pattern that matches nothing, or nothing that can be adapted.
        PlanError: the masks are those of another model, or cannot be made permanent.

    Source: Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1,
    https://arxiv.org/abs/2106.09685. Deviation: the update is masked.
    """
    _check_numbers(rank, alpha, dropout)
    kinds = _kinds()
    _check_bare(model)
    if masks is not None:
        check_masks_fit(model, masks)
    places = dict(_masked_layers(model))
    chosen = _patterns(only) or tuple(places) or _masked_by(masks)
    meant = _meant(model, chosen, _patterns(ignore), kinds.KINDS)
    left_out = {
        name: reason for name, layer in meant.items() if (reason := _reason(model, name, layer, kinds))
    }
    layers = tuple(name for name in meant if name not in left_out)
    if not layers:
        raise _nothing(model, left_out)
    trained_along = _named(model, _patterns(also))
    before = {name: each.requires_grad for name, each in model.named_parameters()}
    fold_masks(model, in_place=True)
    keeps = {name: _keep(model.get_submodule(name), name, places, masks) for name in layers}
    pattern = f"(?:{'|'.join(map(re.escape, layers))})"
    config = kinds.config_of(
        rank=rank, alpha=rank if alpha is None else alpha, dropout=dropout, pattern=pattern
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kinds.inject(model, config)
    for name, keep in keeps.items():
        model.get_submodule(name).hold(keep)  # type: ignore[operator]
    for parameter in trained_along:
        parameter.requires_grad_(True)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return Adapters(layers, left_out, trained, before)


def merge_lora(model: nn.Module, adapters: Adapters) -> nn.Module:
    """Add the updates to the weights and take the adapters out, in place: classes and names are as before.

    The parameters are the objects they were before :func:`add_lora` and require gradients as they did then.

    Args:
        model: with the adapters.
        adapters: from :func:`add_lora`.

    Returns:
        ``model``.

    Raises:
        PlanError: the adapters are not on the model.
        TrainingError: an update holds NaN or infinity; the model is as it was.
    """
    kinds = _kinds()
    modules = dict(model.named_modules())
    found = {name: modules[name] for name in adapters.layers if name in modules}
    strange = [name for name in adapters.layers if not isinstance(found.get(name), kinds._InWeight)]
    if strange:
        raise PlanError(
            f"there is no adapter at {', '.join(strange[:5])}",
            expected="the model that the adapters were put into, and not merged yet",
        )
    with torch.no_grad():
        for name, layer in found.items():
            update = layer.get_delta_weight(kinds.ADAPTER)  # type: ignore[operator]
            if not bool(torch.isfinite(update).all()):
                raise TrainingError(
                    "its update holds NaN or infinity",
                    where=f"layer '{name}'",
                    remedy="Load the weights of an earlier checkpoint, and use a smaller learning rate",
                )
        for name, layer in found.items():
            base: Any = layer.base_layer
            base.weight.copy_(base.weight + layer.get_delta_weight(kinds.ADAPTER).to(base.weight.dtype))  # type: ignore[operator]
            base.train(layer.training)
            parent, _, leaf = name.rpartition(".")
            model.get_submodule(parent)._modules[leaf] = base
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(adapters.requires_grad.get(name, parameter.requires_grad))
        parameter.grad = None
    return model


def pruned_layers(removal: Removal | Pruned, plan: PruningPlan, groups: Groups) -> tuple[str, ...]:
    """The modules of the smaller model whose parameters lost units: what :func:`add_lora` may adapt.

    Args:
        removal: from :func:`prunekit.remove` or :func:`prunekit.prune`.
        plan: that was carried out.
        groups: that it was made on.

    Returns:
        Their names in the smaller model, in its order; none where only whole layers went.
    """
    kept = without_gone_groups(plan.keep_mask(), groups)
    keep = {name: mask for name, mask in kept.items() if not groups.whole(name).is_depth}
    losing = set(touched(groups, keep))
    names = (
        name.rpartition(".")[0]
        for name, _ in removal.model.named_parameters()
        if removal.moved.get(name, name) in losing
    )
    return tuple(dict.fromkeys(name for name in names if name))


def _kinds() -> ModuleType:
    """What needs peft.

    Raises:
        UsageError: it is missing.
    """
    from prunekit.recover.lora import layers

    return layers


def _check_numbers(rank: object, alpha: object, dropout: object) -> None:
    check_count("rank", rank, where=WHERE)
    positive = alpha is None or (is_number(alpha) and alpha > 0)
    check("alpha", alpha, "a number above 0, or none", positive, where=WHERE)
    inside = is_number(dropout) and 0 <= dropout < 1
    check("dropout", dropout, "a number from 0 to below 1", inside, where=WHERE)


def _check_bare(model: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = next((name for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)), None)
    if found is not None:
        raise UsageError(
            f"there is an adapter at '{found}' already",
            expected="a model without adapters",
            remedy="Merge it first: merge_lora(model, adapters), or peft's merge_and_unload()",
        )


def _masked_layers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Layers with a mask on their weight, and what the mask keeps."""
    names = {module: name for name, module in model.named_modules()}
    for module, leaf in masked_places(model):
        if leaf == "weight":
            yield names[module], module.parametrizations.weight[0].keep.clone()  # type: ignore[index, union-attr]


def _masked_by(masks: MaskPlan | None) -> tuple[str, ...]:
    names = () if masks is None else masks.masks
    return tuple(name.removesuffix(".weight") for name in names if name.endswith(".weight"))


def _meant(
    model: nn.Module, only: Sequence[str], ignore: Sequence[str], kinds: Mapping[type[nn.Module], Any]
) -> dict[str, nn.Module]:
    """The layers that the patterns choose, of kinds that can be adapted."""
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in (*only, *ignore):
        if not any(lies_in(name, pattern) for name in modules):
            raise SelectionError(
                f"the pattern {pattern!r} matches no module",
                expected=f"names such as {', '.join(list(modules)[:5])}",
            )
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, tuple(kinds))
        and (not only or any(lies_in(name, pattern) for pattern in only))
        and not any(lies_in(name, pattern) for pattern in ignore)
    }


def _reason(model: nn.Module, name: str, layer: nn.Module, kinds: ModuleType) -> str:
    """Why a layer cannot be adapted, or ""."""
    own = next(kind for kind in kinds.KINDS if isinstance(layer, kind))
    if type(layer).forward is not own.forward:
        return f"{type(layer).__name__} has a forward of its own"
    if getattr(layer, "groups", 1) > 1:
        return f"peft cannot merge into a convolution of {layer.groups} groups"
    masked = {(id(module), leaf) for module, leaf in masked_places(model)}
    if parametrize.is_parametrized(layer, "weight") and (id(layer), "weight") not in masked:
        return "its weight is computed by a parametrization"
    weight = layer.parametrizations.weight.original if (id(layer), "weight") in masked else layer.weight  # type: ignore[union-attr]
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        return "its weight is no parameter of floating-point numbers"
    if sum(each is weight for _, each in model.named_parameters(remove_duplicate=False)) > 1:
        return "its weight is tied to another"
    parent = name
    while parent:
        parent = parent.rpartition(".")[0]
        if isinstance(model.get_submodule(parent), READERS):
            return f"{type(model.get_submodule(parent)).__name__} reads the weight without calling the layer"
    return ""


def _keep(layer: nn.Module, name: str, places: Mapping[str, Tensor], masks: MaskPlan | None) -> Tensor | None:
    """What may change of a layer's weight; None = everything."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    if name in places:
        return places[name].to(weight.device)
    if masks is not None and f"{name}.weight" in masks.masks:
        return torch.from_numpy(masks.masks[f"{name}.weight"].keep()).to(weight.device)
    keep = weight.detach() != 0
    return keep if bool(keep.any()) and not bool(keep.all()) else None


def _named(model: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    named = dict(model.named_parameters())
    for pattern in patterns:
        if not any(lies_in(name, pattern) for name in named):
            raise SelectionError(f"the pattern {pattern!r} matches no parameter", where="also")
    return [each for name, each in named.items() if any(lies_in(name, pattern) for pattern in patterns)]


def _nothing(model: nn.Module, left_out: Mapping[str, str]) -> SelectionError:
    if isinstance(model, torch.fx.GraphModule):
        remedy = "It is a graph, which has no layers: prune with form='own class', or train its parameters"
    else:
        reasons = [f"{name}: {reason}" for name, reason in left_out.items()][:5]
        remedy = f"Left out: {'; '.join(reasons)}" if reasons else ""
    return SelectionError(
        f"no layer of {type(model).__name__} that is asked for can be adapted",
        expected="at least one linear layer or convolution",
        remedy=remedy,
    )


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
