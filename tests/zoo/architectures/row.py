"""How a configuration of a transformers architecture is written down; torch is imported when one is built."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

SEQUENCE = 9
"""Tokens in an example, unlike every width."""

BATCH = 2


@dataclass(frozen=True)
class Draw:
    """An input tensor: its shape, batch included, and what is in it.

    Attributes:
        kind: ``ids`` whole numbers in ``[low, high)``; ``normal``; ``unit`` in ``[0, 1)``; ``ones`` whole
            ones; ``padded`` whole ones but for a zero at the end of the last example; ``flags`` all true.
        shape: batch first.
        low: smallest id.
        high: one more than the largest id.
    """

    kind: Literal["ids", "normal", "unit", "ones", "padded", "flags"]
    shape: tuple[int, ...]
    low: int = 3
    high: int = 99

    def __call__(self) -> Tensor:
        """The tensor, from torch's global generator."""
        import torch

        if self.kind == "ids":
            return torch.randint(self.low, self.high, self.shape)
        if self.kind == "normal":
            return torch.randn(self.shape)
        if self.kind == "unit":
            return torch.rand(self.shape)
        if self.kind == "flags":
            return torch.ones(self.shape, dtype=torch.bool)
        ones = torch.ones(self.shape, dtype=torch.long)
        if self.kind == "padded":
            ones[-1, -1] = 0
        return ones


@dataclass(frozen=True)
class Fixed:
    """An input tensor written out: one example, given to every example of the batch."""

    example: tuple[Any, ...]

    def __call__(self) -> Tensor:
        """``[batch, ...]``."""
        import torch

        return torch.tensor([self.example] * BATCH)


@dataclass(frozen=True)
class Refusal:
    """Why a row is expected to be refused.

    Attributes:
        error: the name of the exception.
        says: what its text contains.
    """

    error: str
    says: str


@dataclass(frozen=True, eq=False)
class Row:
    """One architecture in one small configuration.

    Attributes:
        name: of the row, as on a command line.
        family: what kind of model it is.
        architecture: the class in transformers.
        settings: of its configuration class; parts that are configurations of another type are dicts with a
            ``model_type``.
        inputs: by keyword; what is neither a :class:`Draw` nor a :class:`Fixed` is given as it is.
        refused: expected where the row is known to be refused.
        trains: the dense model gets through a step of training on these inputs.
    """

    name: str
    family: str
    architecture: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    refused: Refusal | None = None
    trains: bool = True

    def model(self) -> nn.Module:
        """A new model in evaluation mode, the same each time, with norms unlike their first values."""
        import torch

        with _quiet():
            import transformers

            torch.manual_seed(0)
            architecture = getattr(transformers, self.architecture)
            model = architecture(architecture.config_class(**_configurations(self.settings)))
        _as_trained(model)
        return model.eval()

    def example(self) -> dict[str, Any]:
        """The example inputs, the same each time."""
        import torch

        torch.manual_seed(1)
        return {
            name: value() if isinstance(value, Draw | Fixed) else value for name, value in self.inputs.items()
        }


def ids(length: int = SEQUENCE, *, low: int = 3, high: int = 99) -> Draw:
    """One batch of tokens."""
    return Draw("ids", (BATCH, length), low, high)


def images(size: int = 32, channels: int = 3) -> Draw:
    """One batch of square images."""
    return Draw("normal", (BATCH, channels, size, size))


def normal(*shape: int) -> Draw:
    """One batch of normal numbers."""
    return Draw("normal", (BATCH, *shape))


def ones(*shape: int) -> Draw:
    """One batch of whole ones, such as a mask that leaves nothing out."""
    return Draw("ones", (BATCH, *shape))


def padded(length: int = SEQUENCE) -> Draw:
    """The attention mask of a batch whose last example is one token shorter."""
    return Draw("padded", (BATCH, length))


def _configurations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with every dict that has a ``model_type`` and a mark as a configuration of that type."""
    from transformers import AutoConfig

    made: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and "model_type" in value:
            rest = {key: part for key, part in _configurations(value).items() if key != "model_type"}
            made[name] = AutoConfig.for_model(value["model_type"], **rest)
        else:
            made[name] = value
    return made


def _as_trained(model: nn.Module) -> None:
    """Move what initialisation left constant: zeros, ones, layer scales and running statistics."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            variance = getattr(module, "running_var", None)
            if isinstance(variance, torch.Tensor):
                variance.uniform_(0.5, 1.5)
                module.running_mean.uniform_(-0.5, 0.5)  # pyright: ignore
        for parameter in model.parameters():
            if not parameter.is_floating_point() or parameter.numel() < 2:
                continue
            first = parameter.flatten()[0].item()
            if bool((parameter == first).all()):
                low, high = (0.5 * first, 1.5 * first) if first else (-0.1, 0.1)
                parameter.uniform_(min(low, high), max(low, high))


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and nothing of what transformers logs about its configurations."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
