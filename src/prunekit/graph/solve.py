"""From stated facts to one consistent answer: which atoms are the same, what they consist of, what is frozen.

The rules state equalities (``edges``) and products (``merged[p, q] = outer[p] or inner[q]``). Solving
repeats five inferences until nothing new follows. Each is exact, or adds a constraint that only ever
prunes less:

1. Two entries of a merged array that are the same atom: their coordinates stand together, factor by factor.
2. Two indices of a factor that are the same atom: the merged entries they select stand together.
3. A factor that cannot lose an index says nothing: with one other left, the merged array is that one.
4. Two products over shared merged entries: where coordinates correspond, the factors stand together; where
   they only nest (12 = 3 x 4 = 6 x 2, or one is a transposition of parts of the other), both are refined
   (3 x 2 x 2) by what each two coordinates share; else the smallest factor of each is frozen, so that what it
   repeats stands together (channels that a shuffle puts side by side before half of them are taken).
5. Two products with the same factors: their merged arrays stand together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prunekit.graph.atoms import Atoms, Product, Reason
from prunekit.types import IntArray

INCOMPATIBLE = Reason("reshape", "the dimension is split in two ways that do not fit into each other")
_NEVER = np.iinfo(np.int64).max

WHOLE = Reason(
    "reshape", "its indices only stand or fall all together, which would remove the whole dimension"
)


@dataclass(frozen=True)
class Solution:
    """The answer, over *roots*: the classes of atoms that stand or fall together.

    Attributes:
        root: ``[atoms]`` int64, the class of each atom.
        parts: ``[roots, k]`` int64, the basic classes each class consists of, -1 where there are fewer
            than k; a basic class consists of itself. A class disappears when any of its parts does.
        reason: per root, the index into ``reasons`` of what froze it, -1 = free.
        reasons: all stated reasons, in the order of the graph.
        products: the products that are left, over roots.
    """

    root: IntArray
    parts: IntArray
    reason: IntArray
    reasons: tuple[Reason, ...]
    products: tuple[Product, ...]

    def members(self, dim: IntArray) -> IntArray:
        """``[n, k]`` basic classes of each index of a dimension, -1 where there are fewer than k."""
        return self.parts[self.root[dim]]


def solve(atoms: Atoms) -> Solution:
    """Close the stated facts under the five inferences and read off the answer."""
    edges = list(atoms.edges)
    products = list(atoms.products)
    frozen = list(atoms.frozen)
    inherited: list[tuple[IntArray, IntArray]] = []
    count = atoms.count
    while True:
        root = _components(count, edges)
        products = [_canonical(product, root) for product in products]
        reason = _reasons(root, products, [dim for dim, _ in frozen], inherited)
        found = _Found(count)
        kept = _reconcile(_simplify(products, reason, found), found)
        frozen.extend(found.frozen)
        inherited.extend(found.inherited)
        edges.extend(found.edges)
        count = found.count
        if not found.changed:
            break
        products = kept
    parts = _expand(len(root), kept)
    return Solution(root, parts, _spread(reason, parts), tuple(why for _, why in frozen), tuple(kept))


class _Found:
    """What one round of inference added."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.edges: list[tuple[IntArray, IntArray]] = []
        self.frozen: list[tuple[IntArray, Reason]] = []
        self.inherited: list[tuple[IntArray, IntArray]] = []
        self.changed = False

    def fresh(self, size: int) -> IntArray:
        atoms = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        self.changed = True
        return atoms

    def same(self, left: IntArray, right: IntArray) -> None:
        left, right = left.ravel(), right.ravel()
        differ = left != right
        if differ.any():
            self.edges.append((left[differ], right[differ]))
            self.changed = True

    def freeze(self, dim: IntArray, reason: Reason) -> None:
        self.frozen.append((dim.ravel(), reason))
        self.changed = True


