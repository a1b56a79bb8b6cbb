"""Attach masks to the single weights of a model, and fold them into the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from prunekit.errors import PlanError
from prunekit.importance import WeightTensor, every_parameter, stored_parameter
from prunekit.plan import MaskPlan
from prunekit.surgery.tensors import copied
from prunekit.surgery.weight_mask import WeightMask


def attach_masks(model: nn.Module, plan: MaskPlan, *, in_place: bool = False) -> nn.Module:
    """Put the plan's masks on the parameters; the model trains and is saved as before.

    Weights that go are set to zero and get a gradient of exactly zero, so that they stay zero under momentum
    and weight decay. A parameter stays the same object, so that an optimizer made before goes on; one that is
    tied is masked at every place, by one mask. A mask that is already there is replaced, and its zeros stay
    zero.

    Args:
        model: the model the plan was made on, trained further or not; left as it is unless ``in_place``.
        plan: from :func:`prunekit.plan.select_weights`.
        in_place: change ``model`` itself: no second copy of the weights.

    Returns:
        The masked model: a copy, or ``model``. Beside the weights it holds one bit (in ``state_dict``) and
        one byte (only in memory) for each weight that is in the plan.

    Raises:
        PlanError: the plan was made for another model, or a parameter cannot be parametrized.
    """
    check_masks_fit(model, plan)
    for weight in _planned(model, plan):
        if any(isinstance(_holder(model, place)[0], torch.jit.ScriptModule) for place in weight.places):
            raise PlanError(
                "It lies in a module that torch.jit compiled, which takes no parametrization",
                where=f"weight '{weight.name}'",
                remedy="Mask the model before it is compiled",
            )
    model = model if in_place else copied(model)
    orders = {module: _order_of(module) for module in model.modules()}
    for weight in _planned(model, plan):
        places = [_holder(model, place) for place in weight.places]
        _unmask(places)
        holder, leaf = places[0]
        device = getattr(holder, leaf).device
        mask = WeightMask(plan.masks[weight.name], orders[holder], device)
        for holder, leaf in places:
            _register(holder, leaf, mask, weight)
    return model


def mask_on(model: nn.Module, weight: WeightTensor) -> WeightMask | None:
    """The mask on a parameter; None where there is none."""
    holder, leaf = _holder(model, weight.name)
    chain = _chain(holder, leaf) if parametrize.is_parametrized(holder, leaf) else ()
    return next((part for part in chain if isinstance(part, WeightMask)), None)


def fold_masks(model: nn.Module, *, in_place: bool = False) -> nn.Module:
    """Make all masks permanent: exact zeros in plain parameters, classes and ``state_dict`` keys as before.

    What lies under a mask becomes zero even where it is NaN or infinity. Parameters stay the same objects.

    Args:
        model: with masks or without; left as it is unless ``in_place``.
        in_place: change ``model`` itself.

    Returns:
        The plain model: a copy, or ``model``.

    Raises:
        PlanError: another parametrization was put on top of a mask.
    """
    for module, leaf in masked_places(model):
        if len(_chain(module, leaf)) > 1:
            raise PlanError(
                f"'{leaf}' of a {type(module).__name__} has other parametrizations beside its mask",
                remedy="Remove them with torch.nn.utils.parametrize.remove_parametrizations first",
            )
    model = model if in_place else copied(model)
    _unmask(list(masked_places(model)))
    return model


def zero_under_masks(model: nn.Module) -> None:
    """Set to zero, in place, what lies under the masks; the masked model computes the same."""
    for module, leaf in masked_places(model):
        _zeroed(_chain(module, leaf))


def zero_weights(model: nn.Module, plan: MaskPlan, *, in_place: bool = False) -> nn.Module:
    """Set what a plan does not keep to zero for good: the masks are never attached, nor the weights copied.

    The same as :func:`fold_masks` of :func:`attach_masks`, without what these hold in between.

    Args:
        model: the model the plan was made on; masks that it has are folded first.
        plan: from :func:`prunekit.plan.select_weights`.
        in_place: change ``model`` itself.

    Returns:
        The plain model: a copy, or ``model``.

    Raises:
        PlanError: the plan was made for another model.
    """
    check_masks_fit(model, plan)
    model = fold_masks(model, in_place=in_place)
    with torch.no_grad():
        for weight in _planned(model, plan):
            parameter = stored_parameter(model, weight)
            gone = ~torch.from_numpy(plan.masks[weight.name].keep())
            parameter.masked_fill_(gone.to(parameter.device), 0.0)
    return model


def check_masks_fit(model: nn.Module, plan: MaskPlan) -> None:
    """Refuse a plan that was made for another model.

    Raises:
        PlanError: other names, ties or shapes of parameters.
    """
    everything = every_parameter(model)
    shapes = {weight.name: weight.shape for weight in everything}
    wrong = [name for name, mask in plan.masks.items() if shapes.get(name) != mask.shape]
    if wrong or everything.fingerprint != plan.fingerprint:
        raise PlanError(
            f"The mask plan was made for a model with fingerprint {plan.fingerprint[:12]}, this one has "
            f"{everything.fingerprint[:12]}"
            + (f"; it lacks or differs in {', '.join(wrong[:5])}" if wrong else ""),
            expected="the plan of a model with the same parameter names, ties and shapes",
            remedy="Select the weights on this model",
        )


def refuse_masks(model: nn.Module) -> None:
    """Refuse to cut a model with masks: the bits of a mask cannot be narrowed with the weight.

    Raises:
        PlanError: there is a mask.
    """
    found = next(masked_places(model), None)
    if found is not None:
        raise PlanError(
            f"'{found[1]}' of a {type(found[0]).__name__} is masked",
            expected="a model without masks on single weights",
            remedy="Make them permanent first: model = fold_masks(model)",
        )


def masked_places(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every module with a masked parameter, and the parameter's name in it."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            chains = module.parametrizations
            assert isinstance(chains, nn.ModuleDict)
            for leaf in list(chains):
                if any(isinstance(part, WeightMask) for part in _chain(module, leaf)):
                    yield module, leaf


def _planned(model: nn.Module, plan: MaskPlan) -> list[WeightTensor]:
    return [weight for weight in every_parameter(model) if weight.name in plan.masks]


def _holder(model: nn.Module, place: str) -> tuple[nn.Module, str]:
    path, _, leaf = place.rpartition(".")
    return model.get_submodule(path), leaf


def _chain(module: nn.Module, leaf: str) -> parametrize.ParametrizationList:
    assert isinstance(module.parametrizations, nn.ModuleDict)
    chain = module.parametrizations[leaf]
    assert isinstance(chain, parametrize.ParametrizationList)
    return chain


def _zeroed(chain: parametrize.ParametrizationList) -> tuple[WeightMask, nn.Parameter]:
    """The mask and the parameter under it, with zeros where nothing is kept."""
    mask, original = chain[0], chain.original
    assert isinstance(mask, WeightMask)
    assert isinstance(original, nn.Parameter)
    with torch.no_grad():
        original.masked_fill_(~mask.keep, 0.0)
    return mask, original


def _order_of(module: nn.Module) -> tuple[str, ...]:
    """Names of a module's parameters, in the order that they had before any was masked."""
    if parametrize.is_parametrized(module):
        for leaf in module.parametrizations:  # type: ignore[union-attr]
            for part in _chain(module, leaf):
                if isinstance(part, WeightMask):
                    return part.order
    return tuple(module._parameters)


