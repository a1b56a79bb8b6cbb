"""Whole tensors of a model of which each process holds parts, for as long as one of them needs them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError
from prunekit.ranks import Ranks, is_parted, is_sharded, resharded, whole

Taking = Callable[[str, Tensor], None]
"""Given the name of a parameter and its gradient."""


class Lending:
    """Lends the whole tensors of a sharded model, one at a time, to whatever runs its graph.

    A process that needs one says so, and all put it together: those that need it too, those that need
    another and those that wait for the others to end. So the processes may run different numbers of batches,
    of different sizes, and one that fails is heard of before the others wait for its parts. Processes that
    run in step, as they do with as many batches of the same shape, put each tensor together once.

    Of a loss that is differentiated, autograd keeps only where a lent tensor comes from; it is put together
    again when the gradients are computed, and each parameter's gradient is handed on as soon as it is there.

    Args:
        model: sharded by ``fully_shard``.
        ranks: the processes that hold its parts; all of them lend, in the same order.

    Raises:
        CalibrationError: it is sharded in another way, or over other processes.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        resharded(model)
        self._ranks = ranks
        self._tensors = {
            name: tensor.detach()
            for name, tensor in model.named_parameters(remove_duplicate=False)
            if is_parted(tensor)
        }
        _check_parts(self._tensors, ranks)
        first: dict[int, str] = {}
        self._own_name = {
            name: first.setdefault(id(tensor), name)
            for name, tensor in model.named_parameters(remove_duplicate=False)
        }
        self._lent: dict[int, str] = {}
        self._gradients = _Gradients()

    def __contains__(self, name: object) -> bool:
        """The processes hold parts of the tensor of this name."""
        return name in self._tensors

    def put_together(self, name: str) -> Tensor:
        """A whole tensor."""
        while True:
            wanted = self._next(name)
            found = whole(self._tensors[wanted[0]])
            if wanted[0] == name:
                return found

    def serve(self) -> None:
        """Give parts to the other processes until none needs any."""
        while wanted := self._next(None):
            whole(self._tensors[wanted[0]])

    def lend(self, name: str) -> Tensor:
        """A whole tensor until :meth:`give_back`; where autograd is on, one whose gradient is handed on."""
        tensor = self.put_together(name)
        self._lent[_pointer(tensor)] = name
        if not (torch.is_grad_enabled() and tensor.dtype.is_floating_point | tensor.dtype.is_complex):
            return tensor
        return self._gradients.follow(tensor, self._own_name[name])

    def give_back(self, tensor: Tensor) -> None:
        """It is not needed any more."""
        self._lent.pop(_pointer(tensor), None)

    @contextmanager
    def saving(self, keep: Callable[[Tensor], None]) -> Iterator[None]:
        """Let autograd save where lent tensors come from instead of their values.

        Args:
            keep: called with every other tensor that it saves.
        """

        def pack(tensor: Tensor) -> Any:
            name = self._lent.get(_pointer(tensor))
            if name is None or tensor.dtype != self._tensors[name].dtype:
                keep(tensor)
                return tensor
            return _Place(name, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

        def unpack(packed: Any) -> Tensor:
            if not isinstance(packed, _Place):
                return packed
            return self.put_together(packed.name).as_strided(packed.size, packed.stride, packed.offset)

        self._gradients = _Gradients()
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield

    def differentiate(self, value: Tensor, take: Taking, *, among: Collection[str], keep: bool) -> None:
        """Hand on the gradient of each parameter that a value depends on, one after another.

        Args:
            value: computed from lent tensors, inside of :meth:`saving`.
            take: what is done with them.
            among: the names to give; a parameter with several is given once by each.
            keep: the value's graph is needed again.
        """
        names: dict[str, list[str]] = {}
        for name in among:
            names.setdefault(self._own_name[name], []).append(name)

        def each(own: str, gradient: Tensor) -> None:
            for name in names.get(own, ()):
                take(name, gradient)

        self._gradients.of(value, each, keep=keep)

    def _next(self, name: str | None) -> list[str]:
        """What the processes need now; nothing where they all wait."""
        return [each for each in self._ranks.gather(name, "tensors of the sharded model") if each is not None]


@dataclass(frozen=True)
class _Place:
    """Where a view that autograd saved lies in a parameter."""

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Gradients:
    """Hands on gradients of tensors that nobody holds: of those that are tied, the sum."""

    def __init__(self) -> None:
        self._start = torch.zeros((), requires_grad=True)
        self._uses: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._sums: dict[str, Tensor] = {}
        self._take: Taking | None = None

    def follow(self, tensor: Tensor, name: str) -> Tensor:
        """The same values, as a result whose gradient comes back here."""
        self._uses[name] = self._uses.get(name, 0) + 1
        return _Followed.apply(self._start, tensor, name, self)  # pyright: ignore[reportReturnType]

    def of(self, value: Tensor, take: Taking, *, keep: bool) -> None:
        """Differentiate a value."""
        self._take, self._left = take, dict(self._uses)
        torch.autograd.grad(value, [self._start], retain_graph=keep, allow_unused=True)
        for name in list(self._sums):  # Not every use has a part in the value.
            take(name, self._sums.pop(name))

    def receive(self, name: str, gradient: Tensor) -> None:
        """The gradient of one use of a parameter."""
        assert self._take is not None
        known = self._sums.pop(name, None)
        total = gradient if known is None else known + gradient
        self._left[name] -= 1
        if self._left[name]:
            self._sums[name] = total
        else:
            self._take(name, total)


class _Followed(torch.autograd.Function):
    """Gives a tensor on and hands its gradient to :class:`_Gradients`."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, tensor: Tensor, name: str, into: _Gradients) -> Tensor:
        ctx.name, ctx.into = name, into
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.into.receive(ctx.name, gradients[0])
        return gradients[0].new_zeros((), dtype=torch.float32, device="cpu"), None, None, None


def lending_of(model: nn.Module, ranks: Ranks) -> Lending | None:
    """What lends the tensors of a sharded model; None for a model that this process has whole.

    Raises:
        CalibrationError: it is sharded in a way that is not known, or over other processes.
    """
    return Lending(model, ranks) if is_sharded(model) else None


def _check_parts(tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    if not tensors:
        raise CalibrationError(
            "The model is sharded, and its parameters are not parts of whole ones",
            expected="a model that FSDP2 shards",
            where="model",
            remedy="Shard it with torch.distributed.fsdp.fully_shard()",
        )
    for name, tensor in tensors.items():
        holders: int = tensor.device_mesh.size()  # pyright: ignore[reportAttributeAccessIssue]
        if holders != ranks.size:
            raise CalibrationError(
                f"{holders} processes hold parts of it, and ranks= has {ranks.size}",
                where=name,
                remedy="Give ranks=prunekit.ranks.all_ranks() on all of them",
            )


def _pointer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
