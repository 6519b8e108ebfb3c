"""Groups of examples: each measure against a double loop over pairs, by hand, and at its ends."""

import itertools

import numpy as np
import pytest

from tests import oracles
from train_dynamics.dynamics.alignment import alignment, factored_alignment
from train_dynamics.dynamics.coherence import m_coherence
from train_dynamics.dynamics.confusion import confusion, fixed_batches
from train_dynamics.dynamics.groups import Groups, gradient_sums
from train_dynamics.dynamics.noise_scale import noise_scale
from train_dynamics.dynamics.opposing import OpposingSignals, extremes
from train_dynamics.dynamics.stiffness import stiffness, within_and_between


def of_norms(measure, gradients):
    found = alignment(gradients)
    return measure(found.norm, found.mean_norm)


def products(vectors):
    return np.matmul(vectors, np.swapaxes(vectors, -1, -2))


def class_stiffness(gradients, labels, num_classes):
    norm = alignment(gradients).norm
    inverse = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
    classes = Groups.of([np.flatnonzero(labels == c) for c in range(num_classes)])
    directed = np.bincount(labels[norm > 0], minlength=num_classes)
    sizes = np.bincount(labels, minlength=num_classes)
    return stiffness(products(gradient_sums((gradients,), classes, inverse)), directed, sizes), sizes


@pytest.fixture
def gradients(rng):
    """Thirty with something in common, one of them zero."""
    found = rng.normal(size=(30, 4, 5)) + rng.normal(size=(4, 5))
    found[7] = 0
    return found


def test_m_coherence_and_noise_scale_by_hand():
    # gradients (3, 0), (0, 4): sum (3, 4) of squared length 25, squares 9 and 16
    assert of_norms(m_coherence, np.array([[[3.0, 0.0]], [[0.0, 4.0]]])) == pytest.approx(1)
    # 1 and 3: |sum|^2 = 16, squares 1 and 9
    assert of_norms(m_coherence, np.array([[[1.0]], [[3.0]]])) == pytest.approx(1.6)
    # variance (n - 1) 2, squared mean 4, of which 2 / 2 is noise: 2 / 3
    assert of_norms(noise_scale, np.array([[[1.0]], [[3.0]]])) == pytest.approx(2 / 3)


def test_m_coherence_and_noise_scale_against_double_loops(gradients):
    assert of_norms(m_coherence, gradients) == pytest.approx(oracles.m_coherence(gradients))
    assert of_norms(noise_scale, gradients) == pytest.approx(oracles.noise_scale(gradients))
    m = of_norms(m_coherence, gradients)
    assert of_norms(noise_scale, gradients) == pytest.approx((30 - m) / (m - 1))


def test_m_coherence_and_noise_scale_at_their_ends(rng):
    one = rng.normal(size=(1, 4, 5))
    alike, orthogonal = np.repeat(one, 8, axis=0), np.eye(8).reshape(8, 2, 4)
    opposed = np.concatenate([alike, -alike])
    none = np.zeros((8, 2, 4))
    assert of_norms(m_coherence, alike) == pytest.approx(8)
    assert of_norms(m_coherence, orthogonal) == pytest.approx(1)
    assert of_norms(m_coherence, opposed) == pytest.approx(0)
    assert of_norms(noise_scale, alike) == pytest.approx(0, abs=1e-9)
    for gradients in (opposed, none, one):
        assert np.isnan(of_norms(noise_scale, gradients))
    assert np.isnan(of_norms(m_coherence, none))
    assert of_norms(m_coherence, 7 * alike) == pytest.approx(8)  # the scale plays no part


def test_the_noise_scale_is_that_of_the_distribution(rng):
    """Gradients of mean 1 and variance 4 in each of six directions have a noise scale of 4."""
    found = [of_norms(noise_scale, 1 + 2 * rng.normal(size=(400, 2, 3))) for _ in range(200)]
    assert np.mean(found) == pytest.approx(4, abs=0.1)  # their standard error is 0.03


