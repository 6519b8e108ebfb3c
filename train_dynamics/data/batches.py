"""Which examples are in which batch, and which are held out. Training and analysis both need this."""

import numpy as np
from jaxtyping import Bool, Int

from train_dynamics.config import StudyConfig


def batch_indices(config: StudyConfig, seed: int, num_examples: int, start: int, stop: int) -> Int[np.ndarray, "t b"]:
    """List the examples of each batch, for the iterations from `start` up to but not including `stop`.

    Every epoch is a new permutation that depends only on the seed and the epoch, so training can continue from any
    iteration. The last batch of an epoch is padded with -1, which stands for no example.

    Example:
        >>> batch_indices(StudyConfig(batch_size=2), seed=0, num_examples=3, start=0, stop=2)
        array([[2, 0],
               [1, -1]], dtype=int32)
    """
    per_epoch, size = config.iterations_per_epoch(num_examples), config.examples_per_batch(num_examples)
    trained = np.flatnonzero(~held_out(config, seed, num_examples)).astype(np.int32)
    epochs = range(start // per_epoch, -(-stop // per_epoch))
    order = np.full((len(epochs), per_epoch * size), -1, np.int32)
    for row, epoch in zip(order, epochs, strict=True):
        row[: len(trained)] = trained[np.random.default_rng((seed, epoch)).permutation(len(trained))]
    first = epochs.start * per_epoch
    return order.reshape(-1, size)[start - first : stop - first]


def held_out(config: StudyConfig, seed: int, num_examples: int) -> Bool[np.ndarray, " n"]:
    """Tell which examples a seed is not trained on. Each seed leaves out one fold; seeds take the folds in turn.

    All folds have equally many examples. If these do not divide evenly, the last examples of one fold are also the
    first of the next. Folds are drawn from `subset_seed` and the number of examples alone.

    Example:
        >>> config = StudyConfig(holdout_folds=2)
        >>> [held_out(config, seed, num_examples=4).tolist() for seed in (0, 1)]
        [[False, True, True, False], [True, False, False, True]]
    """
    found = np.zeros(num_examples, bool)
    if config.holdout_folds is not None:
        order = np.random.default_rng((config.subset_seed, 2)).permutation(num_examples)
        first = seed % config.holdout_folds * num_examples // config.holdout_folds
        size = num_examples - config.examples_trained_on(num_examples)
        found[order[(first + np.arange(size)) % num_examples]] = True
    return found
