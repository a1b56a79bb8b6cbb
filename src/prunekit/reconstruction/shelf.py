"""Where the values of many batches wait between stages: in large pieces that go back to the system whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

PIECE = 2**25 + 2**20
"""Bytes of a piece, at least: above 32 MiB glibc's ``malloc`` never keeps what is freed
(``DEFAULT_MMAP_THRESHOLD_MAX``, https://man7.org/linux/man-pages/man3/mallopt.3.html)."""


class Shelf:
    """Copies of values, those of one node side by side, because they are let go in the same stage.

    Left where they were made, the values of many batches lie between short-lived ones, and what is freed
    around them is holes: on a decoder with 64 batches half a gigabyte of them.

    Args:
        batches: how many values each node will have.
    """

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self._free: dict[Node, list[Tensor]] = {}
        self._to_come: dict[Node, int] = {}

    def put(self, node: Node, value: Tensor) -> Tensor:
        """A copy; or the value itself, where all batches together are not worth a piece."""
        pieces = value.nbytes * self._batches // PIECE
        if not pieces or value.layout != torch.strided:
            return value
        free = self._free.pop(node, [])
        to_come = self._to_come.pop(node, self._batches)
        if not free or free[0].shape != value.shape or free[0].dtype != value.dtype:
            count = min(-(-self._batches // pieces), to_come)
            shape = (count, *value.shape)
            free = list(torch.empty(shape, dtype=value.dtype, device=value.device).unbind())
        slot = free.pop().copy_(value)
        if to_come > 1:
            self._free[node], self._to_come[node] = free, to_come - 1
        return slot


class Held:
    """What is held of one batch, by node.

    Args:
        given: the inputs.
        shelf: for all batches; None = every value stays where it was made.
        first: what is held of the first batch; values that equal its own, such as positions, are held once.
    """

    def __init__(self, given: Mapping[Node, Any], shelf: Shelf | None, first: Held | None) -> None:
        self.values: dict[Node, Any] = dict(given)
        self._shelf, self._first = shelf, first
        self._settled = set(given)

    def settle(self) -> None:
        """Put away what was made since."""
        self._settled &= self.values.keys()
        new = {node: self.values[node] for node in self.values.keys() - self._settled}
        self._settled |= new.keys()
        tensors = {node: value for node, value in new.items() if isinstance(value, Tensor)}
        storages = [_storage(value) for value in tensors.values()]
        for node, value in tensors.items() if self._shelf is not None else ():
            known = None if self._first is None else self._first.values.get(node)
            if isinstance(known, Tensor) and _equal(known, value):
                self.values[node] = known
            elif self._shelf is not None and storages.count(_storage(value)) == 1:
                self.values[node] = self._shelf.put(node, value)


def _storage(value: Tensor) -> int:
    return value.untyped_storage().data_ptr() if value.layout == torch.strided else id(value)


def _equal(left: Tensor, right: Tensor) -> bool:
    same = left.shape == right.shape and left.dtype == right.dtype and left.stride() == right.stride()
    return same and left.device == right.device and torch.equal(left, right)
