import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prunekit.plan.select import keep_mask, keep_order


@st.composite
def tied_scores(draw):
    blocks = draw(st.integers(1, 4))
    per_block = draw(st.integers(1, 9))
    values = draw(st.lists(st.integers(0, 2), min_size=blocks * per_block, max_size=blocks * per_block))
    return np.array(values, dtype=np.float32), blocks


@given(tied_scores())
def test_counts_are_exact_and_nested_whatever_the_ties(case):
    scores, blocks = case
    order = keep_order(scores, blocks)
    previous = np.zeros(scores.size, dtype=bool)
    for kept in range(order.shape[1] + 1):
        mask = keep_mask(order, kept)
        assert (mask.reshape(blocks, -1).sum(axis=1) == kept).all()
        assert (mask | previous).sum() == mask.sum()
        previous = mask


@given(tied_scores())
def test_the_order_is_that_of_a_sort_by_score_and_unit_id(case):
    """Oracle: Python's sort on (-score, unit)."""
    scores, blocks = case
    per_block = scores.size // blocks
    for block, row in enumerate(keep_order(scores, blocks)):
        units = range(block * per_block, (block + 1) * per_block)
        assert row.tolist() == sorted(units, key=lambda unit: (-scores[unit], unit))


def test_a_tie_keeps_the_lower_unit():
    mask = keep_mask(keep_order(np.float32([1, 1, 1, 1])), 2)
    assert mask.tolist() == [True, True, False, False]
    mask = keep_mask(keep_order(np.float32([1, 1, 5, 1, 1, 1]), blocks=2), 1)
    assert mask.tolist() == [False, False, True, True, False, False]
