"""The bench on which a machine is described: one runtime that opens single operators."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.measure.latency import LatencyComparison, compare_latency
from prunekit.measure.probes.graphs import KERNEL, save_conv, save_matmul, save_quantized_matmul
from prunekit.measure.probes.weights import Weight
from prunekit.measure.runtimes import Precision, Runner, TargetRunner, held, open_openvino
from prunekit.measure.target import Target, open_target

SIDE = 14
"""Height and width of what the probes convolve."""

_FILES = count()


@dataclass(frozen=True)
class Bench:
    """A runtime on a device, and how long each comparison may take.

    Attributes:
        target: with the batch and the precision left open.
        folder: where the files of the probes are kept.
        pairs: of each comparison.
        seconds: at most, of each comparison.
    """

    target: Target
    folder: Path
    pairs: int
    seconds: float

    def compare(self, dense: Runner, other: Runner) -> LatencyComparison:
        """Time two runners in pairs."""
        return compare_latency(
            dense, other, pairs=self.pairs, warmup=5, min_pairs=5, max_seconds=self.seconds
        )

    def rounds(self, runners: Sequence[Runner], rounds: int) -> npt.NDArray[np.float64]:
        """Time all runners once in every round, in an order drawn anew: ``[rounds, runners]`` in ms."""
        rng = np.random.default_rng(0)
        times = np.empty((rounds, len(runners)))
        with held(*runners):
            for runner in runners:
                runner()
            for spent in times:
                for place in rng.permutation(len(runners)).tolist():
                    begin = time.perf_counter_ns()
                    runners[place]()
                    spent[place] = (time.perf_counter_ns() - begin) / 1e6
        return times

    def matmul(
        self,
        weight: Weight,
        rows: int,
        precision: Precision = "fp32",
        options: Mapping[str, str] | None = None,
    ) -> TargetRunner:
        """Open ``x @ weight`` with x ``[rows, fan_in]``."""
        x = np.random.default_rng(1).standard_normal((rows, weight.shape[0]), dtype=np.float32)
        save = save_quantized_matmul if precision == "int8" else save_matmul
        make = _Int8 if precision == "int8" else _MatMul
        if precision == "int8" and self._takes_modules:
            x = np.clip(np.round(x * 32), -128, 127).astype(np.int8)
        return self._open(save, make, weight, x, precision, options)

    def conv(self, weight: Weight) -> TargetRunner:
        """Open a convolution of 3 x 3 with weight ``[in * 9, out]`` on x ``[1, in, 14, 14]``."""
        shape = (1, weight.shape[0] // KERNEL**2, SIDE, SIDE)
        x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
        return self._open(save_conv, _Conv, weight, x, "fp32", None)

    def module(self, module: nn.Module, x: Tensor, precision: Precision = "fp32") -> TargetRunner:
        """Open a module of one's own on this runtime, which is one of PyTorch's."""
        target = replace(self.target, batch=x.shape[0], precision=precision)
        return open_target(target, module.eval(), ((x,), {}))

    @property
    def _takes_modules(self) -> bool:
        return self.target.runtime.startswith("torch")

    def _open(
        self,
        save: Callable[[Path, Weight], Path],
        make: Callable[[Weight], nn.Module],
        weight: Weight,
        x: np.ndarray,
        precision: Precision,
        options: Mapping[str, str] | None,
    ) -> TargetRunner:
        if self._takes_modules:
            return self.module(make(weight), torch.from_numpy(x), precision)
        path = save(self.folder / f"probe_{next(_FILES)}.onnx", weight)
        target = replace(self.target, batch=x.shape[0], precision=precision)
        if options:
            return open_openvino(
                path, {"x": x}, threads=target.threads, precision=precision, properties=options
            )
        return open_target(target, path, {"x": x})


class _MatMul(nn.Module):
    def __init__(self, weight: Weight) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(weight.T.copy()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class _Int8(nn.Module):
    """The integer product alone; PyTorch leaves scales to what stands around it."""

    weight: Tensor

    def __init__(self, weight: Weight) -> None:
        super().__init__()
        values = np.round(weight / np.abs(weight).max() * 127).astype(np.int8)
        self.register_buffer("weight", torch.from_numpy(values))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten._int_mm(x, self.weight)


class _Conv(nn.Module):
    def __init__(self, weight: Weight) -> None:
        super().__init__()
        shape = (weight.shape[1], weight.shape[0] // KERNEL**2, KERNEL, KERNEL)
        self.weight = nn.Parameter(torch.from_numpy(weight.T.copy()).reshape(shape), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)
