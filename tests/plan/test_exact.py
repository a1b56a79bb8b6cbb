"""Exact counts and stable ties, whatever the scores; the oracle is Python's sort by (-score, index)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.plan import exact
from prunekit.plan.exact import keep_highest, keep_in_rows

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NUMBERS = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(width=16, allow_nan=False, allow_infinity=False),
    st.sampled_from([-0.0, 0.0, 1e-38, -1e-38, 1e-45, 3e4, 1 + 2**-20, 1 + 2**-40]),
)


def by_sort(values, keep):
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))[:keep]
    return [index in set(order) for index in range(len(values))]


@settings(max_examples=200)
@given(
    parts=st.lists(st.lists(NUMBERS, max_size=12), min_size=1, max_size=4),
    share=st.floats(0, 1),
    dtypes=st.one_of(
        st.sampled_from(DTYPES).map(lambda dtype: [dtype] * 4),
        st.lists(st.sampled_from(DTYPES), min_size=4, max_size=4),
    ),
)
def test_the_highest_of_all_parts_stay_and_ties_go_by_place(parts, share, dtypes):
    scores = [torch.tensor(part, dtype=dtype) for part, dtype in zip(parts, dtypes, strict=False)]
    together = [value for part in scores for value in part.double().tolist()]
    keep = round(share * len(together))
    masks = keep_highest(scores, keep)
    assert [len(mask) for mask in masks] == [len(part) for part in parts]
    assert torch.cat(masks).tolist() == by_sort(together, keep)


@settings(max_examples=100)
@given(
    rows=st.integers(1, 5),
    columns=st.sampled_from([1, 4, 8, 32, 33, 50]),
    share=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_every_row_keeps_its_count_and_ties_go_by_column(rows, columns, share, dtype, data):
    values = data.draw(st.lists(st.integers(-2, 2), min_size=rows * columns, max_size=rows * columns))
    scores = torch.tensor(values, dtype=dtype).reshape(rows, columns)
    keep = round(share * columns)
    mask = keep_in_rows(scores, keep)
    assert mask.tolist() == [by_sort(row, keep) for row in scores.double().tolist()]


def test_parts_of_different_dtypes_are_compared_as_the_widest():
    wide = torch.tensor([1 + 2**-20, 0.5], dtype=torch.float64)
    narrow = torch.tensor([1.0, 2.0, 1.0], dtype=torch.bfloat16)
    assert [mask.tolist() for mask in keep_highest([narrow, wide], 2)] == [
        [False, True, False],
        [True, False],
    ]
    assert [mask.tolist() for mask in keep_highest([narrow, wide], 3)] == [[True, True, False], [True, False]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_that_are_counted_one_by_one_add_up(dtype, monkeypatch):
    """Oracle: a stable argsort in NumPy."""
    monkeypatch.setattr(exact, "AT_ONCE", 37)
    drawn = np.random.default_rng(0).standard_normal(1000).round(1)
    scores = torch.tensor(drawn).to(dtype)
    order = np.argsort(-scores.double().numpy(), kind="stable")
    for keep in (0, 1, 499, 999, 1000):
        wanted = np.zeros(1000, dtype=bool)
        wanted[order[:keep]] = True
        parts = keep_highest(scores.split([400, 600]), keep)
        assert torch.cat(parts).numpy().tolist() == wanted.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("levels", [None, 5, 1])
def test_a_hundred_million_scores(levels):
    """The lowest kept is no lower than the highest that goes, and of equal ones the first stay."""
    count = 100_000_000
    scores = torch.rand(count, generator=torch.Generator().manual_seed(0))
    if levels is not None:
        scores.mul_(levels).floor_()
    for keep in (0, 1, count // 3, count):
        mask = keep_highest([scores], keep)[0]
        assert int(mask.sum()) == keep
        if not 0 < keep < count:
            continue
        edge = scores[mask].min()
        assert scores[~mask].max() <= edge
        equal = mask[scores == edge]
        kept = int(equal.sum())
        assert bool(equal[:kept].all())
    pairs = keep_in_rows(scores.reshape(-1, 4), 2)
    assert bool((pairs.sum(1) == 2).all())


def test_sixteen_bits_of_two_kinds_are_compared_by_value():
    """Oracle: the sort; the bits of 1.0 are 0x3c00 in float16 and 0x3f80 in bfloat16, above those of 1.5."""
    half, brain = (
        torch.tensor([1.5, 2.0], dtype=torch.float16),
        torch.tensor([1.0, 1.0], dtype=torch.bfloat16),
    )
    assert torch.cat(keep_highest([brain, half], 2)).tolist() == by_sort([1.0, 1.0, 1.5, 2.0], 2)
