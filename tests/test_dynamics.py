import numpy as np
import pytest

from tests import oracles
from train_dynamics.dynamics.agreement import agreement, chunks, entropy, indifferent, ranks
from train_dynamics.dynamics.alignment import alignment, factored_alignment
from train_dynamics.dynamics.forgetting import Forgetting, first_correct_curve, last_mistake_curve
from train_dynamics.dynamics.groups import group_weights


def test_agreement_by_hand():
    # Three seeds, two sure of class 0 and one of class 1: divergences 0, ln 2, ln 2.
    sure = np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(agreement(sure), [2 * np.log(2) / 3])
    # (1/2, 1/2) against (1, 0): H(3/4, 1/4) - H(1/2, 1/2) / 2.
    half = np.array([[[0.5, 0.5]], [[1.0, 0.0]]])
    np.testing.assert_allclose(agreement(half), [-0.75 * np.log(0.75) - 0.25 * np.log(0.25) - np.log(2) / 2])


def test_a_dead_network_tells_no_example_from_another(rng):
    p = np.repeat(rng.dirichlet(np.ones(3), size=(4, 1)), 5, axis=1).astype(np.float32)
    p[1, 2] = rng.dirichlet(np.ones(3))  # one example of five is another
    p[3, 2, 0] = np.nextafter(p[3, 2, 0], np.float32(1))  # rounding
    assert indifferent(p).tolist() == [True, False, True, True]


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
    assert (agreement(np.repeat(p[:1], 3, axis=0)) < 1e-12).all()  # this and those above: sums of float64


def test_agreement_of_one_seed_is_refused():
    with pytest.raises(ValueError, match="two seeds"):
        agreement(np.ones((1, 3, 1)))


def test_entropy_by_hand():
    np.testing.assert_allclose(entropy(np.array([[1.0, 0.0], [0.5, 0.5]])), [0, np.log(2)])


def test_ranks_and_chunks_by_hand():
    np.testing.assert_array_equal(ranks(np.array([0.3, 0.1, 0.3, 0.2])), [2, 0, 3, 1])
    np.testing.assert_array_equal(chunks(np.arange(7), 3), [0, 0, 0, 1, 1, 2, 2])
    assert np.bincount(chunks(np.arange(6000), 10)).tolist() == [600] * 10
    with pytest.raises(ValueError, match="10 chunks"):
        chunks(np.arange(9), 10)


def test_group_weights_by_hand_and_by_loop(rng):
    np.testing.assert_allclose(np.array([1.0, 2.0, 6.0]) @ group_weights(np.array([1, 0, 1]), 2), [2.0, 3.5])
    values, group = rng.random((2, 3, 20)), np.arange(20) % 4
    found = values @ group_weights(group, 4)
    for g in range(4):
        np.testing.assert_allclose(found[..., g], values[..., group == g].mean(axis=-1))
    for wrong in (3, 5):
        with pytest.raises(ValueError, match="each needs an example"):
            group_weights(group, wrong)


