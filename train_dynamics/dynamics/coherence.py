"""m-coherence: how many examples a step on one example helps."""

import numpy as np
from jaxtyping import Float


def m_coherence(
    norm: Float[np.ndarray, "*lead n"], mean_norm: Float[np.ndarray, "*lead"]
) -> Float[np.ndarray, "*lead"]:
    """Compute the m-coherence: how many examples a step on one example helps, on average.

    Chatterjee and Zielinski, "Making Coherence Out of Nothing At All: Measuring the Evolution of Gradient Alignment"
    (2020; formula not checked against the published text, meaning as in its abstract): n times the mean inner product
    of two gradients, drawn with replacement, over the mean square of one, which is |sum of g|^2 / sum of |g|^2. n if
    all gradients are equal, 1 if all are orthogonal, 0 if they cancel. Long gradients count more: it is *not* the mean
    cosine, which `stiffness` is. Here the examples are the whole training set, and the gradient is that of one layer's
    kernel.

    Args:
        norm: L2 norm of each example's gradient, as `alignment` gives it.
        mean_norm: L2 norm of their mean.

    Returns:
        A number of examples, from 0 to n; NaN where all gradients are zero.

    Example:
        >>> m_coherence(np.array([3.0, 4.0]), np.array(2.5))  # (3, 0) and (0, 4): orthogonal, mean (1.5, 2)
        array(1.)
    """
    square = np.asarray(np.square(norm, dtype=np.float64).mean(axis=-1))
    found = np.full_like(square, np.nan)
    np.divide(norm.shape[-1] * np.square(mean_norm, dtype=np.float64), square, out=found, where=square > 0)
    return found
