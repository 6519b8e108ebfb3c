"""Bounds on the cosines between small sets of similar directions, which show which pairs need no comparison."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.dynamics.cones import Directions, cosines, nonzero

TILE = 128  # a block of cosines between two tiles stays in the processor's cache
ROUNDING = 1e-5  # float32 inner products of unit vectors are right to about 1e-6, whatever the order of summation


class Tiles(NamedTuple):
    """Disjoint sets of examples that have a direction.

    Attributes:
        members: The examples in each tile.
        least: Lower bound on the cosines between an example of one tile and one of another.
        most: Upper bound on these cosines.
    """

    members: list[Int[np.ndarray, " _"]]
    least: Float[np.ndarray, "tile tile"]
    most: Float[np.ndarray, "tile tile"]


def tiles(directions: Directions) -> Tiles:
    """Divide the examples that have a direction into tiles of similar ones.

    Examples are similar if the same two entries of the last factor are the largest, with the same signs. For the
    cotangents of an output layer these are examples of one label that look most like the same other class.

    Example:
        >>> tiles((np.array([[1.0, 0.0], [0.0, 0.0], [-0.8, 0.6]]),))
        Tiles(members=[array([2, 0])], least=array([[-1.6]]), most=array([[1.64]]))
    """
    among = np.flatnonzero(nonzero(directions))
    if not len(among):
        return Tiles([], np.empty((0, 0)), np.empty((0, 0)))
    last = directions[-1][among]
    size, rows = np.abs(last), np.arange(len(last))
    kinds = []
    for _ in range(2):
        largest = size.argmax(axis=1)
        kinds.append(2 * largest + (last[rows, largest] > 0))
        second = size[rows, largest]
        size[rows, largest] = 0
    order = np.lexsort((second, *kinds[::-1]))
    starts = np.flatnonzero(np.diff(kinds[0][order], prepend=-1))
    if len(starts) > 1 + 4 * len(order) // TILE:  # tiles of a few examples each would take longer than they save
        starts = starts[:1]
    spans = itertools.pairwise([*starts, len(order)])
    starts = np.concatenate([np.arange(start, stop, TILE) for start, stop in spans])
    least, most = np.ones((2, len(starts), len(starts)))
    for factor in directions:
        low, high = _bounds(factor[among[order]], starts)
        corners = np.stack([least * low, least * high, most * low, most * high])
        least, most = corners.min(axis=0), corners.max(axis=0)
    return Tiles(np.split(among[order], starts[1:]), least, most)


def _bounds(rows: Float[np.ndarray, "n k"], starts: Int[np.ndarray, " tile"]) -> tuple[np.ndarray, np.ndarray]:
    """Bound the inner products between rows of every two tiles.

    With p and q the positive and the negative part, it is p.p' + q.q' - p.q' - q.p'. Each of these four is at least the
    product of the smallest entries of both, and at most that of the largest ones, or of the lengths.
    """
    smallest, largest, length = [], [], []
    for part in (np.maximum(rows, 0), np.maximum(-rows, 0)):
        smallest.append(np.minimum.reduceat(part, starts))
        largest.append(np.maximum.reduceat(part, starts))
        length.append(np.maximum.reduceat(np.linalg.norm(part, axis=1), starts))

    def least(a: int, b: int) -> Float[np.ndarray, "tile tile"]:
        return smallest[a] @ smallest[b].T

    def most(a: int, b: int) -> Float[np.ndarray, "tile tile"]:
        return np.minimum(largest[a] @ largest[b].T, np.outer(length[a], length[b]))

    low = least(0, 0) + least(1, 1) - most(0, 1) - most(1, 0)
    high = most(0, 0) + most(1, 1) - least(0, 1) - least(1, 0)
    return low, high


def apart(tiles: Tiles, cosine: float) -> list[Int[np.ndarray, " _"]]:
    """Divide the examples into as many sets as possible, so that no cosine between two sets reaches a bound."""
    joined = tiles.most >= cosine - ROUNDING
    np.fill_diagonal(joined, True)
    first = np.arange(len(joined))  # the first tile known to hang together with each
    while not np.array_equal(first, lower := np.where(joined, first, len(first)).min(axis=1, initial=len(first))):
        first = lower
    return [
        np.sort(np.concatenate([tiles.members[k] for k in np.flatnonzero(first == start)]))
        for start in np.unique(first)
    ]


def opposed_blocks(
    directions: Directions, tiles: Tiles, cosine: float
) -> Iterator[tuple[Int[np.ndarray, " r"], Int[np.ndarray, " m"], Float[np.ndarray, "r m"]]]:
    """Yield the cosines between every two tiles that may have one below a bound, which is negative.

    Yields:
        The examples of either tile, and the cosines. Every pair of tiles comes once.
    """
    for one, other in np.argwhere(np.triu(tiles.least < cosine + ROUNDING)):
        rows, columns = tiles.members[one], tiles.members[other]
        yield rows, columns, cosines(directions, rows, columns)