def test_confusion_by_hand():
    found = confusion(products(np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])))  # products 0, -2 and 1
    assert (found.bound, found.cosine) == (2, pytest.approx(-(0.5**0.5)))
    agreed = confusion(products(np.array([[1.0, 0.0], [1.0, 1.0]])))
    assert (agreed.bound, agreed.cosine) == (0, pytest.approx(0.5**0.5))


def test_confusion_against_every_pair(gradients):
    found = confusion(products(gradients.reshape(2, 15, 20)))
    for k, half in enumerate(gradients.reshape(2, 15, 20)):
        bound, cosine = oracles.confusion(half)
        assert found.bound[k] == pytest.approx(bound) and found.cosine[k] == pytest.approx(cosine)


def test_confusion_at_its_ends(rng):
    one = rng.normal(size=(1, 20))
    for cosine, two in ((1, [one, one]), (-1, [one, -one]), (0, [one, 0 * one])):
        found = confusion(products(np.concatenate(two)))
        assert found.cosine == pytest.approx(cosine)
        assert found.bound == pytest.approx((one @ one.T).item() if cosine < 0 else 0)
    for few in (one, one[:0]):
        assert np.isnan(confusion(products(few))).all()


def test_fixed_batches_are_equal_disjoint_and_the_same_again():
    found = fixed_batches(50, 16)
    assert found.shape == (3, 16) and len(set(found.ravel())) == 48
    np.testing.assert_array_equal(found, fixed_batches(50, 16))
    assert fixed_batches(3, 4).shape == (0, 4)


def test_stiffness_by_hand():
    # class 0: (1, 0), (0, 2); class 1: (-3, 0): cosines 0 within, -1 and 0 between
    gradients = np.array([[[1.0, 0.0]], [[0.0, 2.0]], [[-3.0, 0.0]]])
    matrix, sizes = class_stiffness(gradients, np.array([0, 0, 1]), 2)
    np.testing.assert_allclose(matrix, [[0, -0.5], [-0.5, np.nan]])
    np.testing.assert_allclose(within_and_between(matrix, sizes), [0, -0.5])


def test_stiffness_against_every_pair(gradients, rng):
    labels = rng.integers(0, 3, 30)
    labels[labels == 2] = 4  # classes 2 and 3 have no example
    labels[0] = 3  # and now one
    matrix, sizes = class_stiffness(gradients, labels, 5)
    np.testing.assert_allclose(matrix, oracles.stiffness(gradients, labels, 5), atol=1e-12)
    assert np.isnan(matrix[2]).all() and np.isnan(matrix[3, 3]) and not np.isnan(matrix[3, 0])
    cosine = {
        same: [oracles.cosine(gradients[a], gradients[b]) for a, b in itertools.combinations(range(30), 2)
               if (labels[a] == labels[b]) == same]
        for same in (True, False)
    }  # fmt: skip
    np.testing.assert_allclose(within_and_between(matrix, sizes), [np.mean(cosine[True]), np.mean(cosine[False])])
    several = within_and_between(np.stack([matrix, 2 * matrix]), sizes)
    np.testing.assert_allclose(several, np.outer(within_and_between(matrix, sizes), [1, 2]))


