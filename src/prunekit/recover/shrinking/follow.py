"""What trains along with a model follows its removal: optimizers with their state, moving averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunekit.errors import TrainingError
from prunekit.graph import Groups
from prunekit.plan import PruningPlan
from prunekit.ranks import is_parted, like, resharded, whole
from prunekit.recover.shrinking.state import narrow_state, rescale_state
from prunekit.surgery import Pruned, Removal, remove
from prunekit.surgery.narrow import narrow, touched
from prunekit.surgery.remove import check_fits, without_gone_groups
from prunekit.surgery.scales import attention_scales
from prunekit.types import KeepMask


@dataclass(frozen=True)
class Followed:
    """What became of an optimizer's parameters; all names are those of the dense model.

    Attributes:
        narrowed: they became smaller, and their state with them.
        gone: they went with the layers they belonged to, or no operator of the graph module reads them.
        rescaled: among those narrowed, queries and keys that took over a factor; their state lost it.
        reset: their state could not be narrowed and was dropped, with the reason.
    """

    narrowed: tuple[str, ...]
    gone: tuple[str, ...]
    rescaled: tuple[str, ...]
    reset: Mapping[str, str]


def follow(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    removal: Removal | Pruned,
    plan: PruningPlan,
    groups: Groups,
) -> Followed:
    """Let an optimizer of the dense model go on with the smaller one, in place.

    1. Every parameter is replaced by what is left of it; parameter groups keep their order and settings, one
       that loses all its parameters stays and is empty. What the optimizer did not train stays out.
    2. State is narrowed exactly like its parameter: :func:`prunekit.recover.shrinking.state.narrow_state`.
    3. State of queries and keys that a removal scaled is put in terms of the scaled weights, where that is
       exact (SGD and the Adam family), and dropped elsewhere.

    Of a model that FSDP2 shards, state that is sharded alike is gathered one tensor at a time, narrowed, and
    sharded as the smaller model's parameter is; all processes call this.

    Learning-rate schedulers and gradient scalers hold the optimizer itself and go on by themselves. Gradients
    do not follow: call this between two steps.

    Args:
        optimizer: of parameters of ``model``, with or without a step made.
        model: the dense model.
        removal: from :func:`prunekit.remove` or :func:`prunekit.prune`.
        plan: that was carried out.
        groups: that it was made on.

    Raises:
        PlanError: the plan does not belong to the model and groups.
        TrainingError: the optimizer holds parameters that are not the model's, or keeps them in places of its
            own (L-BFGS), or the removal is not that of the plan. The optimizer is as it was.
    """
    resharded(model)
    check_fits(model, plan, groups)
    chain = chained(optimizer)
    cut = _cut(model, removal, plan, groups)
    for each in chain:
        _check_held(each, cut.names, removal.model)
    lists = {id(group["params"]): group["params"] for each in chain for group in each.param_groups}
    held = list({id(parameter): parameter for params in lists.values() for parameter in params}.values())
    for parameter in held:
        cut.check(parameter)
    reset: dict[str, str] = {}
    states = [_new_state(each, cut, reset) for each in chain]
    for each, state in zip(chain, states, strict=True):
        each.state.clear()
        each.state.update(state)
    for params in lists.values():  # The same list object: an optimizer may hold it elsewhere too.
        params[:] = [heir for parameter in params if (heir := cut.heirs[id(parameter)]) is not None]
    return Followed(
        narrowed=tuple(cut.name(each) for each in held if cut.is_smaller(each)),
        gone=tuple(cut.name(each) for each in held if cut.heirs[id(each)] is None),
        rescaled=tuple(
            cut.name(each) for each in held if cut.is_scaled(each) and cut.name(each) not in reset
        ),
        reset=reset,
    )


def follow_average(
    average: AveragedModel, removal: Removal | Pruned, plan: PruningPlan, groups: Groups
) -> None:
    """Let a moving average of the dense model go on as one of the smaller model, in place.

    Its own weights are cut by the same plan; ``n_averaged`` and the averaging function stay.

    Args:
        average: of the dense model.
        removal: of the model that is averaged.
        plan: that was carried out.
        groups: that it was made on.

    Raises:
        PlanError: the plan does not belong to the averaged model.
        TrainingError: the average got another form than the model, so that the two cannot be paired; it is
            as it was.
    """
    smaller = remove(average.module, plan, groups)
    ours, theirs = (
        [(name, tensor.shape) for name, tensor in (*each.named_parameters(), *each.named_buffers())]
        for each in (smaller.model, removal.model)
    )
    if ours != theirs or smaller.scaled != removal.scaled:
        raise TrainingError(
            f"the average became {smaller.form} ({smaller.reason}), and has other tensors than the model",
            expected=f"the same tensors as the model, which is {removal.form}",
            remedy="Start a new average: AveragedModel(removal.model)",
        )
    average.module = smaller.model


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Make sure that an optimizer trains this model and nothing else.

    An optimizer that is left behind by a removal raises no error of its own: it steps through parameters that
    get no gradient any more.

    Raises:
        TrainingError: it holds a tensor that is no parameter of the model.
    """
    own = {id(parameter) for parameter in model.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    stale = [parameter for parameter in held if id(parameter) not in own]
    if stale:
        raise TrainingError(
            f"{len(stale)} of the {len(held)} parameters of {type(optimizer).__name__} are not the "
            f"model's, the first of shape {list(stale[0].shape)}",
            expected="an optimizer of this very model",
            remedy="Call follow() after a removal, or make a new optimizer",
        )


def chained(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """An optimizer and those that it wraps, such as that of an ``AcceleratedOptimizer``."""
    found = [optimizer]
    while isinstance(inner := vars(found[-1]).get("optimizer"), torch.optim.Optimizer):
        found.append(inner)
    return found


@dataclass(frozen=True)
class _Cut:
    """What the plan leaves of every parameter of the dense model, by the parameter's id.

    Attributes:
        groups: of the dense model.
        keep: by group name, ``[units]`` bool; of widths only.
        names: all names of each parameter.
        heirs: what became of each; None where it went.
        losing: the name under which the groups know a parameter that loses units.
        factors: of parameters that the removal scaled, by that name.
    """

    groups: Groups
    keep: KeepMask
    names: Mapping[int, tuple[str, ...]]
    heirs: Mapping[int, nn.Parameter | None]
    losing: Mapping[int, str]
    factors: Mapping[str, Tensor]

    def name(self, parameter: Tensor) -> str:
        return self.names[id(parameter)][0]

    def is_smaller(self, parameter: Tensor) -> bool:
        heir = self.heirs[id(parameter)]
        return heir is not None and heir.shape != parameter.shape

    def is_scaled(self, parameter: Tensor) -> bool:
        return self.heirs[id(parameter)] is not None and self.losing.get(id(parameter)) in self.factors

    def narrowed(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        """What is left of a tensor of the parameter's shape."""
        name = self.losing.get(id(parameter))
        if name is None:
            return tensor
        left = narrow(self.groups, name, whole(tensor), self.keep)
        heir = self.heirs[id(parameter)]
        return like(left, heir) if is_parted(tensor) and heir is not None else left

    def check(self, parameter: Tensor) -> None:
        heir = self.heirs[id(parameter)]
        name = self.losing.get(id(parameter))
        looks = torch.empty(parameter.shape, device="meta")
        expected = (looks if name is None else narrow(self.groups, name, looks, self.keep)).shape
        if heir is not None and heir.shape != expected:
            raise TrainingError(
                f"it has the shape {list(heir.shape)} in the smaller model, not {list(expected)} as planned",
                expected="the removal that carried out this plan",
                where=f"parameter {self.name(parameter)!r}",
            )


def _cut(model: nn.Module, removal: Removal | Pruned, plan: PruningPlan, groups: Groups) -> _Cut:
    kept = without_gone_groups(plan.keep_mask(), groups)
    keep = {name: mask for name, mask in kept.items() if not groups.whole(name).is_depth}
    names: dict[int, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = (*names.get(id(parameter), ()), name)
    left = {
        removal.moved.get(name, name): parameter
        for name, parameter in removal.model.named_parameters(remove_duplicate=False)
    }
    losing = set(touched(groups, keep))
    scaled = set(removal.scaled)
    return _Cut(
        groups=groups,
        keep=keep,
        names=names,
        heirs={key: next((left[name] for name in own if name in left), None) for key, own in names.items()},
        losing={key: name for key, own in names.items() for name in own if name in losing},
        factors={
            name: factor
            for name, factor in (attention_scales(groups, keep) if scaled else {}).items()
            if name in scaled
        },
    )


def _new_state(optimizer: torch.optim.Optimizer, cut: _Cut, reset: dict[str, str]) -> dict[Any, Any]:
    """The state of what is left, by its parameters; why state was dropped goes to ``reset``."""
    found: dict[Any, Any] = {}
    for parameter, state in optimizer.state.items():
        heir = cut.heirs[id(parameter)] if isinstance(parameter, Tensor) else None
        if not isinstance(parameter, Tensor):
            found[parameter] = state
        elif heir is not None:
            left, problem = dict(state), ""
            if id(parameter) in cut.losing:
                left, problem = narrow_state(state, parameter, partial(cut.narrowed, parameter))
            if cut.is_scaled(parameter) and not problem:
                left, problem = rescale_state(left, optimizer, cut.factors[cut.losing[id(parameter)]])
            if problem:
                reset[cut.name(parameter)] = problem
            else:
                found[heir] = left
    return found


def _check_held(
    optimizer: torch.optim.Optimizer, dense: Mapping[int, tuple[str, ...]], smaller: nn.Module
) -> None:
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = [parameter for parameter in held if id(parameter) not in dense]
    if strangers:
        theirs = {id(parameter) for parameter in smaller.parameters()}
        if all(id(parameter) in theirs for parameter in strangers):
            raise TrainingError(
                "the optimizer holds the smaller model's parameters already",
                expected="an optimizer of the dense model",
                remedy="Call follow() once for each optimizer and removal",
            )
        raise TrainingError(
            f"{len(strangers)} of the {len(held)} parameters of {type(optimizer).__name__} are not the "
            f"model's, the first of shape {list(strangers[0].shape)}",
            expected="an optimizer whose parameters are all parameters of the dense model",
            remedy="Give follow() the model that the optimizer was made for, unwrapped (model.module)",
        )
    elsewhere = [
        name
        for name, value in vars(optimizer).items()
        if name not in ("param_groups", "state", "optimizer")
        and any(id(tensor) in dense for tensor in _tensors_in(value))
    ]
    stray = [key for key in optimizer.state if isinstance(key, Tensor) and id(key) not in dense]
    if elsewhere or stray:
        where = f"attribute {elsewhere[0]!r}" if elsewhere else "state"
        raise TrainingError(
            f"{type(optimizer).__name__} keeps parameters in its {where}, where they cannot be followed",
            expected="an optimizer whose parameters are in its param_groups only",
            remedy="Make a new optimizer for the smaller model",
        )


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors_in(key)
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors_in(item)
