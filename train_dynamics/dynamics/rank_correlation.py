"""Rank correlation: how far two rankings of the same examples agree."""

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from scipy.stats import rankdata


def spearman(a: Float[np.ndarray, "*lead n"], b: Float[np.ndarray, "*#lead n"]) -> Float[np.ndarray, "*lead"]:
    """Compute Spearman's rank correlation between rows.

    Spearman, "The Proof and Measurement of Association between Two Things" (1904): the correlation of ranks, where ties
    get the mean of their ranks. It knows order alone: 1 is the same order, -1 the opposite one. It does *not* say that
    two scores have the same examples at an end, of which there are few.

    Returns:
        Between -1 and 1. NaN where a row is constant or contains a NaN.

    Example:
        >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
        array(0.5)
    """
    x, y = _centred(a), _centred(b)
    product = np.asarray((x * y).sum(axis=-1))
    length = np.asarray(np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1)))
    return np.asarray(np.clip(np.divide(product, length, out=np.full_like(length, np.nan), where=length > 0), -1, 1))


def spearman_matrix(values: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "k k"]:
    """Compute Spearman's rank correlation between every two rows.

    Example:
        >>> spearman_matrix(np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]))
        array([[ 1. , -0.5],
               [-0.5,  1. ]])
    """
    x = _centred(values)
    length = np.sqrt((x * x).sum(axis=1))
    length = length[:, None] * length
    return np.clip(np.divide(x @ x.T, length, out=np.full_like(length, np.nan), where=length > 0), -1, 1)


def families(correlations: Float[np.ndarray, "k k"]) -> Int[np.ndarray, " k"]:
    """Order rankings so that similar ones stand together. Those without a correlation come last.

    By average linkage with the distance 1 - correlation. Its leaves are ordered so that neighbours are similar
    (Bar-Joseph, Gifford and Jaakkola, "Fast optimal leaf ordering for hierarchical clustering", 2001).
    """
    known = np.flatnonzero(~np.isnan(np.diagonal(correlations)))
    others = np.setdiff1d(np.arange(len(correlations)), known)
    if len(known) > 2:
        distance = 1 - (correlations + correlations.T)[np.ix_(known, known)] / 2
        np.fill_diagonal(distance, 0)
        condensed = squareform(np.maximum(distance, 0), checks=False)
        tree = hierarchy.linkage(condensed, "average", optimal_ordering=True)
        known = known[hierarchy.leaves_list(tree)]
        if known[0] > known[-1]:  # either direction is as good: take that which starts as given
            known = known[::-1]
    return np.concatenate([known, others])


def _centred(values: Float[np.ndarray, "*lead n"]) -> Float[np.ndarray, "*lead n"]:
    """Rank along the last axis and centre. Zero for rows that have no order."""
    ranks = rankdata(values, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    return np.where(np.isnan(ranks).any(axis=-1, keepdims=True), 0, ranks)
