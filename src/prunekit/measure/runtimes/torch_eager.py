"""PyTorch as it is, operator by operator, on the CPU and on CUDA."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.errors import MeasurementError
from prunekit.measure.environment import check_threads
from prunekit.measure.runtimes.runner import Device, Precision, Runtime, first_line

ModuleInputs = tuple[tuple[Any, ...], Mapping[str, Any]]


class TorchRunner:
    """A module with the inputs it is called on.

    The number of threads is a setting of the whole process in PyTorch, so every call sets its own and puts
    the former back, outside of which nothing of it is seen. Setting it starts a pool of threads anew (0.06
    ms at best, and milliseconds on a busy machine), so whoever times many calls enters :meth:`hold` before.

    Attributes:
        name: the module's class.
        options: how it is called, plain JSON for the record.
        inputs: ``(args, kwargs)`` on the device; what a call runs on.
    """

    def __init__(
        self,
        name: str,
        call: Callable[..., Any],
        inputs: ModuleInputs,
        *,
        threads: int,
        device: Device,
        precision: Precision,
        options: Mapping[str, Any],
    ) -> None:
        self.name = name
        self._call, self._threads, self._device, self._precision = call, threads, device, precision
        self.inputs = self._placed(inputs)
        self._holds_objects = _holds_objects(pytree.tree_structure(self.inputs))
        before = [count.clone() for count in self._counts()]
        self.options = {
            "runtime": "torch",
            "version": torch.__version__,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "precision": precision,
            "num_threads": threads,
            "num_interop_threads": torch.get_num_interop_threads(),
            "inference_mode": True,
            **options,
        }
        self.outputs()
        if not all(map(torch.equal, before, self._counts())):
            raise MeasurementError(
                "The module counts on in its inputs, so that no two calls of it are the same",
                expected="inputs that a call leaves as they are, such as a DynamicCache",
                where=name,
                remedy="Give a cache that is not written in place, or measure it on onnxruntime or openvino",
            )

    def __call__(self) -> None:
        """Run once, and on CUDA wait for the end; the outputs are dropped."""
        args, kwargs = self._given()
        with threads_of(self._threads), torch.inference_mode():
            self._call(*args, **kwargs)
            if self._device == "cuda":
                torch.cuda.synchronize()

    def hold(self) -> AbstractContextManager[None]:
        """Its number of threads, for as long as it is called again and again."""
        return threads_of(self._threads)

    def outputs(self, inputs: ModuleInputs | None = None) -> dict[str, np.ndarray]:
        """Run once and keep the tensors of the output, by their place in it; bfloat16 as float32.

        Raises:
            MeasurementError: the module failed on the inputs.
        """
        args, kwargs = self._given() if inputs is None else self._placed(inputs)
        try:
            with threads_of(self._threads), torch.inference_mode():
                given = self._call(*args, **kwargs)
        except MeasurementError:
            raise
        except Exception as error:  # The module is the user's own code.
            raise MeasurementError(
                f"The module could not be run in {self._precision} on {self._device}: "
                f"{type(error).__name__}: {first_line(error)}",
                where=self.name,
                remedy="Call it once by hand on the same inputs; a module that writes its own constants may "
                "not follow another precision or device",
            ) from error
        leaves = pytree.tree_flatten_with_path(given)[0]
        return {
            f"output{pytree.keystr(path)}": _array(leaf) for path, leaf in leaves if isinstance(leaf, Tensor)
        }

    def _given(self) -> ModuleInputs:
        """Its inputs for one call: the same tensors in new objects, since a cache grows with every call."""
        return pytree.tree_map(lambda leaf: leaf, self.inputs) if self._holds_objects else self.inputs

    def _counts(self) -> list[Tensor]:
        """The inputs of integers, where they lie in objects: what such an object may count in."""
        leaves = pytree.tree_leaves(self.inputs) if self._holds_objects else []
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_floating_point()]

    def _placed(self, inputs: ModuleInputs) -> ModuleInputs:
        """The inputs on the device, floating ones in the precision that is computed in."""

        def place(tensor: Tensor) -> Tensor:
            lower = self._precision == "bf16" and tensor.is_floating_point()
            return tensor.detach().to(self._device, torch.bfloat16 if lower else None)

        args, kwargs = inputs
        return pytree.tree_map_only(Tensor, place, (tuple(args), dict(kwargs)))


def _holds_objects(structure: pytree.TreeSpec) -> bool:
    """Inputs are nested in more than tuples, lists and dicts: in objects that a module may change."""
    inside = structure.type is not None and structure.type not in pytree.BUILTIN_TYPES
    return inside or any(map(_holds_objects, structure.children()))


@contextmanager
def threads_of(threads: int) -> Iterator[None]:
    """PyTorch's threads within an operator, for the time of one call.

    Raises:
        MeasurementError: PyTorch did not take the number.
    """
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        found = torch.get_num_threads()
        if found != threads:
            raise MeasurementError(
                f"PyTorch computes with {found} threads, and {threads} were asked for",
                remedy="Let nothing else set the number of threads while a model is measured",
            )
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


def placed_module(model: nn.Module, *, device: Device, precision: Precision) -> nn.Module:
    """The module itself, or a copy where it must go to another device or precision.

    ``bf16`` holds the weights in bfloat16: autocast would convert them anew in every call, which nobody
    does who serves.

    Raises:
        MeasurementError: it is in training mode.
    """
    if model.training:
        raise MeasurementError(
            "The module is in training mode",
            expected="a module in evaluation mode, as it is served",
            where=type(model).__name__,
            remedy="Call its eval() first",
        )
    tensors = [*model.parameters(), *model.buffers()]
    away = any(tensor.device.type != device for tensor in tensors)
    if precision == "bf16":
        return copy.deepcopy(model).to(device=device, dtype=torch.bfloat16)
    return copy.deepcopy(model).to(device=device) if away else model


def _array(tensor: Tensor) -> np.ndarray:
    wide = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return wide.cpu().numpy()


def _open(
    model: nn.Module, inputs: ModuleInputs, *, threads: int, device: Device, precision: Precision
) -> TorchRunner:
    check_threads(threads)
    module = placed_module(model, device=device, precision=precision)
    return TorchRunner(
        type(model).__name__,
        module,
        inputs,
        threads=threads,
        device=device,
        precision=precision,
        options={"mode": "eager"},
    )


def torch_lacks(device: Device, precision: Precision) -> str:
    """What PyTorch lacks here: a GPU, or one that computes in bfloat16."""
    if device == "cuda" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU here"
    if device == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported():
        return f"{torch.cuda.get_device_name()} does not compute in bfloat16"
    return ""


TORCH_PRECISIONS: Mapping[Device, tuple[Precision, ...]] = {
    "cpu": ("fp32", "bf16", "int8"),
    "cuda": ("fp32", "bf16", "int8"),
}

TORCH_EAGER = Runtime(
    name="torch_eager",
    package="torch",
    install="prunekit",
    takes="module",
    precisions=TORCH_PRECISIONS,
    lacks=torch_lacks,
    open=_open,
)
