"""Whether the exported models say what the PyTorch models say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.deploy.inputs import (
    Inputs,
    batch_size,
    copies,
    doubled,
    on_device,
    one_example,
    output_tensors,
)
from prunekit.deploy.onnx import OnnxExport, feed
from prunekit.errors import ExportError, MeasurementError
from prunekit.measure import open_onnx
from prunekit.workload import device_of, evaluating

TOLERANCE: Mapping[str, float] = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest allowed error over the output's largest magnitude, by the output's type.

A runtime folds batch norm into weights and adds in another order than torch. Each rounding is half a unit in
the last place (float32: 6e-8) and a deep network chains hundreds, some of which cancel large terms: errors of
1e-6 to 1e-5 are usual for float32, and a wrong graph is wrong by 1e-2 or more; 1e-4 lies between them.
"""


class HasInputs(Protocol):
    """Anything with the inputs of a call, such as a :class:`prunekit.workload.Batch`."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional inputs."""
        ...

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """Keyword inputs."""
        ...


@dataclass(frozen=True, eq=False)
class Exported:
    """A model and the file it was exported to.

    Attributes:
        model: in PyTorch.
        export: in ONNX.
    """

    model: nn.Module
    export: OnnxExport


@dataclass(frozen=True)
class Difference:
    """How far two models' outputs lie apart on the same inputs.

    Attributes:
        max_abs: largest absolute difference; None where it is not a number.
        max_rel: largest of the outputs' differences over that output's largest magnitude; None likewise.
        argmax_agreement: share of the examples with the same largest entry, over the outputs
            ``[batch, classes]``; None where there is none.
        examples: that were compared.
    """

    max_abs: float | None
    max_rel: float | None
    argmax_agreement: float | None
    examples: int


@dataclass(frozen=True)
class ParityStep:
    """One model at one batch size, in PyTorch and in ONNX Runtime.

    Attributes:
        name: such as ``pruned, batch 1``.
        batch_size: examples per call; None where the inputs have no batch.
        difference: of the outputs; None where they could not be compared.
        tolerance: for ``difference.max_rel``.
        passed: the difference is within the tolerance.
        reason: one sentence.
    """

    name: str
    batch_size: int | None
    difference: Difference | None
    tolerance: float
    passed: bool
    reason: str


@dataclass(frozen=True)
class Parity:
    """The chain parent in PyTorch - parent in ONNX Runtime, pruned in PyTorch - pruned in ONNX Runtime.

    Attributes:
        passed: every step passed.
        steps: dense ones first, by batch size.
        tolerance_reason: why the tolerance is what it is.
        parent_to_pruned: in PyTorch, for information: they are different models, so nothing is expected.
    """

    passed: bool
    steps: tuple[ParityStep, ...]
    tolerance_reason: str
    parent_to_pruned: Difference | None


def check_parity(
    dense: Exported,
    pruned: Exported,
    batches: Sequence[HasInputs],
    *,
    tolerance: float | None = None,
    threads: int = 1,
) -> Parity:
    """Compare both models in PyTorch and in ONNX Runtime on ``batches``, at two batch sizes or more.

    A batch of one is always among them, made from the first batch; where all batches hold one example, the
    first is taken twice as the second size. A model exported for one batch size is checked at that one. Both
    models run in evaluation mode and are left as they were.

    Args:
        dense: the parent.
        pruned: the pruned model.
        batches: inputs of a call each, at least one; given as at export.
        tolerance: for the largest error relative to the output's largest magnitude; by default by the type
            of the outputs, see :data:`TOLERANCE`.
        threads: of ONNX Runtime.

    Returns:
        What was found; a step that fails, also because a runtime refused, is a value with a reason.

    Raises:
        ExportError: no batch was given.
    """
    if not batches:
        raise ExportError("No batch was given to compare the exported models on", expected="at least one")
    given: list[Inputs] = [(tuple(batch.args), dict(batch.kwargs)) for batch in batches]
    steps = [
        _step(f"{name}, batch {size}", size, exported, calls, tolerance, threads)
        for name, exported in (("dense", dense), ("pruned", pruned))
        for size, calls in _by_batch_size(given, dynamic=exported.export.dynamic_batch).items()
    ]
    return Parity(
        passed=all(step.passed for step in steps),
        steps=tuple(steps),
        tolerance_reason=(
            "given by the caller"
            if tolerance is not None
            else "runtimes fuse operators and add in another order; float32 rounding grows to 1e-6 or 1e-5 "
            "of the largest output in a deep network, and a wrong graph is off by 1e-2 or more"
        ),
        parent_to_pruned=_between(dense.model, pruned.model, given),
    )


