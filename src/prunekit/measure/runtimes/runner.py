"""What every runtime has in common: the runners it opens, and its row in the table of runtimes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure.runtimes.node_times import NodeTime

Arrays = Mapping[str, np.ndarray]

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16", "int8"]


class Runner(Protocol):
    """A model that can be run once.

    Law: every call does the same work on the same inputs, and has finished it when it returns.
    """

    @property
    def name(self) -> str:
        """What it is, for the record."""
        ...

    def __call__(self) -> None:
        """Run the model once."""
        ...


class TargetRunner(Runner, Protocol):
    """A model opened on a target, with the inputs it is called on.

    Laws: what it computes is what the model computes, within the precision of the target; several that are
    open at once keep their options and do not change how fast the others are.
    """

    @property
    def inputs(self) -> Any:
        """What a call runs on: arrays by input name, or ``(args, kwargs)`` of a module."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """How the model was opened, plain JSON for the record."""
        ...

    def outputs(self, inputs: Any = None) -> dict[str, np.ndarray]:
        """Run once, on its own or on other inputs, and keep the outputs by name, in their order.

        Raises:
            MeasurementError: the inputs do not fit the model, or it failed on them.
        """
        ...


class Opening(Protocol):
    """How a runtime opens a model."""

    def __call__(
        self, model: Any, inputs: Any, *, threads: int, device: Device, precision: Precision
    ) -> TargetRunner:
        """Open the model, run it once, and give the runner.

        Raises:
            MeasurementError: the runtime refuses the model, or the inputs do not fit it.
        """
        ...


class Profiling(Protocol):
    """How a runtime tells what the operators of a model take in it."""

    def __call__(
        self, model: Any, inputs: Any, *, threads: int, precision: Precision, seconds: float
    ) -> tuple[NodeTime, ...]:
        """Open the model once more, run it for some time, and give its operators in the order they run in.

        Raises:
            MeasurementError: the runtime refuses the model, or the inputs do not fit it.
        """
        ...


@dataclass(frozen=True)
class Runtime:
    """One row of the table of runtimes.

    Attributes:
        name: in a target.
        package: the distribution that is imported, and whose version decides how fast it is.
        install: what brings the package.
        takes: what it opens, an ONNX file or a module.
        precisions: by device; what the runtime can do at all.
        lacks: why this machine cannot do a precision on a device that the runtime can do, or nothing.
        open: see :class:`Opening`.
        profile: see :class:`Profiling`; None where the runtime does not tell.
    """

    name: str
    package: str
    install: str
    takes: Literal["file", "module"]
    precisions: Mapping[Device, tuple[Precision, ...]]
    lacks: Callable[[Device, Precision], str]
    open: Opening
    profile: Profiling | None = None


@contextmanager
def held(*runners: Runner) -> Iterator[None]:
    """Set once what the runners would set and put back in every call, for as long as they take turns.

    A runner that has something to set offers it as a context, ``hold()``.
    """
    with ExitStack() as stack:
        for runner in runners:
            hold = getattr(runner, "hold", None)
            if hold is not None:
                stack.enter_context(hold())
        yield


def check_file(path: Path) -> None:
    """Refuse a path that is not a file.

    Raises:
        MeasurementError: there is none.
    """
    if not path.is_file():
        raise MeasurementError(
            "There is no such file" if not path.exists() else "This is not a file",
            expected="a model file",
            where=str(path),
            remedy="Export the model first, or check the path",
        )


def first_line(error: BaseException) -> str:
    """The first line of an error that says something; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
