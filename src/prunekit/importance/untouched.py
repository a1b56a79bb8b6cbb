"""Borrowing a model for calibration and giving it back exactly as it was."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module, differentiate: Iterable[Tensor]) -> Iterator[None]:
    """Put a model into evaluation mode with gradients, and restore everything on the way out.

    Restored, also after an error: the training mode of every submodule, ``requires_grad`` of the parameters,
    every buffer (its values and the object itself), and the random state of Python, NumPy and torch.
    Gradients are the caller's affair: ``torch.autograd.grad`` never writes to ``.grad``.

    Args:
        model: the model to borrow.
        differentiate: the parameters whose gradient is wanted; frozen ones are enabled meanwhile.
    """
    parameters = list(differentiate)
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  user code may use the global state
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        try:
            model.eval()
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for module, training in modes:
                module.training = training
            for module, named in buffers:
                module._buffers.clear()
                module._buffers.update(named)
            with torch.no_grad():
                for buffer, value in values:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002  restores what was found
