"""How sharply the loss bends around an example, as its pixels change: the input loss curvature.

Garg and Roy, "Samples With Low Loss Curvature Improve Data Efficiency" (2023): with H the Hessian of an example's loss
with respect to its *input*, the squared length of H v over random vectors v of +1 and -1, whose mean is the trace of
H², estimated from differences of gradients a small step apart, and averaged over checkpoints. Here it is exact: a ReLU
network is linear around an example, so that H = J A Jᵀ with J = dz/dx and A = diag(p) - p pᵀ, and the trace of H² is
that of (A JᵀJ)². Kinks, which a step of any size may cross, are left out: nothing bends there but at single points. It
is *not* the curvature with respect to the weights. Not checked against the published text.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.dynamics.scores.network import forward, slices
from train_dynamics.dynamics.scores.score import ReplayedScore, Study, Weights


def curvature(weights: Weights, images: Float[np.ndarray, "n i"]) -> Float[np.ndarray, " n"]:
    """Compute the trace of the squared Hessian of each example's loss with respect to its input.

    The label plays no part: the loss is a logit, which is linear, below the logarithm of a sum that all labels share.

    Args:
        weights: Parameters of one seed.
        images: Inputs, flattened.

    Returns:
        In nats² per (unit of input)⁴.
    """
    kernels = [layer["kernel"] for layer in weights.values()]
    first = kernels[0].T @ kernels[0]
    widest = max(max(kernel.shape[1] for kernel in kernels), 1)
    result = np.empty(len(images))
    for part in slices(len(images), 4 * widest**2):
        found = forward(weights, images[part])
        gram = first[None]  # of dz/dx, z the outputs of a layer: [n, o, o]
        for kernel, active in zip(kernels[1:], found.active, strict=True):
            gram = gram * active[:, :, None] * active[:, None, :]
            gram = np.swapaxes(gram @ kernel, 1, 2) @ kernel  # symmetric, so that either order will do
        p = found.probabilities[:, :, None]
        bent = p * gram - p * np.matmul(np.swapaxes(p, 1, 2), gram)
        result[part] = (bent * np.swapaxes(bent, 1, 2)).sum(axis=(1, 2))
    return result


def _mean_curvature(
    checkpoints: Sequence[Weights], images: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"], study: Study
) -> Float[np.ndarray, "checkpoint n"]:
    found = np.cumsum([curvature(weights, images) for weights in checkpoints], axis=0)
    return found / np.arange(1, len(checkpoints) + 1)[:, None]


CURVATURE = ReplayedScore(
    name="curvature",
    hard="high",
    unit="nats² per (unit of input)⁴",
    formula="mean over checkpoints of the trace of H², H the Hessian of the loss with respect to the input",
    source='Garg and Roy, "Samples With Low Loss Curvature Improve Data Efficiency" (2023)',
    compute=_mean_curvature,
)
