"""Which examples are in which batch; what trains and what analyses both need to know."""

import numpy as np
from jaxtyping import Int

from train_dynamics.config import StudyConfig


def batch_indices(config: StudyConfig, seed: int, num_examples: int, start: int, stop: int) -> Int[np.ndarray, "t b"]:
    """List the examples of each batch of the iterations from `start` up to `stop`.

    Every epoch is a fresh permutation, a function of the seed and the epoch alone, so that any iteration can be
    continued from. The last batch of an epoch is padded with -1, which stands for no example.

    Example:
        >>> batch_indices(StudyConfig(batch_size=2), seed=0, num_examples=3, start=0, stop=2)
        array([[2, 0],
               [1, -1]], dtype=int32)
    """
    per_epoch, size = config.iterations_per_epoch(num_examples), config.examples_per_batch(num_examples)
    epochs = range(start // per_epoch, -(-stop // per_epoch))
    order = np.full((len(epochs), per_epoch * size), -1, np.int32)
    for row, epoch in zip(order, epochs, strict=True):
        row[:num_examples] = np.random.default_rng((seed, epoch)).permutation(num_examples)
    first = epochs.start * per_epoch
    return order.reshape(-1, size)[start - first : stop - first]
