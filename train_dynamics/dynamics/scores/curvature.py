"""Input loss curvature: how strongly an example's loss bends as its pixels change.

Garg and Roy, "Samples With Low Loss Curvature Improve Data Efficiency" (2023): with H the Hessian of an example's loss
with respect to its *input*, the squared length of H v over random vectors v of +1 and -1. Its mean is the trace of H²,
and they estimate it from differences of gradients a small step apart. Its mean over checkpoints is the score of Garg
and Roy, "Memorization Through the Lens of Curvature of Loss Function Around Samples" (2023). Here it is exact: a ReLU
network is linear around an example, so that H = J A Jᵀ with J = dz/dx and A = diag(p) - p pᵀ, and the trace of H² is
that of (A JᵀJ)². Kinks, which a step of any size may cross, are left out, because the loss bends there only at single
points. For networks that are not piecewise linear it is estimated as in the papers
(`train_dynamics.training.of_inputs`). It is *not* the curvature with respect to the weights. Not checked against the
published text.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.dynamics.scores.network import forward, slices, slopes
from train_dynamics.dynamics.scores.score import Network, ReplayedScore, Study, Weights


def curvature(weights: Weights, images: Float[np.ndarray, "n i"]) -> Float[np.ndarray, " n"]:
    """Compute the trace of the squared Hessian of each example's loss with respect to its input.

    The label has no effect: the loss is the logarithm of a sum that is the same for all labels, minus a logit, which is
    linear.

    Args:
        weights: Parameters of one seed.
        images: Inputs, flattened.

    Returns:
        In nats² per (unit of input)⁴.
    """
    first = next(iter(weights.values()))["kernel"]
    gram = first.T @ first  # of the slopes of the first layer's outputs
    widths = [layer["kernel"].shape[1] for layer in weights.values()]
    result = np.empty(len(images))
    for part in slices(len(images), 8 * max(widths) * widths[-1]):
        found = forward(weights, images[part])
        logits = slopes(weights, found.active, len(found.probabilities))
        products = (logits @ gram) @ np.swapaxes(logits, 1, 2)
        p = found.probabilities[:, :, None]
        bent = p * products - p * np.matmul(np.swapaxes(p, 1, 2), products)
        result[part] = (bent * np.swapaxes(bent, 1, 2)).sum(axis=(1, 2))
    return result


def _mean_curvature(
    checkpoints: Sequence[Network], images: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"], study: Study
) -> Float[np.ndarray, "checkpoint n"]:
    found = np.cumsum([network.curvature(images, labels) for network in checkpoints], axis=0)
    return found / np.arange(1, len(checkpoints) + 1)[:, None]


CURVATURE = ReplayedScore(
    name="curvature",
    hard="high",
    unit="nats² per (unit of input)⁴",
    formula="trace of H², H the Hessian of the loss with respect to the input; mean over checkpoints",
    source='Garg and Roy, "Samples With Low Loss Curvature Improve Data Efficiency" (2023), computed exactly',
    compute=_mean_curvature,
    of_inputs=True,
)