def test_alignment_by_hand():
    # gradients (3, 0) and (0, 1), mean (1.5, 0.5) of length sqrt(2.5); products 4.5 and 0.5
    found = alignment(np.array([[[3.0, 0.0]], [[0.0, 1.0]]]))
    np.testing.assert_allclose(found.norm, [3, 1])
    np.testing.assert_allclose(found.mean_norm, 2.5**0.5)
    np.testing.assert_allclose(found.cosine, [4.5 / 3 / 2.5**0.5, 0.5 / 2.5**0.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_alignment_against_one_example_at_a_time_and_its_factors(rng, dtype):
    a, d = rng.normal(size=(2, 3, 30, 4)).astype(dtype), rng.normal(size=(2, 3, 30, 5)).astype(dtype)
    gradients = a[..., :, None] * d[..., None, :]
    dense, factored = alignment(gradients), factored_alignment(a, d)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12  # sums of 30 x 20 terms
    for s in range(2):
        for t in range(3):
            norms, cosines = oracles.alignment(gradients[s, t])
            for found in (dense, factored):
                np.testing.assert_allclose(found.norm[s, t], norms, rtol=tolerance)
                np.testing.assert_allclose(found.cosine[s, t], cosines, atol=tolerance)
    np.testing.assert_allclose(dense.mean_norm, factored.mean_norm, rtol=tolerance)


def test_alignment_properties(rng):
    a, d = rng.normal(size=(20, 4)), rng.normal(size=(20, 5))
    found = factored_alignment(a, d)
    assert (np.abs(found.cosine) <= 1).all()
    scaled = factored_alignment(7 * a, d)
    np.testing.assert_allclose(scaled.cosine, found.cosine)
    np.testing.assert_allclose(scaled.norm, 7 * found.norm)
    order = rng.permutation(20)
    np.testing.assert_allclose(factored_alignment(a[order], d[order]).cosine, found.cosine[order])
    np.testing.assert_allclose(factored_alignment(a[:1], d[:1]).cosine, [1])


def test_a_zero_gradient_has_alignment_zero():
    a = np.array([[0.0, 0.0], [1.0, 2.0], [1.0, 0.0]], np.float32)
    d = np.array([[1.0, -1.0], [0.0, 0.0], [2.0, 1.0]], np.float32)
    for found in (factored_alignment(a, d), alignment(a[:, :, None] * d[:, None, :])):
        np.testing.assert_array_equal(found.norm[:2], 0)
        np.testing.assert_array_equal(found.cosine[:2], 0)
        assert found.cosine[2] > 0.99
    opposed = alignment(np.array([[[1.0]], [[-1.0]]]))  # the mean is zero
    np.testing.assert_array_equal(opposed.cosine, 0)
    assert opposed.mean_norm == 0


def follow(correct: np.ndarray, *lengths: int) -> Forgetting:
    found, t = Forgetting(correct.shape[0], correct.shape[2]), 0
    for length in lengths:
        found.add(correct[:, t : t + length], np.arange(t, t + length))
        t += length
    assert t == correct.shape[1]
    return found


@pytest.mark.parametrize("lengths", [(9,), (1,) * 9, (2, 0, 4, 3)])
def test_forgetting_against_step_by_step(rng, lengths):
    correct = rng.random((3, 9, 40)) < rng.random((3, 1, 40)) ** 0.3
    correct[0, :, 0], correct[0, :, 1] = True, False  # always and never correct
    found = follow(correct, *lengths)
    for s in range(3):
        for n in range(40):
            expected = oracles.forgetting(correct[s, :, n])
            assert (found.first_correct[s, n], found.last_mistake[s, n], found.forgotten[s, n]) == expected
    assert (found.first_correct[0, 0], found.last_mistake[0, 0], found.forgotten[0, 0]) == (0, -1, 0)
    assert (found.first_correct[0, 1], found.last_mistake[0, 1], found.forgotten[0, 1]) == (9, 8, 0)


def test_forgetting_between_records_that_are_not_neighbours():
    correct = np.array([[[False, True, False], [True, False, False], [False, True, False]]])
    found = Forgetting(1, 3)
    found.add(correct, np.array([0, 4, 10]))
    np.testing.assert_array_equal(found.first_correct, [[4, 0, 11]])
    np.testing.assert_array_equal(found.last_mistake, [[10, 4, 10]])
    np.testing.assert_array_equal(found.forgotten, [[1, 1, 0]])
    iterations = np.array([0, 4, 10])
    np.testing.assert_allclose(first_correct_curve(found.first_correct, iterations), [[1 / 3, 2 / 3, 2 / 3]])
    np.testing.assert_allclose(last_mistake_curve(found.last_mistake, iterations), [[0, 0, 1 / 3]])


def test_first_correct_and_last_mistake_curves(rng):
    correct = rng.random((2, 12, 30)) < np.linspace(0.3, 0.95, 12)[:, None]
    found = follow(correct, 5, 7)
    first = first_correct_curve(found.first_correct, np.arange(12))
    last = last_mistake_curve(found.last_mistake, np.arange(12))
    accuracy = correct.mean(axis=-1)
    for s in range(2):
        for t in range(12):
            assert first[s, t] == pytest.approx(oracles.first_correct_share(correct[s], t))
            assert last[s, t] == pytest.approx(oracles.last_mistake_share(correct[s], t))
    assert (np.diff(first) >= 0).all() and (np.diff(last) >= 0).all()
    assert (last <= accuracy + 1e-12).all() and (accuracy <= first + 1e-12).all()
    np.testing.assert_allclose(last[:, -1], accuracy[:, -1])
    np.testing.assert_allclose(first[:, 0], accuracy[:, 0])