def _components(count: int, edges: list[tuple[IntArray, IntArray]]) -> IntArray:
    """The smallest atom of each atom's class, so that ids mean the same from round to round."""
    if not edges:
        return np.arange(count, dtype=np.int64)
    left = np.concatenate([edge[0] for edge in edges])
    right = np.concatenate([edge[1] for edge in edges])
    graph = coo_array((np.ones(len(left), dtype=np.float32), (left, right)), shape=(count, count))
    number, label = connected_components(graph, directed=False)
    smallest = np.full(number, count, dtype=np.int64)
    np.minimum.at(smallest, label, np.arange(count))
    return smallest[label]


def _canonical(product: Product, root: IntArray) -> Product:
    return Product(root[product.merged], tuple(root[factor] for factor in product.factors))


def _reasons(
    root: IntArray,
    products: list[Product],
    frozen: list[IntArray],
    inherited: list[tuple[IntArray, IntArray]],
) -> IntArray:
    """``[atoms]``: the number of the first fact that freezes a class, -1 = free.

    A frozen merged entry freezes its coordinates.
    """
    reason = np.full(len(root), _NEVER)
    for number, dim in enumerate(frozen):
        np.minimum.at(reason, root[dim], number)
    for dim, numbers in inherited:
        np.minimum.at(reason, root[dim], numbers)
    for _ in range(len(products) + 1):
        before = reason.copy()
        for product in products:
            stuck = reason[product.merged]
            for axis, factor in enumerate(product.factors):
                others = tuple(other for other in range(stuck.ndim) if other != axis)
                np.minimum.at(reason, factor, stuck.min(axis=others))
        if np.array_equal(reason, before):
            break
    return np.where(reason == _NEVER, -1, reason)


def _simplify(products: list[Product], reason: IntArray, found: _Found) -> list[Product]:
    """Inferences 1 to 3."""
    kept = []
    for product in products:
        _equal_entries(product, found)
        _equal_coordinates(product, found)
        free = [axis for axis, factor in enumerate(product.factors) if not _cannot_lose(factor, reason)]
        if len(free) == len(product.factors):
            kept.append(product)
        else:
            kept.extend(_without_stuck_factors(product, free, reason, found))
    return kept


def _without_stuck_factors(
    product: Product, free: list[int], reason: IntArray, found: _Found
) -> list[Product]:
    """What a product still says once some factors cannot lose an index; those are frozen for good."""
    for axis, factor in enumerate(product.factors):
        if axis in free:
            continue
        if (reason[factor] < 0).any():
            found.freeze(factor, WHOLE)
        else:
            found.inherited.append((factor, reason[factor]))
    if not free:
        _freeze_merged(product, reason, found)
        return []
    first = tuple(slice(None) if axis in free else slice(0, 1) for axis in range(product.merged.ndim))
    core = product.merged[first]
    found.same(np.broadcast_to(core, product.merged.shape), product.merged)
    factors = tuple(product.factors[axis] for axis in free)
    if len(free) == 1:
        found.same(core, factors[0])
        return []
    found.changed = True
    return [Product(core.reshape([len(factor) for factor in factors]), factors)]


def _freeze_merged(product: Product, reason: IntArray, found: _Found) -> None:
    """Nothing of the merged array can go: for the earliest reason of a factor, where one has any."""
    if (reason[product.merged] >= 0).all():
        return
    stated = [int(reason[factor].min()) for factor in product.factors if (reason[factor] >= 0).all()]
    if stated:
        merged = product.merged.ravel()
        found.inherited.append((merged, np.full(len(merged), min(stated))))
        found.changed = True
    else:
        found.freeze(product.merged, WHOLE)


def _cannot_lose(factor: IntArray, reason: IntArray) -> bool:
    return bool((reason[factor] >= 0).all() or (factor == factor[0]).all())


def _equal_entries(product: Product, found: _Found) -> None:
    flat = product.merged.ravel()
    order = np.argsort(flat, kind="stable")
    twin = np.flatnonzero(flat[order][1:] == flat[order][:-1])
    if len(twin) == 0:
        return
    here = np.unravel_index(order[twin], product.merged.shape)
    there = np.unravel_index(order[twin + 1], product.merged.shape)
    for factor, left, right in zip(product.factors, here, there, strict=True):
        found.same(factor[left], factor[right])


