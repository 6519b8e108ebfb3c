"""Cones: sets of examples whose gradients point the same way."""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Directions = tuple[Float[np.ndarray, "n _"], ...]
"""Unit vectors of every example, one array a factor: the products of their inner products are the cosines."""

Bits = UInt8[np.ndarray, "n bytes"]
"""A relation between examples: bit `m` of row `n`, packed as `np.packbits` does, tells whether it holds of n and m."""

BLOCK_BYTES = 2 * 1024**2


def directions(*factors: Float[np.ndarray, "n _"]) -> Directions:
    """Normalise gradients to length 1.

    Args:
        factors: The activations and cotangents whose outer products are the gradients; or the gradients themselves,
            flat.

    Returns:
        The same, with rows of length 1. For a zero gradient, at least one row is zero.

    Example:
        >>> directions(np.array([[3.0, 4.0], [0.0, 0.0]]))
        (array([[0.6, 0.8],
               [0. , 0. ]]),)
    """
    return tuple(_unit(_unit(factor, np.inf), 2.0) for factor in factors)  # scaled first: tiny squares would vanish


def _unit(rows: Float[np.ndarray, "n k"], order: float) -> Float[np.ndarray, "n k"]:
    length = np.linalg.norm(rows, order, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def nonzero(directions: Directions) -> Bool[np.ndarray, " n"]:
    """Tell which examples have a nonzero gradient, and thus a direction."""
    return np.logical_and.reduce([factor.any(axis=1) for factor in directions])


def cosines(
    directions: Directions, rows: Int[np.ndarray, " r"] | slice, columns: Int[np.ndarray, " m"] | slice
) -> Float[np.ndarray, "r m"]:
    """Compute the cosines between the gradients of some examples and some others. 0 where one is zero."""
    return products(*(tuple(factor[of] for factor in directions) for of in (rows, columns)))


def products(one: Directions, other: tuple[Float[np.ndarray, "m _"], ...]) -> Float[np.ndarray, "n m"]:
    """Compute the cosines between gradients from their directions.

    The inner product of two outer products is the product of the inner products of their factors.
    """
    first, *rest = (left @ right.T for left, right in zip(one, other, strict=True))
    for factor in rest:
        first *= factor
    return first


def near(directions: Directions, cosine: float) -> Bits:
    """Find the pairs of examples whose gradients have at least this cosine. Nonzero gradients pair with themselves."""
    count = len(directions[0])
    step = max(1, BLOCK_BYTES // (4 * count))  # rows of a block that stays in the processor's cache
    found = np.empty((count, -(-count // 8)), np.uint8)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        found[rows] = np.packbits(cosines(directions, rows, slice(None)) >= cosine, axis=1)
    return found


def unpack(rows: UInt8[np.ndarray, "*r bytes"], count: int) -> Bool[np.ndarray, "*r n"]:
    """Turn rows of bits into arrays of booleans."""
    return np.unpackbits(rows, axis=-1, count=count).view(bool)


def clique_cover(near: Bits, among: Bool[np.ndarray, " n"], smallest: int = 1) -> Int[np.ndarray, " n"]:
    """Divide examples into cones whose members are all near each other, greedily.

    A cone starts at the example with most neighbours not yet in a cone. These neighbours are considered in order of how
    many neighbours *they* have, and each joins if it is near all members so far. Finding the smallest number of cones
    is NP-hard (Karp, "Reducibility among Combinatorial Problems", 1972, clique cover); this finds large ones first.

    Args:
        near: Which examples are near each other. Each is near itself.
        among: The examples to cover. Those with a zero gradient have no direction and stay out.
        smallest: Stop when no cone of this size can be left. Some of those found may still be smaller.

    Returns:
        The cone of each example, numbered from 0 for the largest; -1 for those not covered. Ties are broken by the
        lowest index. An example that is near no other is a cone of its own.

    Example:
        >>> chain = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=bool)  # 0 and 2 are near 1, not each other
        >>> clique_cover(np.packbits(chain, axis=1), np.ones(3, bool))
        array([0, 0, 1])
    """

    def grow(candidates: Int[np.ndarray, " m"]) -> Int[np.ndarray, " k"]:
        members = []
        left = -1  # near all members so far: a bit for each example, as in a row of `near`, in one long number
        for n in candidates.tolist():
            if left >> (last - n) & 1:
                members.append(n)
                left &= int.from_bytes(near[n].tobytes())
        return np.array(members)

    last = 8 * near.shape[1] - 1

    return _cover(near, among, smallest, grow)


def star_cover(near: Bits, among: Bool[np.ndarray, " n"], smallest: int = 1) -> Int[np.ndarray, " n"]:
    """Divide examples into stars, greedily: a centre and all its neighbours that are not yet in a star.

    The centre is the example with most neighbours not yet in a star. This is what the published code of "An Empirical
    Study of Neural Network Training Dynamics" (2022) does. Two members are only guaranteed to lie within twice the
    angle of the threshold: for a cosine of 0.95, that is a cosine of 0.805.

    Arguments, result and tie-breaking are as for `clique_cover`.

    Example:
        >>> chain = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=bool)
        >>> star_cover(np.packbits(chain, axis=1), np.ones(3, bool))
        array([0, 0, 0])
    """
    return _cover(near, among, smallest, lambda candidates: candidates)


def _cover(
    near: Bits,
    among: Bool[np.ndarray, " n"],
    smallest: int,
    grow: Callable[[Int[np.ndarray, " m"]], Int[np.ndarray, " k"]],
) -> Int[np.ndarray, " n"]:
    """Take cones out of the examples until none is left. `grow` picks a cone's members from its start's neighbours."""
    count = len(among)
    uncovered = among.copy()
    bits, some_rows = np.packbits(among), np.array_split(near, -(-count // 512))
    degree = np.concatenate([np.bitwise_count(rows & bits).sum(axis=1, dtype=int) for rows in some_rows])
    cone = np.full(count, -1)
    found = 0
    while degree[start := np.argmax(np.where(uncovered, degree, 0))] >= max(smallest, 2) and uncovered[start]:
        around = np.flatnonzero(unpack(near[start], count) & uncovered)
        around = around[np.lexsort((around, -degree[around], around != start))]
        members = grow(around)
        cone[members] = found
        found += 1
        uncovered[members] = False
        for some in np.split(members, range(256, len(members), 256)):
            degree -= unpack(near[some], count).view(np.uint8).sum(axis=0, dtype=np.uint16)
    if smallest <= 1:  # nobody left is near anybody else left
        alone = np.flatnonzero(uncovered)
        cone[alone] = found + np.arange(len(alone))
    return _largest_first(cone)


def cover_apart(
    directions: Directions,
    sets: Iterable[Int[np.ndarray, " _"]],
    cosine: float,
    method: Callable[[Bits, Bool[np.ndarray, " n"], int], Int[np.ndarray, " n"]] = clique_cover,
    smallest: int = 1,
) -> Int[np.ndarray, " n"]:
    """Cover each set of examples on its own, which is faster, and the same if no two sets have near examples.

    Args:
        directions: Directions of all gradients.
        sets: The examples to cover, in disjoint sets, each in ascending order.
        cosine: The threshold.
        method: `clique_cover` or `star_cover`.
        smallest: Stop in each set when no cone of this size can be left.

    Returns:
        As for `clique_cover`.
    """
    cone = np.full(len(directions[0]), -1)
    for members in sets:
        part = tuple(factor[members] for factor in directions)
        found = method(near(part, cosine), nonzero(part), smallest)
        cone[members] = np.where(found < 0, -1, found + cone.max() + 1)
    return _largest_first(cone)


def _largest_first(cone: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Number cones by size, and by their first member if sizes are equal."""
    covered = np.flatnonzero(cone >= 0)
    _, first, inverse, sizes = np.unique(cone[covered], return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), int)
    rank[np.lexsort((covered[first], -sizes))] = np.arange(len(sizes))
    result = np.full(len(cone), -1)
    result[covered] = rank[inverse]
    return result


def smallest_cosines(directions: Directions, cone: Int[np.ndarray, " n"]) -> Float[np.ndarray, " cone"]:
    """Find the smallest cosine between two members of each cone, which tells how wide it opens. 1 in a cone of one."""
    smallest = np.ones(cone.max(initial=-1) + 1)
    order = np.argsort(cone, kind="stable")[np.count_nonzero(cone < 0) :]
    for members in np.split(order, np.cumsum(np.bincount(cone[order]))[:-1]):
        for start in range(0, len(members) if len(members) > 1 else 0, 512):
            block = cosines(directions, members[start : start + 512], members)
            smallest[cone[members[0]]] = min(smallest[cone[members[0]]], block.min())
    return smallest
