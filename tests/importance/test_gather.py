import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import ShapeError
from prunekit.importance.gather import gather, has_unit, unit_ids
from prunekit.types import Granularity, Group, Slice


def group_of(size, blocks=1):
    return Group("g", Granularity.CHANNEL, size, blocks, ())


@given(
    units=st.lists(st.integers(-1, 4), min_size=1, max_size=12),
    dim=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_a_row_holds_the_values_of_its_unit_and_zeros(units, dim, seed):
    """Oracle: NumPy take, index by index."""
    shape = [2, 3, 2]
    shape[dim] = len(units)
    values = np.random.default_rng(seed).normal(size=shape)
    part = Slice("w", dim, np.array(units), "producer")
    rows = gather(torch.from_numpy(values), part, group_of(5)).numpy()
    assert rows.shape[0] == 5
    for unit in range(5):
        expected = np.take(values, [i for i, u in enumerate(units) if u == unit], axis=dim)
        assert sorted(rows[unit][rows[unit] != 0]) == sorted(expected.ravel())
        assert has_unit(part, group_of(5))[unit] == (unit in units)


def test_values_keep_their_place_within_a_row():
    weight = torch.arange(12.0).reshape(2, 6)
    rows = gather(weight, Slice("w", 1, np.array([0, 0, 1, 1, 2, 2]), "consumer"), group_of(3))
    assert rows.tolist() == [[0, 6, 1, 7], [2, 8, 3, 9], [4, 10, 5, 11]]


def test_blocks_along_another_dimension():
    """A grouped convolution's weight [4 outputs, 3 inputs of each group, 2]: two blocks of three inputs."""
    weight = torch.arange(24.0).reshape(4, 3, 2)
    part = Slice("w", 1, np.arange(3), "consumer", block_dim=0, block_of=np.array([0, 0, 1, 1]))
    group = group_of(6, blocks=2)
    assert unit_ids(part, group).tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    rows = gather(weight, part, group)
    for unit in range(6):
        block, inner = divmod(unit, 3)
        assert rows[unit].tolist() == weight[2 * block : 2 * block + 2, inner].ravel().tolist()


def test_minus_one_wins_over_a_block():
    part = Slice("w", 1, np.array([0, -1]), "consumer", block_dim=0, block_of=np.array([-1, 0, 1]))
    assert unit_ids(part, group_of(2, blocks=2)).tolist() == [-1, -1, 0, -1, 1, -1]


def test_a_vector_becomes_one_column():
    rows = gather(torch.tensor([1.0, 2.0]), Slice("b", 0, np.array([1, 0]), "follower"), group_of(2))
    assert rows.tolist() == [[2.0], [1.0]]


@pytest.mark.parametrize("shape", [(5,), (5, 4), (3, 4, 2)])
def test_another_shape_is_an_error(shape):
    with pytest.raises(ShapeError, match="w: The tensor has the shape"):
        gather(torch.zeros(shape), Slice("w", 1, np.arange(3), "consumer"), group_of(3))
