"""Ensemble agreement: typical examples are those on which networks from different seeds agree."""

import itertools

import numpy as np
from jaxtyping import Bool, Float, Int


def agreement(probabilities: Float[np.ndarray, "s n c"]) -> Float[np.ndarray, " n"]:
    """Compute the ensemble agreement (AGR) of each example: low is typical, high is atypical.

    The mean Jensen-Shannon divergence between the class probabilities of two networks, over all pairs of distinct
    seeds; after the "agreement" of Carlini, Erlingsson and Papernot, "Distribution Density, Tails, and Outliers in
    Machine Learning" (2019). It is *not* a measure of correctness: an example that all seeds get wrong in the same way
    is typical.

    Args:
        probabilities: Class probabilities that seed `s` gives example `n`; they sum to 1 over `c`.

    Returns:
        Divergence in nats, between 0 (all alike) and ln 2 (no class in common).

    Raises:
        ValueError: If there are fewer than two seeds.

    Example:
        >>> agreement(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
        array([0.69314718])
    """
    if len(probabilities) < 2:
        raise ValueError("agreement needs at least two seeds")
    return resampled_agreement(probabilities, np.ones((1, len(probabilities))))[0]


def indifferent(probabilities: Float[np.ndarray, "s n c"]) -> Bool[np.ndarray, " s"]:
    """Tell which networks give all examples the same class probabilities, up to rounding in float32.

    Such a network is dead: no unit responds to any example, and only the biases behind them have an effect.

    Args:
        probabilities: As for `agreement`, of at least two examples.

    Example:
        >>> indifferent(np.array([[[0.9, 0.1], [0.9, 0.1]], [[0.9, 0.1], [0.2, 0.8]]]))
        array([ True, False])
    """
    return np.ptp(probabilities, axis=1).max(axis=-1) < 1e-6


def resampled_agreement(
    probabilities: Float[np.ndarray, "s n c"], counts: Float[np.ndarray, "draw s"]
) -> Float[np.ndarray, "draw n"]:
    """Compute `agreement` for several draws of seeds, counting each seed as often as it was drawn.

    A seed that is drawn twice is not compared with itself, because it would always agree.

    Args:
        probabilities: As for `agreement`.
        counts: How often each seed was drawn.

    Returns:
        Divergence in nats. NaN for a draw without two distinct seeds.

    Example:
        >>> resampled_agreement(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), np.array([[3.0, 1.0], [2.0, 0.0]]))
        array([[0.69314718],
               [       nan]])
    """
    p = probabilities.astype(np.float64)
    entropies = entropy(p)
    total, pairs = np.zeros((len(counts), p.shape[1])), np.zeros((len(counts), 1))
    for i, j in itertools.combinations(range(len(p)), 2):
        weight = (counts[:, i] * counts[:, j])[:, None]
        total += weight * (entropy((p[i] + p[j]) / 2) - (entropies[i] + entropies[j]) / 2)
        pairs += weight
    mean = np.divide(total, pairs, out=np.full_like(total, np.nan), where=pairs > 0)
    return np.maximum(mean, 0)  # rounding can leave equal distributions a hair below zero


def entropy(p: Float[np.ndarray, "... c"]) -> Float[np.ndarray, "..."]:
    """Compute the Shannon entropy of distributions over the last axis, in nats, with 0 ln 0 = 0.

    Example:
        >>> entropy(np.array([[0.5, 0.5]]))
        array([0.69314718])
    """
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)


def ranks(scores: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Rank examples by score: 0 for the lowest. Ties are ranked in their order.

    Example:
        >>> ranks(np.array([0.3, 0.1, 0.3]))
        array([1, 0, 2])
    """
    result = np.empty(len(scores), np.int64)
    result[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    return result


def chunks(rank: Int[np.ndarray, " n"], num_chunks: int) -> Int[np.ndarray, " n"]:
    """Divide a ranking into chunks of equal size, give or take one example. Chunk 0 holds the lowest ranks.

    Raises:
        ValueError: If there are fewer examples than chunks.

    Example:
        >>> chunks(np.array([3, 0, 1, 2]), num_chunks=2)
        array([1, 0, 0, 1])
    """
    if len(rank) < num_chunks:
        raise ValueError(f"{num_chunks} chunks need at least as many examples, and there are {len(rank)}")
    return rank * num_chunks // len(rank)
