"""The five inferences on arrays small enough to enumerate.

The oracle is brute force: of all ways to let atoms go, those that satisfy every stated fact. Solving may
admit fewer (it only ever freezes more), never one that violates a fact.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from prunekit.graph.atoms import Atoms, Fixed, Reason
from prunekit.graph.solve import Solution, solve

WHY = Reason("test", "it is said so")


def consistent(atoms: Atoms) -> set[tuple[bool, ...]]:
    """All assignments ``gone[atom]`` that satisfy the equalities, products and frozen atoms."""
    found = set()
    for gone in itertools.product([False, True], repeat=atoms.count):
        array = np.array(gone)
        equal = all((array[left] == array[right]).all() for left, right in atoms.edges)
        stays = not any(array[dim].any() for dim, _ in atoms.frozen)
        if equal and stays and all(_product_holds(array, product) for product in atoms.products):
            found.add(gone)
    return found


def _product_holds(gone, product) -> bool:
    grids = np.meshgrid(*(gone[factor] for factor in product.factors), indexing="ij")
    return bool((gone[product.merged] == np.logical_or.reduce(grids)).all())


def admitted(solution: Solution, count: int) -> set[tuple[bool, ...]]:
    """All assignments that the solution allows: any free basic classes go, and what consists of them."""
    members = solution.members(np.arange(count))
    basic = sorted({int(part) for part in members.ravel() if part >= 0})
    free = [part for part in basic if solution.reason[part] < 0]
    found = set()
    for chosen in itertools.product([False, True], repeat=len(free)):
        lost = [part for part, goes in zip(free, chosen, strict=True) if goes]
        found.add(tuple(np.isin(members, lost).any(axis=1).tolist()))
    return found


def assert_sound(atoms: Atoms, *, exact: bool = False) -> set[tuple[bool, ...]]:
    right = consistent(atoms)
    allowed = admitted(solve(atoms), atoms.count)
    assert allowed <= right
    assert not exact or allowed == right
    return allowed


def removed_from(allowed: set[tuple[bool, ...]], dim) -> set[tuple[int, ...]]:
    """The ways in which indices of one dimension go."""
    return {tuple(np.flatnonzero(np.array(gone)[dim]).tolist()) for gone in allowed}


def test_equal_dimensions_go_together():
    atoms = Atoms()
    left, middle, right = atoms.fresh(3), atoms.fresh(3), atoms.fresh(3)
    atoms.unify(left, middle)
    atoms.unify(right, middle)
    allowed = assert_sound(atoms, exact=True)
    assert len(allowed) == 8
    assert solve(atoms).root[right].tolist() == left.tolist()


def test_unifying_with_a_fixed_dimension_freezes_with_its_reason():
    atoms = Atoms()
    left = atoms.fresh(3)
    assert atoms.unify(Fixed(3, WHY), left) is left
    solution = solve(atoms)
    assert [solution.reasons[number] for number in solution.reason[left]] == [WHY] * 3
    assert assert_sound(atoms, exact=True) == {(False, False, False)}


def test_product_of_two_free_factors():
    atoms = Atoms()
    merged, outer, inner = atoms.fresh(6), atoms.fresh(2), atoms.fresh(3)
    atoms.product(merged, (outer, inner))
    allowed = assert_sound(atoms, exact=True)
    assert len(allowed) == 2**5
    assert (3, 4, 5) in removed_from(allowed, merged)
    assert (0,) not in removed_from(allowed, merged)


def test_inference_1_equal_entries_tie_their_coordinates():
    """A 2 x 2 array whose off-diagonal entries are one atom: ``m[0, 1] = m[1, 0]``."""
    atoms = Atoms()
    a, b, c = atoms.fresh(3)
    outer, inner = atoms.fresh(2), atoms.fresh(2)
    atoms.product(np.array([a, b, b, c]), (outer, inner))
    allowed = assert_sound(atoms)
    for gone in allowed:
        assert gone[outer[0]] == gone[outer[1]]
        assert gone[inner[0]] == gone[inner[1]]


def test_inference_2_equal_indices_of_a_factor_tie_the_entries_they_select():
    atoms = Atoms()
    merged, inner, one = atoms.fresh(6), atoms.fresh(3), atoms.fresh(1)
    atoms.product(merged, (np.array([one[0], one[0]]), inner))
    allowed = assert_sound(atoms)
    for gone in allowed:
        assert [gone[entry] for entry in merged[:3]] == [gone[entry] for entry in merged[3:]]
    assert (1, 4) in removed_from(allowed, merged)


def test_inference_3_a_factor_that_cannot_go_says_nothing():
    """A flatten over space: the merged dimension goes channel by channel."""
    atoms = Atoms()
    merged, channels, space = atoms.fresh(6), atoms.fresh(3), atoms.fresh(2)
    atoms.product(merged, (channels, space))
    atoms.freeze(space, WHY)
    allowed = assert_sound(atoms, exact=True)
    assert removed_from(allowed, merged) == {
        tuple(2 * channel + place for channel in chosen for place in (0, 1))
        for size in range(4)
        for chosen in itertools.combinations(range(3), size)
    }


def test_a_frozen_entry_freezes_its_coordinates():
    atoms = Atoms()
    merged, outer, inner = atoms.fresh(6), atoms.fresh(2), atoms.fresh(3)
    atoms.product(merged, (outer, inner))
    atoms.freeze(merged[:1], WHY)
    allowed = assert_sound(atoms, exact=True)
    assert len(allowed) == 2 ** (1 + 2)


def test_inference_4_the_same_cuts_give_the_same_factors():
    """Queries and keys in the same heads."""
    atoms = Atoms()
    merged = atoms.fresh(6)
    heads, widths, other_heads, other_widths = (atoms.fresh(size) for size in (2, 3, 2, 3))
    atoms.product(merged, (heads, widths))
    atoms.product(merged, (other_heads, other_widths))
    allowed = assert_sound(atoms)
    solution = solve(atoms)
    assert solution.root[heads].tolist() == solution.root[other_heads].tolist()
    assert solution.root[widths].tolist() == solution.root[other_widths].tolist()
    assert len(removed_from(allowed, merged)) == len({*_boxes(2, 3)})


def _boxes(rows: int, columns: int):
    """All sets of entries of a grid that are a union of whole rows and whole columns."""
    for lost_rows in itertools.product([False, True], repeat=rows):
        for lost_columns in itertools.product([False, True], repeat=columns):
            grid = np.array(lost_rows)[:, None] | np.array(lost_columns)[None]
            yield tuple(np.flatnonzero(grid.ravel()).tolist())


def test_inference_4_cuts_that_nest_are_refined():
    """12 = 3 x 4 = 6 x 2: the common cut is 3 x 2 x 2."""
    atoms = Atoms()
    merged = atoms.fresh(12)
    three, four, six, two = (atoms.fresh(size) for size in (3, 4, 6, 2))
    atoms.product(merged, (three, four))
    atoms.product(merged, (six, two))
    solution = solve(atoms)
    parts = solution.members(merged)
    assert parts.shape == (12, 3)
    basic = np.unique(parts)
    assert len(basic) == 3 + 2 + 2
    assert (solution.reason[basic] < 0).all()
    assert (solution.members(four) >= 0).sum(axis=1).tolist() == [2] * 4
    assert (solution.members(six) >= 0).sum(axis=1).tolist() == [2] * 6
    of_three = solution.members(three)[:, 0]
    assert [sorted({*row} & {*of_three}) for row in parts.tolist()] == [
        [root] for root in np.repeat(of_three, 4).tolist()
    ]


def test_inference_4_cuts_that_nest_admit_only_what_the_facts_allow():
    """8 = 2 x 4 = 4 x 2, small enough to enumerate."""
    atoms = Atoms()
    merged = atoms.fresh(8)
    for sizes in ((2, 4), (4, 2)):
        atoms.product(merged, tuple(atoms.fresh(size) for size in sizes))
    allowed = removed_from(admitted(solve(atoms), atoms.count), merged)
    assert allowed == set(_boxes(2, 4)) & set(_boxes(4, 2)) & allowed
    single_factors = {(0, 1, 2, 3), (0, 1, 4, 5), (0, 2, 4, 6)}
    assert single_factors <= allowed


def test_inference_4_cuts_that_do_not_nest_are_frozen():
    """12 = 3 x 4 = 4 x 3."""
    atoms = Atoms()
    merged = atoms.fresh(12)
    dims = [atoms.fresh(size) for size in (3, 4, 4, 3)]
    atoms.product(merged, dims[:2])
    atoms.product(merged, dims[2:])
    solution = solve(atoms)
    for dim in (merged, *dims):
        assert (solution.reason[solution.members(dim)] >= 0).all()
    reason = solution.reasons[int(solution.reason[solution.root[merged[0]]])]
    assert (reason.operator, "do not fit" in reason.text) == ("reshape", True)


def test_inference_4_a_transposition_is_refined():
    """8 = 2 x 4, and 2 x 4 of the same entries read column by column: 2 x 2 x 2."""
    atoms = Atoms()
    merged = atoms.fresh(8)
    for entries in (merged, merged.reshape(2, 4).T.ravel()):
        atoms.product(entries, (atoms.fresh(2), atoms.fresh(4)))
    solution = solve(atoms)
    parts = solution.members(merged)
    assert parts.shape == (8, 3)
    assert len(np.unique(parts)) == 2 + 2 + 2
    assert (solution.reason[np.unique(parts)] < 0).all()


def test_inference_4_of_cuts_that_do_not_nest_the_smallest_factors_freeze():
    """8 = 2 x 4, and the first half of these in pairs with 4 others, as two shuffled units of ShuffleNet."""
    atoms = Atoms()
    merged = atoms.fresh(8)
    atoms.product(merged, (atoms.fresh(2), atoms.fresh(4)))
    shuffled, others = merged.reshape(2, 4).T.ravel(), atoms.fresh(4)
    atoms.product(np.concatenate([shuffled[:4], others]), (atoms.fresh(2), atoms.fresh(4)))
    solution = solve(atoms)
    root = solution.root
    assert root[merged].tolist() == np.tile(root[merged[:4]], 2).tolist()
    assert root[others].tolist() == np.repeat(root[merged[:2]], 2).tolist()
    assert (solution.reason[root[merged]] < 0).all()


def test_inference_5_the_same_factors_give_the_same_product():
    atoms = Atoms()
    left, right, outer, inner = atoms.fresh(6), atoms.fresh(6), atoms.fresh(2), atoms.fresh(3)
    atoms.product(left, (outer, inner))
    atoms.product(right, (outer, inner))
    solution = solve(atoms)
    assert solution.root[left].tolist() == solution.root[right].tolist()
    assert len(removed_from(admitted(solution, atoms.count), right)) == len({*_boxes(2, 3)})


def test_earliest_reason_is_the_one_told():
    atoms = Atoms()
    dim, later = atoms.fresh(2), Reason("later", "said afterwards")
    atoms.freeze(dim, WHY)
    atoms.freeze(dim, later)
    solution = solve(atoms)
    assert {solution.reasons[number] for number in solution.reason[dim]} == {WHY}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_nothing_stated_means_everything_is_free(size):
    atoms = Atoms()
    atoms.fresh(size)
    assert len(assert_sound(atoms, exact=True)) == 2**size


@st.composite
def stated(draw) -> Atoms:
    """At most 12 atoms, with random equalities, products and frozen atoms among them."""
    atoms = Atoms()
    dims = [atoms.fresh(size) for size in draw(st.sampled_from([(4,), (4, 4), (6,), (4, 2), (6, 2)]))]
    for _ in range(draw(st.integers(1, 2))):
        merged = dims[draw(st.integers(0, len(dims) - 1))]
        shapes = {4: [(2, 2)], 6: [(2, 3), (3, 2)], 3: [(3, 1)], 2: [(2, 1)], 1: [(1, 1)]}[len(merged)]
        shape = draw(st.sampled_from(shapes))
        known = [dim for dim in dims if len(dim) in shape]
        room = atoms.count + sum(shape) <= 12
        factors = [
            draw(st.sampled_from(known)) if (draw(st.booleans()) or not room) and known else atoms.fresh(size)
            for size in shape
        ]
        if all(len(factor) == size for factor, size in zip(factors, shape, strict=True)):
            order = draw(st.permutations(range(len(merged)))) if draw(st.booleans()) else range(len(merged))
            atoms.product(merged[list(order)], factors)
            dims += factors
    for _ in range(draw(st.integers(0, 2))):
        left, right = (draw(st.sampled_from(dims)) for _ in range(2))
        if len(left) == len(right):
            atoms.unify(left, right[:: draw(st.sampled_from([1, -1]))])
    if draw(st.booleans()):
        atoms.freeze(draw(st.sampled_from(dims))[: draw(st.integers(1, 2))], WHY)
    return atoms


@settings(derandomize=True, database=None, max_examples=100)
@given(stated())
def test_no_stated_fact_is_ever_violated(atoms):
    note(f"equal {atoms.edges}, products {atoms.products}, frozen {[dim for dim, _ in atoms.frozen]}")
    assert_sound(atoms)
