import numpy as np

from prunekit.plan.nesting import find_nesting, without_lost_blocks
from prunekit.types import Granularity, Group, Slice

# Two key-value heads with three query heads each, of four dimensions: 24 rows of a projection.
ROWS = np.arange(24)
KV = Group("kv", Granularity.HEAD, 2, 1, (Slice("w", 0, ROWS // 12, "producer"),))
QUERY = Group("query", Granularity.HEAD, 6, 2, (Slice("w", 0, ROWS // 4, "producer"),))
DIMS = Group("dims", Granularity.HEAD_DIM, 24, 6, (Slice("w", 0, ROWS, "producer"),))
OTHER = Group("other", Granularity.HIDDEN, 5, 1, (Slice("w", 1, np.arange(5), "consumer"),))
NESTED = {group.name: group for group in (DIMS, QUERY, KV, OTHER)}


def plain(nesting):
    return {
        inner: {outer: holder.tolist() for outer, holder in holders.items()}
        for inner, holders in nesting.items()
    }


def test_every_group_around_a_block_is_found():
    assert plain(find_nesting(list(NESTED.values()))) == {
        "dims": {"query": [0, 1, 2, 3, 4, 5], "kv": [0, 0, 0, 1, 1, 1]},
        "query": {"kv": [0, 1]},
    }
    assert plain(find_nesting([DIMS, OTHER])) == {}


def test_blocks_along_another_dimension_are_found():
    """A grouped convolution's weight [6 outputs, 4 inputs of each group]: three groups hold the inputs."""
    outer = Group("groups", Granularity.CHANNEL_GROUP, 3, 1, (Slice("g", 0, np.arange(6) // 2, "producer"),))
    part = Slice("g", 1, np.arange(4), "consumer", block_dim=0, block_of=np.arange(6) // 2)
    inner = Group("inputs", Granularity.CHANNEL, 12, 3, (part,))
    assert plain(find_nesting([inner, outer])) == {"inputs": {"groups": [0, 1, 2]}}


def test_a_unit_takes_its_blocks_along_at_any_depth():
    """Oracle: a row stays if each of the three masks keeps it."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        masks = {
            name: group
            for name, group in {
                "kv": np.array([True, draw.random() < 0.5]),
                "query": np.tile(draw.permutation([True, True, False]), 2),
                "dims": np.tile([True, False, True, True], 6),
            }.items()
            if draw.random() < 0.7
        }
        left = without_lost_blocks(masks, NESTED, find_nesting(list(NESTED.values())))
        whole = {"kv": np.ones(2, bool), "query": np.ones(6, bool), "dims": np.ones(24, bool)} | masks
        stays = whole["kv"][ROWS // 12] & whole["query"][ROWS // 4] & whole["dims"][ROWS]
        assert (left.get("dims", whole["dims"]) == stays).all()
        heads = whole["kv"][np.arange(6) // 3] & whole["query"]
        assert (left.get("query", whole["query"]) == heads).all()
        assert "other" not in left


def test_masks_without_nesting_are_as_they_were():
    masks = {"kv": np.array([True, False])}
    assert without_lost_blocks(masks, NESTED, {}) == masks
