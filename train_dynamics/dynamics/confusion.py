"""Gradient confusion: how much the gradients of batches oppose each other."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Confusion(NamedTuple):
    """How strongly the two most opposed batches oppose each other. NaN if there are fewer than two batches.

    Attributes:
        bound: Gradient confusion: the smallest number, 0 or more, such that no two gradients have an inner product
            below minus it. In squared nats per unit of weight.
        cosine: The smallest cosine between two gradients, from -1 to 1; one with a zero gradient counts as 0.
    """

    bound: Float[np.ndarray, "*lead"]
    cosine: Float[np.ndarray, "*lead"]


def confusion(products: Float[np.ndarray, "*lead b b"]) -> Confusion:
    """Find the gradient confusion of the gradients of several batches.

    Sankararaman, De, Xu, Huang and Goldstein, "The Impact of Neural Network Overparameterization on Gradient Confusion
    and Stochastic Gradient Descent" (2020; not checked against the published text): a bound eta >= 0 such that <g_i,
    g_j> >= -eta for all pairs i != j of the functions that SGD draws from, examples or batches. Here they are batches
    of a fixed partition (`fixed_batches`), all at the same weights, and the gradients are those of one layer's kernel.
    Another partition gives a somewhat different minimum; over pairs of single examples the minimum would be far lower.
    These are *not* the batches that training drew. And it is an extreme over all pairs, *not* their mean, which
    `stiffness` gives.

    Args:
        products: Inner product of the mean gradients of every two batches, and of each with itself.

    Example:
        >>> gradients = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
        >>> confusion(gradients @ gradients.T)
        Confusion(bound=array(2.), cosine=array(-0.70710678))
    """
    num_batches = products.shape[-1]
    if num_batches < 2:
        nothing = np.full(products.shape[:-2], np.nan)
        return Confusion(nothing, nothing)
    length = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    lengths = length[..., :, None] * length[..., None, :]
    cosine = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    pairs = np.triu_indices(num_batches, 1)
    return Confusion(
        np.asarray(np.maximum(-products[..., *pairs].min(axis=-1), 0)),
        np.asarray(np.clip(cosine[..., *pairs].min(axis=-1), -1, 1)),
    )


def fixed_batches(num_examples: int, batch_size: int, seed: int = 0) -> Int[np.ndarray, "b m"]:
    """Divide the examples at random into batches of equal size. Examples that do not fill a batch are left out.

    A smaller batch would be noisier. Returns None if there are too few examples for one batch.

    Example:
        >>> fixed_batches(5, 2)
        array([[2, 4],
               [3, 0]])
    """
    order = np.random.default_rng(seed).permutation(num_examples)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size)
