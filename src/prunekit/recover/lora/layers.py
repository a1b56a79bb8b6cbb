"""Layers of peft that hold a low-rank update of a weight, in which what is pruned stays zero."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.errors import UsageError

try:
    from peft import LoraConfig
    from peft.tuners.lora import layer as lora
    from transformers.pytorch_utils import Conv1D
except ImportError as error:
    raise UsageError(
        "peft is not installed, or not whole", expected="peft", remedy="pip install 'prunekit[lora]'"
    ) from error

ADAPTER = "recovery"
"""The name of the adapter in peft."""


class _InWeight:
    """``y = layer(x) + update(x)``, or ``y = f(x, W + keep * s B A)`` where a mask or the layer asks for it.

    The first form is peft's own and the cheaper one. The second is what merging gives, bit by bit: with a
    mask, and for convolutions whose dilation or padding peft's own form does not know.

    Attributes:
        keep: of the weight's shape, bool, ``True`` = may change; None = everything may.
    """

    keep: Tensor | None

    def hold(self, keep: Tensor | None) -> None:
        """Set what may change."""
        self.register_buffer("keep", keep, persistent=False)  # type: ignore[attr-defined]

    def get_delta_weight(self, adapter: str) -> Tensor:
        """``s B A`` in the shape of the weight, zero where nothing may change, whatever B A is there."""
        update: Tensor = super().get_delta_weight(adapter)  # type: ignore[misc]
        return update if self.keep is None else torch.where(self.keep, update, 0.0)

    def in_weight(self) -> bool:
        """The second form is used."""
        return self.keep is not None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer with its update."""
        if not self.in_weight() or self.disable_adapters or self.merged:  # type: ignore[attr-defined]
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        base, drop = self.base_layer, self.lora_dropout[ADAPTER]  # type: ignore[attr-defined]
        update = self.get_delta_weight(ADAPTER).to(base.weight.dtype)
        if self.training and isinstance(drop, nn.Dropout):  # type: ignore[attr-defined]
            return base(x) + self.applied(drop(x), update, None)
        return self.applied(x, base.weight + update, base.bias)

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer computes with this weight and bias."""
        raise NotImplementedError


class Linear(_InWeight, lora.Linear):
    """For ``nn.Linear``."""

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x W^T + b``."""
        return F.linear(x, weight, bias)


class TransposedLinear(_InWeight, lora.Linear):
    """For the ``Conv1D`` of transformers, whose weight is ``[inputs, outputs]``."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        config = copy.copy(config)
        config.fan_in_fan_out = True
        super().__init__(base_layer, adapter_name, config=config, is_target_conv_1d_layer=True, **kwargs)

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x W + b``."""
        return F.linear(x, weight.T, bias)


class _Convolution(_InWeight):
    def in_weight(self) -> bool:
        base = self.base_layer  # type: ignore[attr-defined]
        plain = base.padding_mode == "zeros" and set(base.dilation) == {1}
        return self.keep is not None or not plain

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.base_layer._conv_forward(x, weight, bias)  # type: ignore[attr-defined]


class Conv1d(_Convolution, lora.Conv1d):
    """For ``nn.Conv1d``."""


class Conv2d(_Convolution, lora.Conv2d):
    """For ``nn.Conv2d``."""


class Conv3d(_Convolution, lora.Conv3d):
    """For ``nn.Conv3d``."""


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    Conv1D: TransposedLinear,
}
"""Every layer that can be adapted, and what adapts it."""


def config_of(*, rank: int, alpha: float, dropout: float, pattern: str) -> LoraConfig:
    """The configuration of peft for layers whose names match a regular expression whole."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=pattern,
        bias="none",  # type: ignore[arg-type]
    )
    config._register_custom_module(KINDS)
    return config


def inject(model: nn.Module, config: LoraConfig) -> None:
    """Put the layers in, in place, and leave nothing else on the model."""
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    vars(model).pop("peft_config", None)
