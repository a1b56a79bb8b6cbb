"""What an optimizer keeps for one parameter, narrowed like the parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunekit.ranks import is_parted

Narrow = Callable[[Tensor], Tensor]
"""From a tensor of a parameter's dense shape to what is left of it."""

MEANS_OVER = {"exp_avg_sq_row": -1, "exp_avg_sq_col": -2}
"""Dimensions that Adafactor of transformers and fairseq takes means over, and drops."""

POWERS: dict[type[torch.optim.Optimizer], dict[str, int]] = {
    torch.optim.SGD: {"momentum_buffer": 1},
    torch.optim.Adam: {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    torch.optim.AdamW: {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    torch.optim.NAdam: {"exp_avg": 1, "exp_avg_sq": 2},
    torch.optim.RAdam: {"exp_avg": 1, "exp_avg_sq": 2},
}
"""What is a sum of gradients to which power, for the optimizers where every state tensor is one."""


def narrow_state(state: Mapping[str, Any], parameter: Tensor, narrow: Narrow) -> tuple[dict[str, Any], str]:
    """The state for what is left of a parameter, or the reason why it cannot be told.

    1. What is no tensor, and a tensor of one number, stays as it is.
    2. A tensor of the parameter's shape is narrowed like the parameter.
    3. A tensor of that shape but for dimensions of size 1, or without the dimension that :data:`MEANS_OVER`
       knows by name, holds means over those dimensions (Adafactor). It is narrowed along the others; a mean
       over a dimension that lost units still counts them. Sizes alone do not tell which dimension is missing:
       a table of 256 entries may happen to lie beside a parameter of 256 rows. Not where it is sharded.

    Args:
        state: by name, as in ``optimizer.state[parameter]``.
        parameter: of the dense model.
        narrow: takes a tensor of the parameter's shape.

    Returns:
        The new state and "", or an empty state and the reason.
    """
    found: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            if _holds_tensors(value):
                return {}, f"{name!r} is a {type(value).__name__} of tensors"
            found[name] = value
            continue
        left = _narrowed(name, value, parameter, narrow)
        if left is None:
            return {}, f"{name!r} of shape {list(value.shape)} is not shaped like {list(parameter.shape)}"
        found[name] = left
    return found, ""


def rescale_state(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, factor: Tensor
) -> tuple[dict[str, Any], str]:
    """The state that gradients with respect to ``factor * parameter`` would have left.

    ``state' = state / factor ** n`` where the state is a sum of n-th powers of gradients, since
    ``dL/d(f w) = (dL/dw) / f``.

    Args:
        state: narrowed, by name.
        optimizer: whose state it is.
        factor: float64, of the narrowed parameter's shape.

    Returns:
        The new state and "", or an empty state and the reason: it is not known how the optimizer's state
        depends on gradients.
    """
    powers = POWERS.get(type(optimizer), {})
    found: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or (value.numel() == 1 and value.shape != factor.shape):
            found[name] = value
        elif name in powers and value.shape == factor.shape:
            found[name] = (value.double() / factor.to(value.device) ** powers[name]).to(value.dtype)
        else:
            return {}, f"the parameter was scaled, and {name!r} is not known to scale with it"
    return found, ""


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence | set) and not isinstance(value, str):
        return any(isinstance(item, Tensor) or _holds_tensors(item) for item in value)
    return False


def _narrowed(name: str, value: Tensor, parameter: Tensor, narrow: Narrow) -> Tensor | None:
    shape = parameter.shape
    if value.shape == shape:
        return narrow(value)
    if value.numel() == 1:
        return value
    if is_parted(value):
        return None
    if value.ndim == len(shape):
        over = [dim for dim, size in enumerate(value.shape) if size == 1 != shape[dim]]
        return _without(value, over, shape, narrow)
    dim = MEANS_OVER.get(name, 0) % max(len(shape), 1)
    if name not in MEANS_OVER or value.shape != (*shape[:dim], *shape[dim + 1 :]):
        return None
    left = _without(value.unsqueeze(dim), [dim], shape, narrow)
    return None if left is None else left.squeeze(dim)


def _without(value: Tensor, over: list[int], shape: torch.Size, narrow: Narrow) -> Tensor | None:
    """Narrowed, with size 1 along ``over``; None where what goes differs along those dimensions."""
    if any(size not in (1, shape[dim]) for dim, size in enumerate(value.shape)):
        return None
    left = narrow(value.expand(shape))
    mean = left
    for dim in over:
        mean = mean.narrow(dim, 0, 1)
    return mean.clone() if torch.equal(mean.expand_as(left).nan_to_num(), left.nan_to_num()) else None
