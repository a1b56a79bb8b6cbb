"""Examples of a batch one by one: what the teacher gave for each, without padding, and what it was given."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import ShapeError
from prunekit.recover.distillation.positions import Positions
from prunekit.recover.distillation.reading import ATTENTION, LOGITS
from prunekit.workload import Batch
from prunekit.workload.split import LABEL_KEYS


def mask_of(key: str, value: Tensor, positions: Positions) -> tuple[Tensor | None, tuple[int, ...]]:
    """The mask that says which positions of a value hold something, and the dimensions that it masks.

    Args:
        key: ``logits``, or what begins with ``hidden`` or ``attention``.
        value: of a batch, ``[examples, ...]``.
        positions: of the batch.
    """
    if key.startswith(ATTENTION):
        return positions.tokens, (1, 2)
    mask = positions.outputs if key == LOGITS else positions.tokens
    return (mask, (0,)) if value.ndim == 3 else (None, ())


def split_rows(key: str, value: Tensor, positions: Positions) -> list[Tensor]:
    """``[examples, ...]`` as one tensor for each example, without its padding."""
    mask, dims = mask_of(key, value, positions)
    rows = []
    for place, row in enumerate(value.unbind(0)):
        for dim in dims if mask is not None else ():
            assert mask is not None
            row = row.index_select(dim, mask[place].nonzero()[:, 0].to(row.device))
        rows.append(row.clone(memory_format=torch.contiguous_format))  # Files hold no tensor twice.
    return rows


def join_rows(key: str, rows: Sequence[Tensor], positions: Positions) -> Tensor:
    """The opposite of :func:`split_rows`: ``[examples, ...]``, zeros where there is padding.

    Raises:
        ShapeError: an example has another number of positions than when it was written, or sizes differ.
    """
    mask, dims = mask_of(key, rows[0][None], positions)
    if mask is None:
        if len({row.shape for row in rows}) > 1:
            raise _sizes(key, rows, "one size, as no mask says which positions are padding")
        return torch.stack(list(rows))
    length = mask.shape[1]
    joined = []
    for row, has in zip(rows, mask.cpu(), strict=True):
        places = has.nonzero()[:, 0]
        for dim in dims:
            if row.shape[dim] != len(places):
                raise _sizes(key, [row], f"{len(places)} positions, as in the mask of the batch")
            shape = list(row.shape)
            shape[dim] = length
            row = row.new_zeros(shape).index_copy_(dim, places, row)
        joined.append(row)
    return torch.stack(joined)


def fingerprints(batch: Batch, positions: Positions, count: int) -> list[int]:
    """One number for each example's inputs, without padding and labels: the CRC-32 of their bytes."""
    inputs = {name: value for name, value in batch.kwargs.items() if name not in LABEL_KEYS}
    leaves = _leaves((*batch.args, *(inputs[name] for name in sorted(inputs))))
    leaves = [leaf.cpu() for leaf in leaves if leaf.ndim and leaf.shape[0] == count]
    masks = [
        each.cpu()
        for each in (positions.tokens, positions.outputs)
        if each is not None and len(each) == count
    ]
    found = []
    for place in range(count):
        code = 0
        for leaf in leaves:
            row = leaf[place]
            mask = next((each for each in masks if leaf.ndim > 1 and each.shape[1] == leaf.shape[1]), None)
            row = row if mask is None else row[mask[place]]
            code = zlib.crc32(f"{row.dtype} {tuple(row.shape)};".encode(), code)
            code = zlib.crc32(row.contiguous().reshape(-1).view(torch.uint8).numpy().data, code)
        found.append(code)
    return found


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [leaf for name in sorted(value) for leaf in _leaves(value[name])]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item)]
    return []


def _sizes(key: str, rows: Sequence[Tensor], expected: str) -> ShapeError:
    return ShapeError(
        f"what is remembered has the shapes {sorted({tuple(row.shape) for row in rows})[:4]}",
        expected=expected,
        where=f"remembered {key}",
        remedy="Give the batches the attention mask that they had when the parent's outputs were written",
    )
