import numpy as np
import pytest

from tests import oracles
from train_dynamics.dynamics.agreement import agreement, chunks, entropy, ranks
from train_dynamics.dynamics.groups import group_means


def test_agreement_by_hand():
    # Three seeds, two sure of class 0 and one of class 1: divergences 0, ln 2, ln 2.
    sure = np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(agreement(sure), [2 * np.log(2) / 3])
    # (1/2, 1/2) against (1, 0): H(3/4, 1/4) - H(1/2, 1/2) / 2.
    half = np.array([[[0.5, 0.5]], [[1.0, 0.0]]])
    np.testing.assert_allclose(agreement(half), [-0.75 * np.log(0.75) - 0.25 * np.log(0.25) - np.log(2) / 2])


def test_agreement_against_its_definition(rng):
    probabilities = rng.dirichlet(np.full(10, 0.2), size=(5, 30)).astype(np.float32)
    # The oracle takes float32 rows as they are, which sum to 1 only to rounding.
    np.testing.assert_allclose(agreement(probabilities), oracles.agreement(probabilities), atol=1e-7)


def test_agreement_properties(rng):
    p = rng.dirichlet(np.ones(4), size=(4, 20))
    found = agreement(p)
    assert (found >= 0).all() and (found <= np.log(2)).all()
    order = rng.permutation(20)
    np.testing.assert_allclose(agreement(p[:, order]), found[order], rtol=1e-12)
    np.testing.assert_allclose(agreement(p[rng.permutation(4)]), found, rtol=1e-12)
    np.testing.assert_allclose(agreement(p[..., rng.permutation(4)]), found, rtol=1e-12)
    assert (agreement(np.repeat(p[:1], 3, axis=0)) < 1e-15).all()


def test_agreement_of_one_seed_is_refused():
    with pytest.raises(ValueError, match="two seeds"):
        agreement(np.ones((1, 3, 1)))


def test_entropy_by_hand():
    np.testing.assert_allclose(entropy(np.array([[1.0, 0.0], [0.5, 0.5]])), [0, np.log(2)])


def test_ranks_and_chunks_by_hand():
    np.testing.assert_array_equal(ranks(np.array([0.3, 0.1, 0.3, 0.2])), [2, 0, 3, 1])
    np.testing.assert_array_equal(chunks(np.arange(7), 3), [0, 0, 0, 1, 1, 2, 2])
    assert np.bincount(chunks(np.arange(6000))).tolist() == [600] * 10
    with pytest.raises(ValueError, match="10 chunks"):
        chunks(np.arange(9))


def test_group_means_by_hand_and_by_loop(rng):
    np.testing.assert_allclose(group_means(np.array([[1.0, 2.0, 6.0]]), np.array([1, 0, 1]), 2), [[2.0, 3.5]])
    values, group = rng.random((2, 3, 20)), np.arange(20) % 4
    found = group_means(values, group, 4)
    for g in range(4):
        np.testing.assert_allclose(found[..., g], values[..., group == g].mean(axis=-1))
    with pytest.raises(ValueError, match="each needs an example"):
        group_means(values, group, 5)
    with pytest.raises(ValueError, match="each needs an example"):
        group_means(values, group, 3)
