"""Gradient noise scale: how large a batch must be before its gradient is more signal than noise."""

import numpy as np
from jaxtyping import Float


def noise_scale(
    norm: Float[np.ndarray, "*lead n"], mean_norm: Float[np.ndarray, "*lead"]
) -> Float[np.ndarray, "*lead"]:
    """Estimate the simple gradient noise scale: the batch size at which noise and signal are equally strong.

    McCandlish, Kaplan and Amodei, "An Empirical Model of Large-Batch Training" (2018; formulas not checked against the
    published text): B = tr(S) / |G|^2, with S the covariance of one example's gradient and G the gradient of the true
    loss. Both come, without bias, from the squared norms of the gradient of a small and a large batch; here of one
    example and of all n: tr(S) = n / (n - 1) (mean of |g|^2 - |mean of g|^2) and |G|^2 = |mean of g|^2 - tr(S) / n.
    Their ratio is *not* without bias, and this is *not* the paper's noise scale proper, which weighs both by the
    Hessian. The examples stand for the distribution they were drawn from; the gradient is of one layer's kernel.

    It contains the same information as `m_coherence`, M, on another scale: B = (n - M) / (M - 1).

    Args:
        norm: L2 norm of each example's gradient, as `alignment` gives it.
        mean_norm: L2 norm of their mean.

    Returns:
        A number of examples. NaN where the estimate of |G|^2 is not positive (an m-coherence of 1 or less), because the
        mean gradient is then no longer than noise alone would make it. NaN also for a single example.

    Example:
        >>> noise_scale(np.array([1.0, 3.0]), np.array(2.0))  # 1 and 3: variance 2, squared mean 4, of which 1 is noise
        array(0.66666667)
    """
    n = norm.shape[-1]
    square = np.asarray(np.square(norm, dtype=np.float64).mean(axis=-1))
    of_mean = np.square(mean_norm, dtype=np.float64)
    found = np.full_like(square, np.nan)
    if n == 1:
        return found
    trace = np.maximum(square - of_mean, 0) * n / (n - 1)  # rounding can leave equal gradients a hair below zero
    signal = of_mean - trace / n
    np.divide(trace, signal, out=found, where=signal > 0)
    return found