def _equal_coordinates(product: Product, found: _Found) -> None:
    for axis, factor in enumerate(product.factors):
        _, first = np.unique(factor, return_index=True)
        if len(first) == len(factor):
            continue
        representative = dict(zip(factor[first].tolist(), first.tolist(), strict=True))
        source = np.array([representative[atom] for atom in factor.tolist()])
        found.same(product.merged, np.take(product.merged, source, axis=axis))


def _reconcile(products: list[Product], found: _Found) -> list[Product]:
    """Inferences 4 and 5, on products whose coordinates are all distinct."""
    if found.changed:
        return products
    kept: list[Product] = []
    owner = np.full(found.count, -1, dtype=np.int64)
    by_factors: dict[tuple[bytes, ...], int] = {}
    for product in products:
        key = tuple(factor.tobytes() for factor in product.factors)
        if key in by_factors:
            found.same(kept[by_factors[key]].merged, product.merged)
        entries = product.merged.ravel()
        duplicate = False
        for number in np.unique(owner[entries]).tolist():
            if number >= 0:
                duplicate |= _reconcile_pair(kept, number, product, found)
        if duplicate:
            continue
        by_factors.setdefault(key, len(kept))
        owner[entries[owner[entries] < 0]] = len(kept)
        kept.append(product)
    return kept


def _reconcile_pair(kept: list[Product], number: int, product: Product, found: _Found) -> bool:
    """Make ``product`` agree with ``kept[number]``; True where it then says nothing of its own."""
    other = kept[number]
    _, here, there = np.intersect1d(other.merged.ravel(), product.merged.ravel(), return_indices=True)
    left = np.unravel_index(here, other.merged.shape)
    right = np.unravel_index(there, product.merged.shape)
    same_entries = len(here) == other.merged.size == product.merged.size
    if len(left) == len(right) and all(
        _is_function(a, b) and _is_function(b, a) for a, b in zip(left, right, strict=True)
    ):
        for axis, (a, b) in enumerate(zip(left, right, strict=True)):
            found.same(other.factors[axis][a], product.factors[axis][b])
        return same_entries
    if same_entries:
        shares = [[_share(a, b) for b in right] for a in left]
        if all(_is_factored(row, a) for row, a in zip(shares, left, strict=True)) and all(
            _is_factored(list(column), b) for column, b in zip(zip(*shares, strict=True), right, strict=True)
        ):
            kept[number] = _refine(other, product, (left, right), shares, kept, found)
            return True
    return _give_up(other, product, (left, right), found)


def _give_up(
    other: Product, product: Product, shared: tuple[tuple[IntArray, ...], ...], found: _Found
) -> bool:
    """Freeze the smallest factor of each, so that the others still say something; all, if they would not."""
    rests = []
    for each, coordinates in zip((other, product), shared, strict=True):
        smallest = int(np.argmin(each.merged.shape))
        rests.append(_joint([place for axis, place in enumerate(coordinates) if axis != smallest]))
    if len(np.unique(_share(*rests))) > 1:
        for each in (other, product):
            found.freeze(min(each.factors, key=len), INCOMPATIBLE)
        return False
    for dim in (other.merged, product.merged, *other.factors, *product.factors):
        found.freeze(dim, INCOMPATIBLE)
    return True