def _register(holder: nn.Module, leaf: str, mask: WeightMask, weight: WeightTensor) -> None:
    """Put the mask on; the parameter keeps its gradient accumulator, with what hooks it, as its identity.

    PyTorch calls ``set_`` on the tensor that it registers, which takes the accumulator away from those who
    hold it (DistributedDataParallel). So it registers a stand-in with the same values.
    """
    _own_class(holder)
    parameter = holder._parameters[leaf]
    assert parameter is not None
    holder._parameters[leaf] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    try:
        parametrize.register_parametrization(holder, leaf, mask)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        holder._parameters[leaf] = parameter
        raise PlanError(
            f"A {type(holder).__name__} does not let '{leaf}' be masked: {error}",
            where=f"weight '{weight.name}'",
            remedy="Leave it out with find_weights(model, ignore=...)",
        ) from error
    chain = _chain(holder, leaf)
    chain.original = parameter
    _zeroed(chain)
    if isinstance(holder, nn.RNNBase):
        type(holder).__deepcopy__ = _copied_recurrent  # type: ignore[attr-defined]


def _copied_recurrent(self: nn.RNNBase, memo: dict[int, Any]) -> nn.RNNBase:
    """A deep copy of a masked recurrent module.

    Such a module holds the tensors of its last call in ``_flat_weights``; masked ones have a gradient
    history, and those torch does not copy. The copy makes its own.
    """
    made: nn.RNNBase = self.__new__(type(self))
    memo[id(self)] = made
    held = ("_flat_weights", "_flat_weight_refs")
    state = {name: value for name, value in self.__dict__.items() if name not in held}
    made.__dict__ = copy.deepcopy(state, memo)
    made._flat_weights = []
    made._init_flat_weights()
    return made


def _unmask(places: list[tuple[nn.Module, str]]) -> None:
    """Give masked parameters back to their modules, with zeros where nothing is kept."""
    for holder, leaf in places:
        if not parametrize.is_parametrized(holder, leaf):
            continue
        mask, original = _zeroed(_chain(holder, leaf))
        _own_class(holder, without=leaf)
        chains = holder.parametrizations
        assert isinstance(chains, nn.ModuleDict)
        del chains[leaf]
        if not chains:
            del holder.parametrizations
            holder.__class__ = type(holder).__bases__[0]
        holder.register_parameter(leaf, original)
        _reorder(holder._parameters, mask.order)
    for holder, _ in places:
        if isinstance(holder, nn.RNNBase):
            holder._init_flat_weights()


def _reorder(parameters: dict[str, Any], order: tuple[str, ...]) -> None:
    found: Mapping[str, Any] = dict(parameters)
    parameters.clear()
    parameters.update({name: found[name] for name in order if name in found})
    parameters.update({name: value for name, value in found.items() if name not in order})


def _own_class(holder: nn.Module, without: str = "") -> None:
    """Give a parametrized module a class of its own.

    A deep copy shares the class that torch made for the module it was copied from, and with it the properties
    that stand for its parameters: adding or deleting one would change the other model.
    """
    if not parametrize.is_parametrized(holder):
        return
    shared = type(holder)
    own = {
        name: value
        for name, value in vars(shared).items()
        if name not in ("__dict__", "__weakref__", without)
    }
    holder.__class__ = type(shared.__name__, shared.__bases__, own)  # type: ignore[assignment]
