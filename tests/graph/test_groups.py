"""What is found in the toy nets is what was written down by hand; and where the units of some of them lie."""

from __future__ import annotations

import numpy as np
import pytest
from tests.zoo.case import Case
from tests.zoo.oracles import tensors_of
from tests.zoo.toys import BY_NAME, CASES, everything_in, groups_of

from prunekit.graph import find_groups, trace
from prunekit.graph.walk import FAILED


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


def places(slices) -> frozenset:
    return frozenset((part.tensor, part.dim) for part in slices)


def described(groups) -> list[tuple]:
    return sorted((g.granularity.value, g.size, g.blocks, sorted(places(g.slices))) for g in groups)


def test_groups_are_those_found_by_hand(case):
    expected = sorted((g.granularity.value, g.units, g.blocks, sorted(g.places)) for g in case.groups)
    assert described(groups_of(case.name)) == expected


def test_mask_equivalence_and_fewest_units_are_as_found_by_hand(case):
    by_hand = {(g.granularity, g.places, g.blocks): (g.mask_equivalent, g.least) for g in case.groups}
    for group in groups_of(case.name):
        expected = by_hand[group.granularity, places(group.slices), group.blocks]
        assert (group.mask_equivalent, group.least) == expected
        assert group.mask_equivalent == (not group.not_mask_equivalent_because)


def test_frozen_axes_name_the_operator_that_froze_them(case):
    known = tensors_of(case.model()).keys()  # Constants in the code have no name that anyone gave them.
    found: dict[str, set] = {}
    for axis in groups_of(case.name).frozen:
        named = {place for place in places(axis.slices) if place[0] in known}
        if named:
            found.setdefault(axis.operator, set()).update(named)
        assert axis.reason
        assert axis.size == max(int(part.units.max()) + 1 for part in axis.slices)
    assert found == case.frozen


def test_no_rule_fails(case):
    assert [axis for axis in groups_of(case.name).frozen if axis.reason.startswith(FAILED)] == []


def test_every_index_of_every_parameter_is_accounted_for(case):
    """Each index of a dimension with labels belongs to a group or to a frozen axis."""
    groups = groups_of(case.name)
    covered: dict[tuple[str, int], np.ndarray] = {}
    for part in (part for axis in (*groups.prunable, *groups.frozen) for part in axis.slices):
        before = covered.get((part.tensor, part.dim), np.zeros(len(part.units), dtype=bool))
        covered[part.tensor, part.dim] = before | (part.units >= 0)
    assert [place for place, indices in covered.items() if not indices.all()] == []