def _is_function(source: IntArray, target: IntArray) -> bool:
    pairs = np.unique(np.stack([source, target]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1]


def _share(left: IntArray, right: IntArray) -> IntArray:
    """``[entries]``: what coordinates of two products both determine, counted from 0 on."""
    size = int(left.max()) + 1
    count = size + int(right.max()) + 1
    graph = coo_array((np.ones(len(left)), (left, right + size)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)[left]


def _is_factored(shares: list[IntArray], coordinate: IntArray) -> bool:
    """Shares take every combination of values, each in one index of the coordinate."""
    count = int(np.prod([int(share.max()) + 1 for share in shares]))
    return count == int(coordinate.max()) + 1 and _is_function(_joint(shares), coordinate)


def _joint(shares: list[IntArray]) -> IntArray:
    return np.ravel_multi_index(shares, [int(share.max()) + 1 for share in shares])


def _refine(
    other: Product,
    product: Product,
    coordinates: tuple[tuple[IntArray, ...], tuple[IntArray, ...]],
    shares: list[list[IntArray]],
    kept: list[Product],
    found: _Found,
) -> Product:
    """One product over what the factors of two share; each factor of theirs is a product of its shares."""
    fresh = [[found.fresh(int(share.max()) + 1) for share in row] for row in shares]
    for axis, factor in enumerate(other.factors):
        _as_product(factor, coordinates[0][axis], shares[axis], fresh[axis], kept, found)
    for axis, factor in enumerate(product.factors):
        ours, atoms = [row[axis] for row in shares], [row[axis] for row in fresh]
        _as_product(factor, coordinates[1][axis], ours, atoms, kept, found)
    flat = [share for row in shares for share in row]
    factors = [atoms for row in fresh for atoms in row]
    here = np.ravel_multi_index(coordinates[0], other.merged.shape)
    return _over(other.merged.ravel()[here], flat, factors)


def _over(entries: IntArray, shares: list[IntArray], factors: list[IntArray]) -> Product:
    """``entries`` as a product of the factors of more than one index, each in its place."""
    wide = [axis for axis, factor in enumerate(factors) if len(factor) > 1]
    merged = np.empty([len(factors[axis]) for axis in wide], dtype=np.int64)
    merged[tuple(shares[axis] for axis in wide)] = entries
    return Product(merged, tuple(factors[axis] for axis in wide))


def _as_product(
    factor: IntArray,
    coordinate: IntArray,
    shares: list[IntArray],
    fresh: list[IntArray],
    kept: list[Product],
    found: _Found,
) -> None:
    product = _over(factor[coordinate], shares, fresh)
    if len(product.factors) == 1:
        found.same(product.merged, product.factors[0])
    else:
        kept.append(product)


def _expand(count: int, products: list[Product]) -> IntArray:
    """``[roots, k]`` basic classes of every class, following products of products."""
    parts = np.arange(count, dtype=np.int64)[:, None]
    for _ in range(len(products) + 1):
        found = []
        for product in products:
            grids = np.meshgrid(*product.factors, indexing="ij")
            found.append(_distinct(np.concatenate([parts[grid.ravel()] for grid in grids], axis=1)))
        wider = np.full((count, max([parts.shape[1], *(pieces.shape[1] for pieces in found)])), -1)
        wider[:, : parts.shape[1]] = parts
        for product, pieces in zip(products, found, strict=True):
            rows = product.merged.ravel()
            wider[rows] = -1
            wider[rows, : pieces.shape[1]] = pieces
        if np.array_equal(wider, parts):
            break
        parts = wider
    return parts


def _distinct(pieces: IntArray) -> IntArray:
    """The distinct members of every row, falling, -1 filled at the end of the shorter ones."""
    pieces = np.sort(pieces, axis=1)[:, ::-1].copy()
    pieces[:, 1:][pieces[:, 1:] == pieces[:, :-1]] = -1
    pieces = np.sort(pieces, axis=1)[:, ::-1]
    return pieces[:, : max(1, int((pieces >= 0).sum(axis=1).max(initial=1)))]


def _spread(reason: IntArray, parts: IntArray) -> IntArray:
    """A frozen class freezes the basic classes it consists of; the earliest reason is the one told."""
    rows = np.flatnonzero(reason >= 0)
    members = parts[rows]
    stated = np.broadcast_to(reason[rows][:, None], members.shape)[members >= 0]
    spread = np.full(len(reason), _NEVER)
    np.minimum.at(spread, members[members >= 0], stated)
    return np.where(reason >= 0, reason, np.where(spread == _NEVER, -1, spread))