def difference(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> Difference:
    """How far ``actual`` lies from ``expected``, output by output.

    Args:
        expected: one array per output, the examples along the first dimension.
        actual: arrays of the same shapes.

    Returns:
        The largest figures over all outputs, ``max_rel = max|actual - expected| / max|expected|`` being that
        of one output (over 1 where all that is expected is 0); None where one is not finite and not in both.
    """
    errors, relative_errors, same = [0.0], [0.0], []
    for left, right in zip(expected, actual, strict=True):
        if left.size == 0:
            continue
        left, right = left.astype(np.float64), right.astype(np.float64)
        with np.errstate(invalid="ignore"):
            apart = np.where(left == right, 0.0, np.abs(right - left))  # A masked logit is -inf in both.
        scale = np.abs(left[np.isfinite(left)]).max(initial=0.0)
        errors.append(float(apart.max()))
        relative_errors.append(float(apart.max() / (scale or 1.0)))
        if left.ndim == 2 and left.shape[1] > 1:
            same.append(float((left.argmax(axis=1) == right.argmax(axis=1)).mean()))
    finite = bool(np.isfinite([errors, relative_errors]).all())
    return Difference(
        max_abs=max(errors) if finite else None,
        max_rel=max(relative_errors) if finite else None,
        argmax_agreement=sum(same) / len(same) if same else None,
        examples=len(expected[0]) if expected and expected[0].ndim else 1,
    )


def _by_batch_size(given: Sequence[Inputs], *, dynamic: bool) -> dict[int | None, list[Inputs]]:
    calls: dict[int | None, list[Inputs]] = {}
    for inputs in given:
        calls.setdefault(batch_size(inputs), []).append(inputs)
    if dynamic and batch_size(given[0]) is not None:
        calls.setdefault(1, [one_example(given[0])])
        if len(calls) == 1:
            calls[2] = [doubled(given[0])]
    return dict(sorted(calls.items(), key=lambda item: item[0] or 0))


def _step(
    name: str,
    size: int | None,
    exported: Exported,
    calls: Sequence[Inputs],
    tolerance: float | None,
    threads: int,
) -> ParityStep:
    """PyTorch against ONNX Runtime; whatever goes wrong is the reason of a failed step."""
    limit = TOLERANCE["float32"] if tolerance is None else tolerance
    try:
        in_torch = [_outputs(exported.model, inputs) for inputs in calls]
        limit = _tolerance(in_torch[0]) if tolerance is None else tolerance
        feeds = [feed(exported.export, *inputs) for inputs in calls]
        runner = open_onnx(exported.export.path, feeds[0], threads=threads)
        found = _differences(in_torch, [list(runner.outputs(one).values()) for one in feeds])
    except (ExportError, MeasurementError) as error:
        return ParityStep(name, size, None, limit, False, str(error))
    if found.max_rel is None:
        return ParityStep(name, size, found, limit, False, "An output is not finite.")
    passed = found.max_rel <= limit
    reason = (
        f"The largest error is {found.max_rel:.1e} of the largest output, "
        f"{'within' if passed else 'above'} the tolerance of {limit:.1e}."
    )
    return ParityStep(name, size, found, limit, passed, reason)


def _between(dense: nn.Module, pruned: nn.Module, given: Sequence[Inputs]) -> Difference | None:
    try:
        return _differences(
            [_outputs(dense, inputs) for inputs in given],
            [list(map(_array, _outputs(pruned, inputs))) for inputs in given],
        )
    except ExportError:  # One of them does not run, or they give other shapes; the steps say why.
        return None


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    args, kwargs = copies(on_device(inputs, device_of(model)))
    with evaluating(model), torch.no_grad():
        try:
            return list(output_tensors(model(*args, **kwargs)).values())
        except Exception as error:  # the user's own code runs here
            raise ExportError(
                f"{type(model).__name__} does not run on a batch of {batch_size(inputs)}: "
                f"{type(error).__name__}: {error}"
            ) from error


def _differences(expected: Sequence[Sequence[Tensor]], actual: Sequence[Sequence[np.ndarray]]) -> Difference:
    """Over several calls: the largest errors, and the agreement of all examples together."""
    found = []
    for left, right in zip(expected, actual, strict=True):
        shapes = [tuple(tensor.shape) for tensor in left], [array.shape for array in right]
        if shapes[0] != shapes[1]:
            raise ExportError(
                f"The outputs have the shapes {shapes[1]}", expected=f"{shapes[0]}, as in PyTorch"
            )
        found.append(difference([_array(tensor) for tensor in left], right))
    examples = sum(one.examples for one in found)
    finite = all(one.max_abs is not None for one in found)
    agreed = [one.argmax_agreement for one in found]
    return Difference(
        max_abs=max(one.max_abs or 0.0 for one in found) if finite else None,
        max_rel=max(one.max_rel or 0.0 for one in found) if finite else None,
        argmax_agreement=None
        if None in agreed
        else sum((share or 0.0) * one.examples for share, one in zip(agreed, found, strict=True)) / examples,
        examples=examples,
    )


def _tolerance(outputs: Sequence[Tensor]) -> float:
    """That of the coarsest type; 0 where there are only whole numbers and flags."""
    return max((TOLERANCE.get(str(one.dtype).removeprefix("torch."), 0.0) for one in outputs), default=0.0)


def _array(tensor: Tensor) -> np.ndarray:
    wide = tensor.float() if tensor.dtype is torch.bfloat16 else tensor  # NumPy has no bfloat16
    return wide.detach().cpu().numpy()