def test_slices_fit_their_tensors(case):
    groups = groups_of(case.name)
    for group in groups:
        blocks, size = group.blocks, group.units_per_block
        assert blocks * size == group.size
        for part in group.slices:
            shape = groups.tensor_shape(part.tensor)
            assert len(part.units) == shape[part.dim]
            present = np.unique(part.units[part.units >= 0])
            if part.block_dim is None:
                whole = np.unique(present // size)  # Blocks that lie in this tensor lie in it completely.
                assert present.tolist() == [unit for unit in range(group.size) if unit // size in whole]
            else:
                assert present.tolist() == list(range(size))
                assert part.block_of is not None
                assert len(part.block_of) == shape[part.block_dim]
                assert np.unique(part.block_of).tolist() == list(range(blocks))


def test_names_are_different_and_stable(case):
    groups = everything_in(case.name)
    names = [group.name for group in groups]
    assert len(set(names)) == len(names)
    again = find_groups(trace(case.model(), *case.inputs()))
    assert [group.name for group in again] == names
    assert again.fingerprint == groups.fingerprint
    assert described(again) == described(groups)


def units(name: str, tensor: str, dim: int, size: int) -> list[int]:
    """The units along one dimension, of the group of that size."""
    return next(
        part.units.tolist()
        for group in groups_of(name)
        for part in group.slices
        if group.size == size and (part.tensor, part.dim) == (tensor, dim)
    )


def test_flattened_channels_repeat_over_space():
    assert units("flatten", "hidden.weight", 1, 4) == np.repeat(np.arange(4), 9).tolist()


def test_multiplied_channels_repeat_inside():
    assert units("depthwise with multiplier", "4.weight", 1, 6) == np.repeat(np.arange(6), 2).tolist()
    assert units("depthwise with multiplier", "4.weight", 1, 12) == list(range(12))


def test_concatenated_channels_follow_each_other():
    assert units("u-net", "merge.weight", 1, 4) == [0, 1, 2, 3] + [-1] * 6
    assert units("u-net", "merge.weight", 1, 6) == [-1] * 4 + [0, 1, 2, 3, 4, 5]


def test_gated_units_lie_half_a_width_apart():
    assert units("gated unit, chunk", "widen.weight", 0, 8) == [*range(8), *range(8)]


def test_repeated_units_repeat_as_a_whole_or_in_place():
    assert units("repeat", "second.weight", 1, 5) == [*range(5), *range(5)]
    assert units("repeat", "third.weight", 1, 7) == [*range(7)] * 3
    assert units("repeat", "last.weight", 1, 9) == np.repeat(np.arange(9), 2).tolist()


def test_channels_go_with_all_places_they_come_from_or_go_to():
    assert units("pixel shuffle", "2.weight", 1, 6) == np.repeat(np.arange(6), 4).tolist()
    assert units("pixel shuffle", "2.weight", 0, 5) == np.repeat(np.arange(5), 4).tolist()
    assert units("unfold and fold", "mix", 1, 6) == np.repeat(np.arange(6), 9).tolist()
    assert units("unfold and fold", "mix", 0, 7) == np.repeat(np.arange(7), 4).tolist()
    assert units("sliding windows", "last.weight", 1, 8) == np.repeat(np.arange(8), 3).tolist()
    assert (
        units("spectral norm", "2.parametrizations.weight.0._v", 0, 8) == np.repeat(np.arange(8), 9).tolist()
    )


def test_gates_and_directions_of_a_recurrent_layer_repeat_its_units():
    assert units("lstm", "lstm.weight_ih_l1", 0, 7) == [*range(7)] * 4
    assert units("lstm", "lstm.weight_ih_l1", 1, 7) == [*range(7)] * 2
    assert units("gru with a state handed over", "decoder.weight_hh_l0", 0, 5) == [*range(5)] * 3


def test_rotary_pairs_are_units():
    for name, pairs in (
        ("rotary code by halves", [0, 1, 0, 1]),
        ("rotary code by complex numbers", [0, 0, 1, 1]),
    ):
        assert units(name, "attention.q.weight", 0, 2) == pairs * 3
        assert units(name, "attention.frequency", 0, 2) == [0, 1]


def test_parts_of_a_joined_layer_lie_where_they_are_cut():
    through, past = [-1] * 5 + [*range(5)] * 3, [*range(5)] + [-1] * 15
    found = [
        part.units.tolist()
        for group in groups_of("c2f")
        for part in group.slices
        if (part.tensor, part.dim) == ("join.weight", 1)
    ]
    assert sorted(found) == sorted([through, past])
    assert units("state space", "select.weight", 0, 4) == [-1] * 3 + [*range(4)] * 2
    assert units("state space", "select.weight", 0, 3) == [0, 1, 2] + [-1] * 8


def test_heads_cover_their_width():
    assert units("attention", "attention.q.weight", 0, 3) == np.repeat([0, 1, 2], 4).tolist()
    assert units("fused attention", "attention.qkv.weight", 0, 3) == [*np.repeat([0, 1, 2], 4)] * 3


def test_blocks_of_a_grouped_weight_lie_along_its_outputs():
    part = next(
        part
        for group in groups_of("grouped convolution")
        for part in group.slices
        if part.block_dim is not None
    )
    assert (part.tensor, part.dim, part.block_dim) == ("blocks.0.conv2.weight", 1, 0)
    assert part.units.tolist() == [0, 1, 2, 3]
    assert part.block_of is not None
    assert part.block_of.tolist() == np.repeat([0, 1, 2], 4).tolist()


def test_padded_channels_are_new_ones():
    assert units("padded shortcut", "bn.weight", 0, 8) == [-1, -1, 0, 1, 2, 3, 4, 5, 6, 7, -1, -1]
    assert units("padded shortcut", "bn.weight", 0, 4) == [0, 1] + [-1] * 8 + [2, 3]


@pytest.mark.parametrize("name", ["sort", "cumulative sum", "top values"])
def test_frozen_axes_name_the_line_in_the_users_code(name):
    operator = next(iter(BY_NAME[name].frozen.keys() - {"input", "output"}))
    sources = {axis.source for axis in groups_of(name).frozen if axis.operator == operator}
    assert len(sources) == 1
    file, line, text = sources.pop().split(":", 2)
    assert file.endswith("refused.py")
    assert int(line) > 0
    assert text.strip().startswith(("x = self.operation(", "return self.last("))


def test_fingerprint_follows_tensors_and_couplings_and_nothing_else():
    assert groups_of("perceptron").fingerprint == groups_of("batch of one").fingerprint
    assert groups_of("dropout").fingerprint == groups_of("training mode").fingerprint
    norms = ("group norm", "group norm of one group", "group norm of single channels")
    assert len({groups_of(name).fingerprint for name in norms[:2]}) == 2
    assert groups_of(norms[1]).fingerprint == groups_of(norms[2]).fingerprint
