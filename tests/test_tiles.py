"""Bounds on cosines against all cosines."""

import numpy as np
import pytest

from train_dynamics.dynamics import cones
from train_dynamics.dynamics.tiles import apart, opposed_blocks, tiles


@pytest.fixture(params=["of an output layer", "of any layer", "not factored"])
def directions(request, rng):
    """Directions of 90 gradients, a few of them zero."""
    activation = np.maximum(rng.normal(size=(90, 4)) + 1, 0)
    other = rng.normal(size=(90, 3))
    if request.param == "of an output layer":
        other = np.exp(2 * other)
        other /= other.sum(axis=1, keepdims=True)
        other[np.arange(90), rng.integers(0, 3, 90)] -= 1
    activation[:3] = 0
    factors = activation.astype(np.float32), other.astype(np.float32)
    if request.param == "not factored":
        factors = ((factors[0][:, :, None] * factors[1][:, None, :]).reshape(90, -1),)
    return cones.directions(*factors)


@pytest.mark.parametrize("size", [1, 20, 128])
def test_bounds_hold_for_all_cosines(directions, monkeypatch, size):
    monkeypatch.setattr("train_dynamics.dynamics.tiles.TILE", size)
    found = tiles(directions)
    assert all(len(members) <= size for members in found.members)
    np.testing.assert_array_equal(np.sort(np.concatenate(found.members)), np.flatnonzero(cones.nonzero(directions)))
    for one, rows in enumerate(found.members):
        for other, columns in enumerate(found.members):
            block = cones.cosines(directions, rows, columns)
            # Cosines and bounds are sums of a dozen products in float32.
            assert found.least[one, other] - 1e-5 <= block.min() and block.max() <= found.most[one, other] + 1e-5
            if size == 1:
                np.testing.assert_allclose([found.least[one, other], found.most[one, other]], block[0, 0], atol=1e-5)


@pytest.mark.parametrize("size", [1, 20])
def test_nobody_is_near_anybody_apart(directions, monkeypatch, size):
    monkeypatch.setattr("train_dynamics.dynamics.tiles.TILE", size)
    near = cones.unpack(cones.near(directions, 0.95), 90)
    sets = apart(tiles(directions), 0.95)
    of = np.full(90, -1)
    for k, members in enumerate(sets):
        assert (np.diff(members) > 0).all() and (of[members] < 0).all()
        of[members] = k
    np.testing.assert_array_equal(of >= 0, cones.nonzero(directions))
    assert (of[:, None] == of)[near].all()
    assert len(sets) > 1 or size > 1  # tiles of other layers' gradients are less alike


@pytest.mark.parametrize("size", [7, 128])
def test_blocks_hold_all_that_are_opposed_once(directions, monkeypatch, size):
    monkeypatch.setattr("train_dynamics.dynamics.tiles.TILE", size)
    expected = cones.cosines(directions, slice(None), slice(None))
    seen = np.zeros((90, 90), int)
    for rows, columns, block in opposed_blocks(directions, tiles(directions), -0.9):
        np.testing.assert_allclose(block, expected[np.ix_(rows, columns)], atol=1e-5)  # the same, in other orders
        seen[np.ix_(rows, columns)] += 1
        if rows is not columns:
            seen[np.ix_(columns, rows)] += 1
    assert seen.max() == 1 and (seen == 1)[expected < -0.9].all()
    assert 0 < seen.mean() < 1


def test_without_a_direction_there_is_no_tile():
    found = tiles((np.zeros((4, 2), np.float32),))
    assert found.members == [] and apart(found, 0.5) == []
    assert list(opposed_blocks((np.zeros((4, 2), np.float32),), found, -0.5)) == []


def test_many_small_kinds_share_tiles(rng):
    directions = cones.directions(rng.normal(size=(300, 100)))
    assert len(tiles(directions).members) == 3  # and not one for each of the 200 ways to have a largest entry
