"""The default network in the form that scores use, in NumPy."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.dynamics.scores import adversarial, curvature, network
from train_dynamics.dynamics.scores.score import Weights


@dataclasses.dataclass(frozen=True, eq=False)
class ReluNetwork:
    """A ReLU network with softmax cross-entropy: a `score.Network`.

    Attributes:
        weights: Its parameters.

    Example:
        >>> weights = {"fc1": {"kernel": np.array([[3.0, 0.0], [4.0, 0.0]]), "bias": np.zeros(2)}}
        >>> ReluNetwork(weights).adversarial_distance(np.array([[1.0, 3.0]])).round(3)
        array([3.])
    """

    weights: Weights

    def gradient_norm(self, inputs: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """See `network.gradient_norm`."""
        return network.gradient_norm(self.weights, inputs, labels)

    def input_gradient(
        self, inputs: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n i"]:
        """See `network.input_gradient`."""
        return network.input_gradient(self.weights, inputs, labels)

    def curvature(self, inputs: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """See `curvature.curvature`, where the label plays no part."""
        return curvature.curvature(self.weights, inputs)

    def adversarial_distance(self, inputs: Float[np.ndarray, "n i"]) -> Float[np.ndarray, " n"]:
        """See `adversarial.adversarial_distance`."""
        return adversarial.adversarial_distance(self.weights, inputs)
