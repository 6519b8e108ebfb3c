"""Runs a ReLU network again from stored weights, forward and backward, on many examples at once."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from train_dynamics.dynamics.scores.score import Weights

SLICE_BYTES = 2**19  # of what a slice of the examples needs, so that it stays in the processor's cache


class Pass(NamedTuple):
    """The intermediate results of a forward pass.

    Attributes:
        inputs: Input of each layer. The first layer's are the images.
        active: For each hidden layer, which units are above their kink.
        probabilities: Class probabilities.
    """

    inputs: list[Float[np.ndarray, "n _"]]
    active: list[Bool[np.ndarray, "n _"]]
    probabilities: Float[np.ndarray, "n c"]


def forward(weights: Weights, images: Float[np.ndarray, "n i"]) -> Pass:
    """Run a network on flattened images, in the precision of the images."""
    first = next(iter(weights.values()))
    inputs, active, logits = onward(weights, images @ first["kernel"] + first["bias"])
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Pass([images, *inputs], active, odds / odds.sum(axis=1, keepdims=True))


def onward(
    weights: Weights, outputs: Float[np.ndarray, "n o"]
) -> tuple[list[Float[np.ndarray, "n _"]], list[Bool[np.ndarray, "n _"]], Float[np.ndarray, "n c"]]:
    """Run a network on from the outputs of its first layer.

    Returns:
        Input of each later layer, which of its units are active, and the logits.
    """
    inputs, active, x = [], [], outputs
    for layer in list(weights.values())[1:]:
        active.append(x > 0)
        inputs.append(np.maximum(x, 0))
        x = inputs[-1] @ layer["kernel"] + layer["bias"]
    return inputs, active, x


def slopes(weights: Weights, active: list[Bool[np.ndarray, "n _"]], num_examples: int) -> Float[np.ndarray, "n c o"]:
    """Compute how each logit changes with the outputs of the first layer, for the given active units."""
    kernels = [layer["kernel"] for layer in weights.values()]
    if not active:
        identity = np.eye(kernels[0].shape[1], dtype=kernels[0].dtype)
        return np.tile(identity, (num_examples, 1, 1))
    found = kernels[-1].T * active[-1][:, None, :]
    for kernel, above in zip(kernels[-2:0:-1], active[-2::-1], strict=True):
        found = (found @ kernel.T) * above[:, None, :]
    return found


def cotangents(weights: Weights, found: Pass, labels: Int[np.ndarray, " n"]) -> list[Float[np.ndarray, "n _"]]:
    """Compute the loss gradient at each layer's output, from the first layer to the last."""
    cotangent = found.probabilities.copy()
    cotangent[np.arange(len(labels)), labels] -= 1
    result = [cotangent]
    for layer, active in zip(list(weights.values())[:0:-1], found.active[::-1], strict=True):
        result.append((result[-1] @ layer["kernel"].T) * active)
    return result[::-1]


def gradient_norm(
    weights: Weights, images: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Compute the L2 norm of each example's loss gradient with respect to all kernels and biases.

    The gradient of a kernel is a ⊗ δ, and that of its bias is δ. Together their square is |δ|² (|a|² + 1).

    Args:
        weights: Parameters of one seed.
        images: Inputs, flattened.
        labels: Class of each example.

    Returns:
        In nats per unit of weight.
    """
    result = np.empty(len(images), images.dtype)
    widest = max(layer["kernel"].shape[1] for layer in weights.values())
    for part in slices(len(images), images[0].nbytes + 8 * widest):
        found = forward(weights, images[part])
        squares = sum(
            (d * d).sum(axis=1) * ((a * a).sum(axis=1) + 1)
            for a, d in zip(found.inputs, cotangents(weights, found, labels[part]), strict=True)
        )
        result[part] = np.sqrt(squares)
    return result


def input_gradient(
    weights: Weights, images: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n i"]:
    """Compute the gradient of the label's logit with respect to each input, in logits per unit of input."""
    kernels = [layer["kernel"] for layer in weights.values()]
    back = kernels[-1].T[labels]
    for kernel, active in zip(kernels[-2::-1], forward(weights, images).active[::-1], strict=True):
        back = (back * active) @ kernel.T
    return back


def slices(num_examples: int, bytes_each: int) -> Iterator[slice]:
    """Divide the examples so that each part fits into the processor's cache."""
    length = max(1, SLICE_BYTES // bytes_each)
    return (slice(start, start + length) for start in range(0, num_examples, length))
