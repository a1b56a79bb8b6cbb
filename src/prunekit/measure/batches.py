"""One runner at every batch size it is asked for: how samples of a load become calls of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure.runtimes import Runner

TIMED_SECONDS = 0.3
LEAST_TIMED = 5
MOST_TIMED = 200


@runtime_checkable
class Fed(Protocol):
    """A runner whose inputs can be exchanged: ``{name: [batch, ...]}``, or a module's ``(args, kwargs)``."""

    @property
    def inputs(self) -> Any:
        """What a call runs on."""
        ...

    def outputs(self, inputs: Any = None) -> Any:
        """Run once on these inputs."""
        ...


@runtime_checkable
class Compiled(Protocol):
    """A runner that was compiled for the shapes of its inputs, and has to be for each batch size."""

    @property
    def compiled_for(self) -> Callable[[Any], Runner]:
        """The same model, compiled for other inputs, which it then runs on."""
        ...


class Batches:
    """A runner that serves any number of samples in calls of at most ``largest`` samples.

    A sample is one row of the first dimension of the runner's inputs; a runner without inputs serves one
    sample a call. A model whose batch is closed is only ever called on its own batch: fewer samples than
    that are padded, and the padding costs what it costs when serving.

    Every batch size that can occur is run once when the object is made, so that no first run of a size
    falls into a measurement; a runner that is compiled for its shapes is compiled for each of them then.

    Args:
        runner: the model; called from one thread at a time, which need not be the main one.
        largest: samples of the largest call; None = the runner's own batch. Another number than the
            runner's own batch needs a model whose batch is open.

    Attributes:
        runner: the model.
        own: samples in the runner's own inputs.
        largest: samples of the largest call.
        open: every number of samples up to ``largest`` is run as it is, without padding.

    Raises:
        MeasurementError: ``largest`` < 1, inputs whose first dimensions differ, a closed batch, or a
            runner that fails.
    """

    def __init__(self, runner: Runner, largest: int | None = None) -> None:
        self.runner = runner
        self.own = _rows(runner)
        self.largest = self.own if largest is None else largest
        if self.largest < 1:
            raise MeasurementError(f"A largest batch of {self.largest} was asked for", expected="at least 1")
        self.open = largest is not None and (largest, self.own) != (1, 1)
        sizes = range(1, self.largest + 1) if self.open else ()
        self._inputs = {size: self._resized(size) for size in sizes if size != self.own}
        self._compiled: dict[int, Runner] = {}
        for size in {self.own, self.largest, *self._inputs} if self.open else {self.own}:
            self._warm_up(size)

    def serve(self, samples: int) -> int:
        """Run this many samples; the number of calls it took."""
        calls = 0
        while samples > 0:
            self._call(min(samples, self.largest))
            samples -= self.largest
            calls += 1
        return calls

    def call_ms(self, samples: int = 1, *, seconds: float = TIMED_SECONDS) -> float:
        """Median milliseconds of serving this many samples at once, on the machine as it is now.

        Args:
            samples: served together.
            seconds: spent on it, unless :data:`LEAST_TIMED` repetitions take longer.
        """
        spent: list[float] = []
        begin = time.perf_counter()
        while len(spent) < LEAST_TIMED or (len(spent) < MOST_TIMED and time.perf_counter() - begin < seconds):
            start = time.perf_counter()
            self.serve(samples)
            spent.append(time.perf_counter() - start)
        return float(np.median(spent)) * 1e3

    def _call(self, samples: int) -> None:
        inputs = self._inputs.get(samples)
        if samples in self._compiled:
            self._compiled[samples]()
        elif inputs is None or not isinstance(self.runner, Fed):
            self.runner()
        else:
            self.runner.outputs(inputs)

    def _warm_up(self, size: int) -> None:
        try:
            if size in self._inputs and isinstance(self.runner, Compiled):
                self._compiled[size] = self.runner.compiled_for(self._inputs[size])
            self._call(size)
        except Exception as error:
            if size == self.own:
                raise failed(self.runner, error) from error
            raise MeasurementError(
                f"The model does not run on {size} samples at once: {error}",
                expected=f"a model whose batch is open, or calls of {self.own} samples",
                where=self.runner.name,
                remedy="Export it with an open batch dimension, or leave out the largest batch",
            ) from error

    def _resized(self, size: int) -> Any:
        if not isinstance(self.runner, Fed):
            raise MeasurementError(
                f"Calls of {size} samples were asked for, and this runner has no inputs to exchange",
                expected="a runner with inputs, such as open_onnx makes",
                where=self.runner.name,
            )
        rows = np.arange(size) % self.own
        return _each(self.runner.inputs, lambda array: array[rows] if array.ndim else array)


def failed(runner: Runner, error: BaseException) -> MeasurementError:
    """The error of a model that cannot be run, in our words."""
    return MeasurementError(
        f"The model failed while it was measured: {type(error).__name__}: {error}",
        expected="a model that runs on its inputs every time",
        where=runner.name,
        remedy="Call it on the same inputs outside of a measurement to see the failure alone",
    )


def _rows(runner: Runner) -> int:
    if not isinstance(runner, Fed):
        return 1
    shapes: list[list[int]] = []
    _each(runner.inputs, lambda array: shapes.append(list(array.shape)))
    rows = {shape[0] for shape in shapes if shape}
    if len(rows) > 1 or 0 in rows:
        raise MeasurementError(
            f"The inputs do not agree on how many samples they hold: {shapes}",
            expected="inputs whose first dimension is the batch, all of the same size",
            where=runner.name,
        )
    return rows.pop() if rows else 1


def _each(inputs: Any, change: Callable[[Any], Any]) -> Any:
    """The same inputs with every array or tensor in them changed; what is neither stays."""
    if isinstance(inputs, Mapping):
        return {name: _each(value, change) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return type(inputs)(_each(value, change) for value in inputs)
    return change(inputs) if hasattr(inputs, "ndim") else inputs
