"""Exact selection of the highest of very many scores: counting digits, no sort and no copy of the scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

AT_ONCE = 2**18
"""Scores that are turned into integers at once."""

DIGIT = 16
"""Bits that are counted in one pass."""

FEW = 32
"""Up to so many scores in a row, each pair is compared; above, the row's threshold is found by a
partition."""

_BITS = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}
_INTEGERS = {16: torch.int16, 32: torch.int32, 64: torch.int64}


def keep_highest(scores: Sequence[Tensor], keep: int) -> list[Tensor]:
    """Keep exactly ``keep`` of all scores together.

    Rule 1: a higher score is kept first. Rule 2: of equal scores the one in the earlier tensor is kept first,
    and in one tensor the one with the lower index. (-0.0 equals 0.0.)

    The ``keep``-th highest score is found digit by digit: the bits of a float, turned into an integer of the
    same order, are counted 16 at a time, one pass over the scores for each 16 bits. Nothing is sorted or
    copied; beside the masks there are two tables of 65536 counts and :data:`AT_ONCE` integers.

    Args:
        scores: each ``[n]``, any float dtypes, finite; higher = keep. Different dtypes are compared in
            one that holds all of them, float32 or float64.
        keep: in ``[0, sum of n]``.

    Returns:
        For each tensor ``[n]`` bool on its device; True = keep. Exactly ``keep`` are True.

    Source: radix selection; for instance Alabi et al., 2012, Fast k-Selection Algorithms for Graphics
    Processing Units, https://doi.org/10.1145/2133803.2345676. Deviation: 16 bits a pass, and ties by index.
    """
    total = sum(part.numel() for part in scores)
    assert 0 <= keep <= total
    masks = [torch.zeros(part.numel(), dtype=torch.bool, device=part.device) for part in scores]
    if keep == 0:
        return masks
    if keep == total:
        return [mask.fill_(True) for mask in masks]
    bits = max(_BITS[part.dtype] for part in scores)
    if len({part.dtype for part in scores}) > 1:
        bits = max(bits, _BITS[torch.float32])  # the bits of float16 and bfloat16 mean different numbers
    threshold, of_equal = _threshold(scores, keep, bits)
    for part, mask in zip(scores, masks, strict=True):
        for start, keys in _keys(part, bits):
            kept = mask[start : start + len(keys)]
            torch.gt(keys, threshold, out=kept)
            if of_equal:
                equal = (keys == threshold).nonzero().flatten()[:of_equal]
                kept[equal] = True
                of_equal -= len(equal)
    return masks


def keep_in_rows(scores: Tensor, keep: int) -> Tensor:
    """Keep exactly ``keep`` scores of every row; of equal ones those with the lower column.

    Args:
        scores: ``[rows, columns]``, any float dtype, finite; higher = keep.
        keep: in ``[0, columns]``.

    Returns:
        ``[rows, columns]`` bool; True = keep.
    """
    rows, columns = scores.shape
    assert 0 <= keep <= columns
    if keep in (0, columns) or not rows:
        return torch.full(scores.shape, keep > 0, dtype=torch.bool, device=scores.device)
    choose = _by_pairs if columns <= FEW else _by_partition
    at_once = max(1, AT_ONCE // columns)
    return torch.cat([choose(piece, keep) for piece in scores.split(at_once)])


def _threshold(scores: Sequence[Tensor], keep: int, bits: int) -> tuple[int, int]:
    """The key of the ``keep``-th highest score, and how many of those equal to it are kept."""
    digits = 2**DIGIT
    prefix, wanted = 0, keep
    for shift in range(bits - DIGIT, -1, -DIGIT):
        counts = torch.zeros(digits, dtype=torch.int64)
        for part in scores:
            for _, keys in _keys(part, bits):
                keys = keys.long()
                if shift + DIGIT < bits:
                    keys = keys[(keys >> (shift + DIGIT)) == prefix]
                    digit = (keys >> shift) & (digits - 1)
                else:
                    digit = (keys >> shift) + digits // 2
                counts += torch.bincount(digit, minlength=digits).cpu()
        at_least = counts.flip(0).cumsum(0).flip(0)
        found = int((at_least >= wanted).sum()) - 1
        wanted -= int(at_least[found] - counts[found])
        prefix = found - digits // 2 if shift + DIGIT == bits else (prefix << DIGIT) | found
    return prefix, wanted


def _keys(scores: Tensor, bits: int) -> Iterator[tuple[int, Tensor]]:
    """Integers in the order of the scores, piece by piece, with the index at which each piece begins.

    The bits of a non-negative float order like an integer; those of a negative one the other way round, so
    all but the sign are inverted. Adding 0.0 makes a zero of -0.0.
    """
    dtype = next(dtype for dtype in (scores.dtype, torch.float32, torch.float64) if _BITS[dtype] >= bits)
    for start in range(0, scores.numel(), AT_ONCE):
        pattern = (scores[start : start + AT_ONCE].to(dtype) + 0.0).view(_INTEGERS[_BITS[dtype]])
        yield start, torch.where(pattern >= 0, pattern, pattern ^ torch.iinfo(pattern.dtype).max)


def _by_pairs(scores: Tensor, keep: int) -> Tensor:
    """Compare each pair of columns: a score is kept when fewer than ``keep`` come before it."""
    before = torch.zeros(scores.shape[::-1], dtype=torch.uint8, device=scores.device)
    columns = scores.t().contiguous()
    for left in range(len(columns)):
        for right in range(left + 1, len(columns)):
            left_first = columns[left] >= columns[right]
            before[right] += left_first
            before[left] += ~left_first
    return (before < keep).t()


def _by_partition(scores: Tensor, keep: int) -> Tensor:
    """Find each row's ``keep``-th highest score; of those equal to it the first columns fill the count."""
    threshold = scores.kthvalue(scores.shape[1] - keep + 1, dim=1, keepdim=True).values
    above, equal = scores > threshold, scores == threshold
    wanted = keep - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= wanted))
