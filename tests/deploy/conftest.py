"""Small real networks, as users write them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.deploy import Exported, export_onnx


class Residual(nn.Module):
    """A residual network with a grouped convolution; ``width`` is the width of its blocks."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, width, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.up = nn.Conv2d(width, 8, 1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        x = x + self.up(F.relu(self.norm(self.down(x))))
        return self.head(self.dropout(x.mean((2, 3))))


@dataclass
class Found:
    logits: Tensor
    extra: dict
    loss: Tensor | None = None


class Nested(nn.Module):
    """Inputs and outputs in every shape that pytrees have, besides keywords of any name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, pair, *, scale=1.0, mask=None, **more):
        output = self.layer(x) * scale + pair["a"] + pair["b"][0]
        if mask is not None:
            output = output * mask
        for value in more.values():
            output = output + value
        return Found(logits=output, extra={"sum": output.sum(1), "same": (output, x, 3)})


def build_residual(width: int = 8, seed: int = 0) -> Residual:
    torch.manual_seed(seed)
    model = Residual(width)
    for norm in (model.stem_norm, model.norm):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model


def build_nested_inputs(size: int) -> tuple[tuple, dict]:
    draw = torch.Generator().manual_seed(size)
    x, a, b, mask, bias = (torch.randn(size, 4, generator=draw) for _ in range(5))
    return (x, {"a": a, "b": [b]}), {"bias": bias, "mask": mask, "scale": 2.0}


def draw_images(size: int) -> Tensor:
    return torch.randn(size, 1, 6, 6, generator=torch.Generator().manual_seed(size))


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> dict[int, Exported]:
    """The residual network by width, and the file it was exported to; nobody changes either."""
    directory = tmp_path_factory.mktemp("exported")
    models = {width: build_residual(width) for width in (8, 4)}
    return {
        width: Exported(model, export_onnx(model, (draw_images(2),), None, directory / f"{width}.onnx"))
        for width, model in models.items()
    }


@pytest.fixture
def residual():
    return build_residual


@pytest.fixture
def nested():
    torch.manual_seed(0)
    return Nested()


@pytest.fixture
def nested_inputs():
    return build_nested_inputs


@pytest.fixture
def images():
    return draw_images
