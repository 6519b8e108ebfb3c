"""How large each example's gradient is, and whether it points where the mean gradient points."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Alignment(NamedTuple):
    """Length and direction of per-example gradients.

    Attributes:
        norm: L2 norm of each example's gradient, in nats per unit of weight.
        cosine: The alignment: cosine between each example's gradient and the mean gradient. 0 where either is zero.
        mean_norm: L2 norm of the mean gradient.
    """

    norm: Float[np.ndarray, "*lead n"]
    cosine: Float[np.ndarray, "*lead n"]
    mean_norm: Float[np.ndarray, "*lead"]


def alignment(gradients: Float[np.ndarray, "*lead n i o"]) -> Alignment:
    """Compare each example's gradient with the mean over all examples.

    The alignment of "An Empirical Study of Neural Network Training Dynamics" (2022). The mean is over the whole
    training set, not a batch, and the example itself is part of it.

    Example:
        >>> alignment(np.array([[[3.0, 0.0]], [[0.0, 1.0]]])).cosine  # the mean gradient is (1.5, 0.5)
        array([0.9486833 , 0.31622777])
    """
    flat = gradients.reshape(*gradients.shape[:-2], -1)
    mean = flat.mean(axis=-2)
    return _alignment(np.sqrt(_dot(flat, flat)), np.matmul(flat, mean[..., None])[..., 0], mean)


def factored_alignment(
    activation: Float[np.ndarray, "*lead n i"], cotangent: Float[np.ndarray, "*#lead n o"]
) -> Alignment:
    """Compute `alignment` from the factors of the gradients, without multiplying them out.

    The gradient of example n is a_n d_n^T: its norm is |a_n| |d_n|, the mean G is A^T D / N, and the product of the two
    is a_n^T G d_n.

    Example:
        >>> factored_alignment(np.array([[3.0], [1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])).cosine
        array([0.9486833 , 0.31622777])
    """
    mean = np.matmul(np.swapaxes(activation, -1, -2), cotangent) / activation.shape[-2]
    norm = np.sqrt(_dot(activation, activation) * _dot(cotangent, cotangent))
    product = _dot(np.matmul(activation, mean), cotangent)
    return _alignment(norm, product, mean.reshape(*mean.shape[:-2], -1))


def alignment_of(*parts: Float[np.ndarray, "n _"]) -> Alignment:
    """Compute `alignment` from what a recording stores: activation and cotangent, or flat gradients."""
    return factored_alignment(*parts) if len(parts) == 2 else alignment(parts[0][:, None])


def measured_alignment(norm: Float[np.ndarray, "*lead n"], product: Float[np.ndarray, "*lead n"]) -> Alignment:
    """Compute `alignment` from norms and products with the mean gradient, without the gradients themselves.

    The mean of the products is the squared norm of the mean gradient.

    Example:
        >>> measured_alignment(np.array([3.0, 1.0]), np.array([4.5, 0.5])).cosine
        array([0.9486833 , 0.31622777])
    """
    mean_norm = np.sqrt(np.maximum(product.mean(axis=-1), 0))
    lengths = norm * mean_norm[..., None]
    cosine = np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)
    return Alignment(norm, np.clip(cosine, -1, 1), mean_norm)


def _dot(a: Float[np.ndarray, "... k"], b: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "..."]:
    return np.einsum("...k,...k->...", a, b)


def _alignment(
    norm: Float[np.ndarray, "*lead n"], product: Float[np.ndarray, "*lead n"], mean: Float[np.ndarray, "*lead k"]
) -> Alignment:
    mean_norm = np.linalg.norm(mean, axis=-1, keepdims=True)
    lengths = norm * mean_norm
    cosine = np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)
    return Alignment(norm, np.clip(cosine, -1, 1), mean_norm[..., 0])
