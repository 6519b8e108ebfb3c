"""Cones against their definition, exhaustive search and SciPy's complete linkage."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components

from tests import oracles
from train_dynamics.config import InputError
from train_dynamics.dynamics import cones
from train_dynamics.recording.reader import Recording
from train_dynamics.study.cones import ConeOptions, cover, find_cones, half_learned


def factors(rng, count, spread=1.0):
    """Activations as after a ReLU and cotangents, a few of them zero, around a few common directions."""
    kind = rng.integers(0, 4, count)
    activation = np.maximum(rng.normal(size=(4, 5))[kind] + spread * rng.normal(size=(count, 5)), 0)
    cotangent = rng.normal(size=(4, 3))[kind] + spread * rng.normal(size=(count, 3))
    return activation.astype(np.float32), cotangent.astype(np.float32)


def gradients(activation, cotangent):
    return activation[:, :, None] * cotangent[:, None, :]


def packed(relation):
    return np.packbits(np.asarray(relation, bool), axis=1)


def sets(cone):
    return [set(np.flatnonzero(cone == k).tolist()) for k in range(cone.max() + 1)]


def random_graph(rng, count, density):
    upper = np.triu(rng.random((count, count)) < density, 1)
    return upper | upper.T | np.eye(count, dtype=bool)


# Of cosines in float32: sums of up to 50 products, none above 1, which round by 6e-8 each at most; so do the lengths.
ROUNDING = 1e-5


def test_cosines_of_factors_are_those_of_gradients(rng):
    activation, cotangent = factors(rng, 21)
    activation[4] = 0
    dense = gradients(activation, cotangent)
    expected = np.array([[oracles.cosine(a, b) for b in dense] for a in dense])
    for directions in (cones.directions(activation, cotangent), cones.directions(dense.reshape(21, -1))):
        np.testing.assert_allclose(cones.cosines(directions, slice(None), slice(None)), expected, atol=ROUNDING)
        np.testing.assert_array_equal(cones.nonzero(directions), [g.any() for g in dense])
        for cosine in (0.3, 0.95):
            np.testing.assert_array_equal(cones.unpack(cones.near(directions, cosine), 21), expected >= cosine)


def test_tiny_gradients_keep_their_direction():
    (unit,) = cones.directions(np.array([[3e-30, 4e-30], [0, 0]], np.float32))  # whose squares float32 does not hold
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0]], rtol=1e-6)  # a few roundings by 6e-8


@pytest.mark.parametrize("seed", range(8))
def test_cliques_are_valid_and_not_many_more_than_needed(seed):
    rng = np.random.default_rng(seed)
    near = random_graph(rng, 8, 0.6)
    found = sets(cones.clique_cover(packed(near), np.ones(8, bool)))
    assert sorted(n for clique in found for n in clique) == list(range(8))
    for clique in found:
        assert all(near[n, m] for n in clique for m in clique)
    assert oracles.fewest_cliques(near) <= len(found) <= oracles.fewest_cliques(near) + 2
    assert [len(clique) for clique in found] == sorted(map(len, found), reverse=True)


@pytest.mark.parametrize("seed", range(4))
def test_cliques_keep_the_promise_of_complete_linkage_with_no_more_cones(seed):
    rng = np.random.default_rng(seed)
    directions = cones.directions(*factors(rng, 300, spread=0.25))
    among = cones.nonzero(directions)
    cone, smallest = cover(directions, ConeOptions(cosine=0.9))
    cosine = cones.cosines(directions, slice(None), slice(None)).astype(np.float64)
    for members in sets(cone):
        assert cosine[np.ix_(list(members), list(members))].min() >= 0.9 - ROUNDING
    np.testing.assert_allclose(
        smallest, [cosine[np.ix_(list(m), list(m))].min() if len(m) > 1 else 1 for m in sets(cone)], atol=ROUNDING
    )
    upper = np.triu_indices(among.sum(), 1)
    distance = np.maximum(1 - cosine[np.ix_(among, among)][upper], 0)
    linked = fcluster(linkage(distance, "complete"), 1 - 0.9, "distance")
    assert len(smallest) <= 1.15 * len(np.unique(linked))  # as few as an established method needs, or nearly
    assert np.bincount(cone[cone >= 0]).max() >= 0.8 * np.bincount(linked).max()


@pytest.mark.parametrize("seed", range(6))
def test_stars_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    near = random_graph(rng, 30, 0.2)
    found = sets(cones.star_cover(packed(near), np.ones(30, bool)))
    assert sorted(map(sorted, found)) == sorted(map(sorted, oracles.star_cover(near)))


@pytest.mark.parametrize("method", [cones.clique_cover, cones.star_cover])
def test_ties_go_to_the_lowest_index(method):
    pairs = np.kron(np.eye(3, dtype=bool), np.ones((2, 2), bool))
    np.testing.assert_array_equal(method(packed(pairs), np.ones(6, bool)), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(method(packed(np.eye(3)), np.ones(3, bool)), [0, 1, 2])


@pytest.mark.parametrize("method", [cones.clique_cover, cones.star_cover])
def test_what_has_no_direction_stays_out(method):
    near = np.eye(4, dtype=bool)
    near[2, 2] = False
    np.testing.assert_array_equal(method(packed(near), near.diagonal()), [0, 1, -1, 2])
    np.testing.assert_array_equal(method(packed(np.zeros((2, 2))), np.zeros(2, bool)), [-1, -1])


@pytest.mark.parametrize("method", [cones.clique_cover, cones.star_cover])
def test_stopping_early_leaves_out_small_cones_only(rng, method):
    near = packed(random_graph(rng, 60, 0.3))
    everyone = np.ones(60, bool)
    full, some = sets(method(near, everyone)), sets(method(near, everyone, smallest=5))
    assert [c for c in some if len(c) >= 5] == [c for c in full if len(c) >= 5]
    assert len(some) < len(full)


@pytest.mark.parametrize("method", [cones.clique_cover, cones.star_cover])
def test_covers_of_sets_apart_are_those_of_all_at_once(rng, method):
    directions = cones.directions(*factors(rng, 200, spread=0.3))
    near = cones.unpack(cones.near(directions, 0.8), 200)
    _, component = connected_components(near)
    sets = [np.flatnonzero(component == k) for k in np.unique(component[cones.nonzero(directions)])]
    assert len(sets) > 3
    whole = method(packed(near), cones.nonzero(directions))
    np.testing.assert_array_equal(cones.cover_apart(directions, sets, 0.8, method), whole)


def test_blocks_of_rows_make_no_difference(rng, monkeypatch):
    directions = cones.directions(*factors(rng, 40))
    whole = cones.near(directions, 0.9)
    monkeypatch.setattr(cones, "BLOCK_BYTES", 4 * 40 * 3)
    np.testing.assert_array_equal(cones.near(directions, 0.9), whole)


def test_half_learned():
    assert half_learned(np.array([0.1, 0.5, 0.4])) == 1
    assert half_learned(np.array([0.1, 0.2])) == 1
    assert half_learned(np.array([0.5, 0.7, 0.75, 0.8]), num_classes=2) == 2  # half are right by chance


def test_cones_of_a_recording(small_path):
    recording = Recording(small_path)
    accuracy = np.stack([(recording.predictions(t) == recording.labels).mean(-1) for t in range(17)], axis=1)
    (found,) = find_cones(recording, ConeOptions(cosine=0.9, seed=2, iteration=7), accuracy)
    assert (found.seed, found.layer, found.frame.iteration) == (2, "fc2", 7)
    dense = recording.gradients("fc2", 7)[2]
    for cone, members in enumerate(sets(found.cone)):
        values = [oracles.cosine(dense[n], dense[m]) for n in members for m in members if n != m]
        np.testing.assert_allclose(found.smallest_cosine[cone], min(values, default=1), atol=ROUNDING)
        assert found.smallest_cosine[cone] >= 0.9 - ROUNDING
    np.testing.assert_array_equal(found.cone < 0, [not g.any() for g in dense])
    assert [frame.iteration for frame in found.tracked] == list(range(17))
    (default,) = find_cones(recording, ConeOptions(), accuracy)
    assert (default.seed, default.frame.iteration) == (0, half_learned(accuracy[0]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cosine": 1.0}, "--cone_cosine=1.0"),
        ({"cover": "ring"}, "--cone_cover=ring"),
        ({"seed": 7}, "--cone_seed=7"),
        ({"iteration": 17}, "--cone_iteration=17"),
        ({"iteration": -1}, "--cone_iteration=-1"),
    ],
)
def test_what_cannot_be_is_said(small_path, options, words):
    with pytest.raises(InputError, match=words):
        find_cones(Recording(small_path), ConeOptions(**options), np.zeros((3, 17)))
