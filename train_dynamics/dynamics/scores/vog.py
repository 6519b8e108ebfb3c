"""Variance of gradients (VoG): how much the pixels that matter change during training.

Agarwal, D'souza and Hooker, "Estimating Example Difficulty using Variance of Gradients" (2022): the gradient of the
label's logit with respect to each pixel, its standard deviation over checkpoints, averaged over the pixels. To compare
classes, the mean of the class is subtracted and the result divided by the class's standard deviation. It is a gradient
with respect to the *input* and not the weights, of a logit and not of the loss. The paper's formula was not checked.
Like the code that the authors published, this takes the standard deviation over checkpoints, divided by their number.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.dynamics.scores.network import slices
from train_dynamics.dynamics.scores.score import Network, ReplayedScore, Study

ROUNDING = 1e-5  # of float32, after sums over checkpoints and pixels


def vog(
    checkpoints: Sequence[Network],
    images: Float[np.ndarray, "n i"],
    labels: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "checkpoint n"]:
    """Compute the variance of gradients of each example, for each number of checkpoints.

    Args:
        checkpoints: Networks of one seed at several iterations, in order.
        images: Inputs, flattened.
        labels: Class of each example.

    Returns:
        In standard deviations of the class. NaN for a single checkpoint, which has no variance; 0 for all examples of a
        class if they differ by no more than rounding.
    """
    result = np.empty((len(checkpoints), len(images)))
    for part in slices(len(images), images[0].nbytes):
        mean = np.zeros_like(images[part])
        squares, room = np.zeros_like(mean), np.empty_like(mean)
        for k, network in enumerate(checkpoints):
            gradient = network.input_gradient(images[part], labels[part])
            gradient -= mean  # Welford's recurrence, which does not cancel, without fresh memory
            squares += np.square(gradient, out=room) * np.float32(k / (k + 1))
            mean += np.divide(gradient, k + 1, out=gradient)
            result[k, part] = np.sqrt(squares, out=room).mean(axis=1) / np.sqrt(k + 1)
    for members in (labels == label for label in np.unique(labels)):
        of_class = result[:, members]
        spread = of_class.std(axis=1, keepdims=True)
        centred = of_class - of_class.mean(axis=1, keepdims=True)
        differ = spread > ROUNDING * of_class.max(axis=1, keepdims=True)
        result[:, members] = np.divide(centred, spread, out=np.zeros_like(centred), where=differ)
    result[0] = np.nan
    return result


def _vog(
    checkpoints: Sequence[Network], images: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"], study: Study
) -> Float[np.ndarray, "checkpoint n"]:
    return vog(checkpoints, images, labels)


VOG = ReplayedScore(
    name="vog",
    hard="high",
    unit="standard deviations of the class",
    formula="standard deviation over checkpoints of dz/dx, z the label's; averaged over x, standardised in the class",
    source='Agarwal, D\'souza and Hooker, "Estimating Example Difficulty using Variance of Gradients" (2022)',
    needs=lambda study: "" if len(study.checkpoints) > 1 else "a variance needs two checkpoints or more",
    compute=_vog,
    of_inputs=True,
)