def test_stiffness_at_its_ends(rng):
    one, labels = rng.normal(size=(1, 4, 5)), np.array([0, 0, 1, 1])
    sign = np.array([1, 2, -3, -4])[:, None, None]
    np.testing.assert_allclose(class_stiffness(np.repeat(one, 4, axis=0), labels, 2)[0], 1)
    np.testing.assert_allclose(class_stiffness(one * sign, labels, 2)[0], [[1, -1], [-1, 1]])
    np.testing.assert_allclose(class_stiffness(np.eye(4).reshape(4, 2, 2), labels, 2)[0], 0, atol=1e-12)
    np.testing.assert_array_equal(class_stiffness(0 * one * sign, labels, 2)[0], 0)
    alone = class_stiffness(one * sign, 0 * labels, 1)
    assert np.isnan(within_and_between(*alone)[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("groups", [[[4, 1, 2], [0, 3, 3]], [[], [5], [1, 0]], []], ids=["equal", "unequal", "none"])
def test_gradient_sums_against_a_loop_and_in_both_layouts(rng, dtype, groups):
    a, d, weights = rng.normal(size=(6, 4)).astype(dtype), rng.normal(size=(6, 5)).astype(dtype), rng.random(6)
    gradients = a[:, :, None] * d[:, None, :]
    laid_out = Groups.of([np.array(group, int) for group in groups])
    # Sums of three products of a few ones, in float32 too.
    for weight in (None, weights.astype(dtype)):
        expected = np.zeros((len(groups), 4, 5))
        for g, group in enumerate(groups):
            for n in group:
                expected[g] += gradients[n] * (1 if weight is None else weight[n])
        for parts in ((a, d), (gradients,)):
            found = gradient_sums(parts, laid_out, weight)
            assert found.dtype == dtype
            np.testing.assert_allclose(found, expected.reshape(len(groups), 20), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(a[:, :, None] * d[:, None, :], gradients)  # nothing was changed in place


def test_extremes_by_hand_and_by_sorting(rng):
    found = extremes(np.array([0.1, -0.5, 0.7, 0.0]), 1)
    assert (found.risers.tolist(), found.fallers.tolist()) == ([2], [1])
    change = rng.normal(size=(3, 40))
    found = extremes(change, 4)
    for k in range(3):
        order = sorted(range(40), key=lambda n, row=change[k]: row[n])
        assert set(found.fallers[k]) == set(order[:4]) and set(found.risers[k]) == set(order[-4:])
    ties = extremes(np.zeros(10), 5)
    assert set(ties.risers) | set(ties.fallers) == set(range(10))
    for size in (0, 6):
        with pytest.raises(ValueError, match=f"two groups of {size} do not fit into 10 examples"):
            extremes(np.zeros(10), size)


@pytest.mark.parametrize("lengths", [(9,), (1,) * 9, (2, 0, 4, 3)])
def test_opposing_signals_against_one_change_at_a_time(rng, lengths):
    loss = rng.random((2, 9, 250)).astype(np.float32)
    found, t = OpposingSignals(2, 250), 0
    for length in lengths:
        found.add(loss[:, t : t + length])
        t += length
    assert found.size == 2
    risen, fallen = np.zeros((2, 250), int), np.zeros((2, 250), int)
    for s in range(2):
        for t in range(8):
            change = loss[s, t + 1] - loss[s, t]
            order = np.argsort(change)
            risen[s, order[-2:]] += 1
            fallen[s, order[:2]] += 1
            values = {"risers": change[order[-2:]], "fallers": change[order[:2]], "all": change}
            for name, of_group in values.items():
                assert found.curves[name].shape == (2, 8)
                # A mean of 250 float32 numbers below 1, which may cancel.
                assert found.curves[name][s, t] == pytest.approx(of_group.mean(), rel=1e-5, abs=1e-6)
    np.testing.assert_array_equal(found.risen, risen)
    np.testing.assert_array_equal(found.fallen, fallen)


def test_a_single_example_is_at_no_extreme():
    found = OpposingSignals(1, 1)
    found.add(np.array([[[1.0], [0.5], [0.25]]]))
    np.testing.assert_array_equal(found.curves["all"], [[-0.5, -0.25]])
    assert np.isnan(found.curves["risers"]).all() and found.risen.sum() == 0


def test_factors_and_products_measure_the_same(rng):
    a, d = rng.normal(size=(20, 4)), rng.normal(size=(20, 5))
    one, other = factored_alignment(a, d), alignment(a[:, :, None] * d[:, None, :])
    assert m_coherence(one.norm, one.mean_norm) == pytest.approx(m_coherence(other.norm, other.mean_norm))
