"""PyTorch compiled by ``torch.compile``, on the CPU and on CUDA."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from prunekit.errors import MeasurementError
from prunekit.measure.environment import check_threads
from prunekit.measure.runtimes.runner import Device, Precision, Runtime, first_line
from prunekit.measure.runtimes.torch_eager import (
    TORCH_PRECISIONS,
    ModuleInputs,
    TorchRunner,
    placed_module,
    torch_lacks,
)

MOST_VARIANTS = 1024
"""How many modules of one class may be compiled in one process; PyTorch gives up silently after eight."""


def _open(
    model: nn.Module, inputs: ModuleInputs, *, threads: int, device: Device, precision: Precision
) -> TorchRunner:
    """Compile for the shapes of the inputs, in the default mode, before the runner is given.

    Raises:
        MeasurementError: it cannot be compiled, or a second call would compile again.
    """
    check_threads(threads)
    module = placed_module(model, device=device, precision=precision)
    limits = torch._dynamo.config.patch(  # pyright: ignore[reportAttributeAccessIssue]
        recompile_limit=MOST_VARIANTS, accumulated_recompile_limit=MOST_VARIANTS
    )
    try:
        with limits, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The compiler's, about itself.
            compiled = torch.compile(module, dynamic=False)
            runner = TorchRunner(
                type(model).__name__,
                compiled,
                inputs,
                threads=threads,
                device=device,
                precision=precision,
                options={"mode": "compile", "compile_mode": "default", "dynamic": False},
            )
        with torch.compiler.set_stance("fail_on_recompile"):
            runner()
    except Exception as error:  # The compiler's own, the C++ compiler's, the module's.
        raise MeasurementError(
            f"torch.compile could not compile the module: {first_line(error)}",
            where=type(model).__name__,
            remedy="On the CPU it needs a C++ compiler; measure on torch_eager to see whether the module "
            "runs at all",
        ) from error
    return runner


TORCH_COMPILE = Runtime(
    name="torch_compile",
    package="torch",
    install="prunekit",
    takes="module",
    precisions=TORCH_PRECISIONS,
    lacks=torch_lacks,
    open=_open,
)
