"""The models whose speed is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import assets

CHANNELS = ("channel", "layer")
TRANSFORMER = ("head", "neuron", "layer")
DECODER = ("head_group", *TRANSFORMER)
"""With the heads of keys and values, which the cache consists of."""


@dataclass(frozen=True)
class Subject:
    """A model with its example inputs.

    Attributes:
        model: in evaluation mode.
        args: positional inputs, two examples.
        kwargs: keyword inputs.
        granularity: the kinds of units that may go.
        weights: ``random`` where only speed is in question, else ``trained``.
    """

    model: nn.Module
    args: tuple[Any, ...]
    granularity: tuple[str, ...]
    weights: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def _resnet50() -> Subject:
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(num_labels=1000))
    return Subject(model.eval(), (torch.randn(2, 3, 224, 224),), CHANNELS, "random")


def _mobilenet_v2() -> Subject:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    model = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000))
    return Subject(model.eval(), (torch.randn(2, 3, 224, 224),), CHANNELS, "random")


def _vit_small() -> Subject:
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    model = ViTForImageClassification(ViTConfig(**small, num_labels=1000))
    return Subject(model.eval(), (torch.randn(2, 3, 224, 224),), TRANSFORMER, "random")


def _efficientnet_lite0() -> Subject:
    model = assets.load("efficientnet-lite0")
    return Subject(model.eval(), (torch.randn(2, 3, 224, 224),), CHANNELS, "trained")


def _minilm() -> Subject:
    model = assets.load("minilm").model
    tokens = {
        "input_ids": torch.randint(1000, 20000, (2, 128)),
        "attention_mask": torch.ones(2, 128, dtype=torch.int64),
    }
    return Subject(model.eval(), (), TRANSFORMER, "trained", tokens)


def _smollm2_prefill() -> Subject:
    model = assets.load("smollm2-135m").model
    tokens = {"input_ids": torch.randint(0, 40000, (2, 256)), "use_cache": False, "logits_to_keep": 1}
    return Subject(model.eval(), (), TRANSFORMER, "trained", tokens)


def _smollm2_decode() -> Subject:
    from transformers import DynamicCache

    model = assets.load("smollm2-135m").model
    config = model.config
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        keys, values = torch.randn(2, 2, config.num_key_value_heads, 256, config.head_dim)
        cache.update(keys, values, layer)
    step = {"input_ids": torch.randint(0, 40000, (2, 1)), "past_key_values": cache, "use_cache": True}
    return Subject(model.eval(), (), DECODER, "trained", step)


class Scorer(nn.Module):
    """A decoder of transformers that gives its logits alone, ``[batch, tokens, vocabulary]``."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Of token ids ``[batch, tokens]``."""
        return self.decoder(input_ids=input_ids, use_cache=False).logits


def smollm2_scorer() -> Subject:
    """With logits after every token, as a loss on text needs them; not one of the grid's."""
    model = Scorer(assets.load("smollm2-135m").model)
    return Subject(model.eval(), (torch.randint(0, 40000, (2, 256)),), TRANSFORMER, "trained")


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "ResNet-50": _resnet50,
    "MobileNetV2": _mobilenet_v2,
    "ViT-small": _vit_small,
    "EfficientNet-Lite0": _efficientnet_lite0,
    "MiniLM, 128 tokens": _minilm,
    "SmolLM2-135M, prefill 256": _smollm2_prefill,
    "SmolLM2-135M, decode at 256": _smollm2_decode,
}
"""By name, how each is made."""
