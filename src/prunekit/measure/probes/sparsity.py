"""Which zeros a runtime turns into speed: each sparse format against its dense counterpart."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import MeasurementError
from prunekit.measure.probes.bench import Bench
from prunekit.measure.probes.verdict import Verdict, judge
from prunekit.measure.probes.weights import PATTERNS, Weight, blocks, random_weight, two_of_four, unstructured
from prunekit.measure.runtimes import Device, TargetRunner
from prunekit.types import Speedup

ROWS = 128
SIZE = 512
CHANNELS = 64

Pair = tuple[TargetRunner, TargetRunner]


@dataclass(frozen=True)
class SparseFormat:
    """One way of having zeros, on one runtime.

    Attributes:
        runtime: its name in a target.
        device: ``cpu`` or ``cuda``.
        operator: ``MatMul`` or ``Conv``.
        zeros: where the zeros are.
        stored: what the runtime is given: ``dense`` (the zeros are in the weights as any other value) or
            the name of a sparse format.
        speedup: of the zeros over the same operator without them, in pairs; None where it did not run.
        verdict: what the interval lets one say; None where it did not run.
        reason: why it did not run; "" where it did.
    """

    runtime: str
    device: Device
    operator: str
    zeros: str
    stored: str
    speedup: Speedup | None
    verdict: Verdict | None
    reason: str = ""


Probe = tuple[str, str, str, Callable[[Bench], Pair]]
"""Operator, zeros, stored, and what opens the dense and the sparse runner."""


def measure_sparsity(bench: Bench) -> tuple[SparseFormat, ...]:
    """Time every format that the runtime may have against its dense counterpart, in pairs."""
    return tuple(_measured(bench, probe) for probe in probes_of(bench))


def probes_of(bench: Bench) -> Iterator[Probe]:
    """The formats that are tried on a runtime."""
    if bench.target.device == "cuda":
        yield "MatMul", "2:4", "semi-structured", _semi_structured
        return
    for zeros, pattern in PATTERNS.items():
        yield "MatMul", zeros, "dense", _matmul_with(pattern)
    yield "Conv", "unstructured 90 %", "dense", _conv
    yield from MORE.get(bench.target.runtime, ())


def _measured(bench: Bench, probe: Probe) -> SparseFormat:
    operator, zeros, stored, make = probe
    row = partial(
        SparseFormat,
        runtime=bench.target.runtime,
        device=bench.target.device,
        operator=operator,
        zeros=zeros,
        stored=stored,
    )
    try:
        speedup = bench.compare(*make(bench)).speedup
    except MeasurementError as error:
        return row(speedup=None, verdict=None, reason=error.given)
    return row(speedup=speedup, verdict=judge(speedup))


def _matmul_with(pattern: Callable[[Weight], Weight]) -> Callable[[Bench], Pair]:
    def open_pair(bench: Bench) -> Pair:
        weight = random_weight((SIZE, SIZE))
        return bench.matmul(weight, ROWS), bench.matmul(pattern(weight), ROWS)

    return open_pair


def _conv(bench: Bench) -> Pair:
    weight = random_weight((CHANNELS * 9, CHANNELS))
    return bench.conv(weight), bench.conv(unstructured(weight))


DECOMPRESSION: Mapping[str, str] = {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": "0.5"}
"""Weights of int8 products with at least this share of zeros are stored packed; OpenVINO does so with AMX."""


def _decompressed(bench: Bench) -> Pair:
    """One row, where reading the weights is what takes the time."""
    weight = unstructured(random_weight((4 * SIZE, 4 * SIZE)))
    dense = bench.matmul(weight, 1, "int8")
    return dense, bench.matmul(weight, 1, "int8", DECOMPRESSION)


class _Sparse(nn.Module):
    """``x @ weight`` with the weight, transposed, in a sparse layout."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.weight, x.t()).t()


def _compressed_rows(bench: Bench) -> Pair:
    weight = random_weight((SIZE, SIZE))
    return _against_dense(bench, weight, _transposed(unstructured(weight)).to_sparse_csr)


def _compressed_blocks(bench: Bench) -> Pair:
    weight = random_weight((SIZE, SIZE))
    tensor = _transposed(blocks(weight))
    return _against_dense(bench, weight, lambda: tensor.to_sparse_bsr((16, 16)))


def _against_dense(bench: Bench, weight: Weight, make: Callable[[], Tensor]) -> Pair:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls its sparse layouts a beta.
        module = _Sparse(make())
        x = torch.from_numpy(np.random.default_rng(1).standard_normal((ROWS, SIZE), dtype=np.float32))
        return bench.matmul(weight, ROWS), bench.module(module, x)


def _transposed(weight: Weight) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(weight.T))


class _Linear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


def _semi_structured(bench: Bench) -> Pair:
    """In bfloat16, on a product large enough to fill a GPU; 2:4 needs compute capability 8.0."""
    size = 8192
    weight = random_weight((size, size))
    x = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    plain, pruned = (
        _transposed(values).to("cuda", torch.bfloat16) for values in (weight, two_of_four(weight))
    )
    try:
        packed = torch.sparse.to_sparse_semi_structured(pruned)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise MeasurementError(f"PyTorch does not pack 2:4 weights here: {error}") from error
    return bench.module(_Linear(plain), x), bench.module(_Linear(packed), x)


MORE: Mapping[str, tuple[Probe, ...]] = {
    "openvino": (("MatMul", "unstructured 90 %", "int8, sparse weights decompression", _decompressed),),
    "torch_eager": (
        ("MatMul", "unstructured 90 %", "CSR", _compressed_rows),
        ("MatMul", "blocks 16x16, 90 %", "BSR", _compressed_blocks),
    ),
}
"""Formats that one runtime has, by runtime."""
