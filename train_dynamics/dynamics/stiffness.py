"""Stiffness: whether a step for one class also helps another."""

import numpy as np
from jaxtyping import Bool, Float, Int


def stiffness(
    products: Float[np.ndarray, "*lead c c"], num_directed: Int[np.ndarray, "*lead c"], sizes: Int[np.ndarray, " c"]
) -> Float[np.ndarray, "*lead c c"]:
    """Compute the class stiffness: the mean cosine between the gradients of two examples, by their classes.

    Fort, Nowak, Jastrzebski and Narayanan, "Stiffness: A New Perspective on Generalization in Neural Networks" (2019;
    not checked against the published text), their cosine stiffness, between training examples, of one layer's kernel.
    It is exact over *all* pairs, self pairs left out, because a mean of inner products is the inner product of the
    means: no pair is looked at. It is *not* their sign stiffness, the mean of the signs, which does need every pair.

    Args:
        products: Inner product of every two classes' sums of normalised gradients. Zero gradients count as zero.
        num_directed: Number of nonzero gradients in each class.
        sizes: Number of examples of each class.

    Returns:
        Between -1 and 1, symmetric. A pair with a zero gradient counts as 0. NaN where there is no pair: with a class
        that has no example, and within a class that has only one.

    Example:
        >>> sums = np.array([[2.0, 0.0], [-0.6, 0.8]])
        >>> stiffness(sums @ sums.T, np.array([2, 1]), np.array([2, 1]))
        array([[ 1. , -0.6],
               [-0.6,  nan]])
    """
    total = products - num_directed[..., None] * np.eye(len(sizes))  # the product of a unit gradient with itself is 1
    pairs = _pairs(sizes)
    found = np.full(total.shape, np.nan)
    np.divide(total, pairs, out=found, where=pairs > 0)
    return np.clip(found, -1, 1)


def within_and_between(
    matrix: Float[np.ndarray, "*lead c c"], sizes: Int[np.ndarray, " c"]
) -> tuple[Float[np.ndarray, "*lead"], Float[np.ndarray, "*lead"]]:
    """Average a class stiffness over all pairs of examples of the same class, and of different classes.

    Returns:
        Both averages. NaN where there is no such pair.

    Example:
        >>> within_and_between(np.array([[1.0, -0.6], [-0.6, np.nan]]), np.array([2, 1]))
        (array(1.), array(-0.6))
    """
    pairs, same = _pairs(sizes), np.eye(len(sizes), dtype=bool)

    def mean(chosen: Bool[np.ndarray, "c c"]) -> Float[np.ndarray, "*lead"]:
        weights = pairs[chosen]
        total = np.asarray(np.matmul(np.where(weights > 0, matrix[..., chosen], 0), weights.astype(np.float64)))
        return np.asarray(total / weights.sum()) if weights.any() else np.full_like(total, np.nan)

    return mean(same), mean(~same)


def _pairs(sizes: Int[np.ndarray, " c"]) -> Int[np.ndarray, "c c"]:
    """Count the ordered pairs of distinct examples by their classes."""
    return np.outer(sizes, sizes) - np.diag(sizes)
