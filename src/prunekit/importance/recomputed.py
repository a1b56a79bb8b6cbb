"""Weights that a module computes from others before each call, so that a mask on one of them is undone."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def computed_by(module: nn.Module, is_mask: type) -> dict[str, str]:
    """The module's own tensors whose values are computed from others before each call, and by what.

    Both what is computed and, where torch keeps them in the module itself, the parameters that it is
    computed from (``weight_g`` and ``weight_v`` of a weight norm).

    Args:
        module: the module that holds them.
        is_mask: the protocol of parametrizations that only set weights to zero, which do not count.
    """
    found: dict[str, str] = {}
    if parametrize.is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        for leaf, chain in module.parametrizations.items():
            assert isinstance(chain, parametrize.ParametrizationList)
            if not (len(chain) == 1 and isinstance(chain[0], is_mask)):
                found[leaf] = " and ".join(type(part).__name__ for part in chain)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            found |= dict.fromkeys((hook.name, f"{hook.name}_g", f"{hook.name}_v"), "weight_norm")
        elif isinstance(hook, SpectralNorm):
            found |= dict.fromkeys((hook.name, f"{hook.name}_orig"), "spectral_norm")
        elif isinstance(hook, BasePruningMethod):
            name = hook._tensor_name
            found |= dict.fromkeys((name, f"{name}_orig"), f"torch.nn.utils.prune ({type(hook).__name__})")
    return found
