"""Calibration batches: what is asked of them, and how many examples each has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.utils import _pytree as pytree

from prunekit.errors import CalibrationError
from prunekit.ranks import ALONE, Ranks


class ModelInputs(Protocol):
    """What calibration asks of a batch: how to call the model on it."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of the model."""
        ...

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """Keyword arguments of the model."""
        ...


def check_batches(batches: object) -> None:
    """Refuse what cannot be a series of batches, before anything is run.

    Raises:
        CalibrationError: it cannot be iterated over, or is a single tensor.
    """
    steps = hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
    if not steps or isinstance(batches, Tensor | str | Mapping):
        raise CalibrationError(
            f"The calibration data are a {type(batches).__name__}",
            expected="an iterable of batches",
            where="calibration",
            remedy=_AS_BATCH,
        )


def checked_batches(
    batches: Iterable[ModelInputs], ranks: Ranks = ALONE, at_end: Callable[[], None] | None = None
) -> Iterator[tuple[int, ModelInputs]]:
    """Each batch with its number, checked when its turn comes.

    Args:
        batches: those of this process.
        ranks: the processes that give batches; some may have none. They wait for each other at the end.
        at_end: what a process does that is through, before it waits.

    Raises:
        CalibrationError: something else than a series of batches, a batch without examples, or no batch
            on any process.
    """
    check_batches(batches)
    number = -1
    for number, batch in enumerate(batches):
        _check_batch(batch, number)
        yield number, batch
    if at_end is not None:
        at_end()
    if not sum(ranks.gather(number + 1, "number of calibration batches")):
        raise CalibrationError(
            "There are no calibration batches",
            where="calibration",
            remedy="Give at least one batch; an iterator that was used before is empty",
        )


def examples_in(batch: ModelInputs) -> int:
    """The number of a batch's ids, else of its first input along dimension 0; 1 where no input has one."""
    if ids := getattr(batch, "ids", ()):
        return len(ids)
    leaves = pytree.tree_leaves((tuple(batch.args), dict(batch.kwargs)))
    return next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), 1)


_AS_BATCH = "Wrap the inputs and put the batches in a list: [Batch(args=(x,), target=y)]"


def _check_batch(batch: Any, number: int) -> None:
    args, kwargs = getattr(batch, "args", None), getattr(batch, "kwargs", None)
    if not isinstance(args, Sequence) or not isinstance(kwargs, Mapping):
        raise CalibrationError(
            f"It is a {type(batch).__name__}",
            expected="a batch with args, a tuple, and kwargs, a mapping",
            where=f"calibration batch {number}",
            remedy=_AS_BATCH,
        )
    if not examples_in(batch):
        raise CalibrationError(
            "It has no examples: its first input is empty along dimension 0",
            where=f"calibration batch {number}",
            remedy="Leave it out; statistics of nothing would say that every unit is worth nothing",
        )
