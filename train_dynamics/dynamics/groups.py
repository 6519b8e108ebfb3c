"""Averages over groups of examples."""

import numpy as np
from jaxtyping import Float, Int


def group_weights(group: Int[np.ndarray, " n"], num_groups: int) -> Float[np.ndarray, "n group"]:
    """Make the matrix that averages over groups: `values @ weights` are the means of values `[..., n]`.

    Of correctness, that is the accuracy of each group.

    Args:
        group: Group of each example, from 0.
        num_groups: Number of groups; every one must have an example.

    Raises:
        ValueError: If a group has no example.

    Example:
        >>> np.array([True, False, True]) @ group_weights(np.array([0, 0, 1]), 2)
        array([0.5, 1. ])
    """
    sizes = np.bincount(group, minlength=num_groups)
    if len(sizes) > num_groups or not sizes.all():
        raise ValueError(f"{num_groups} groups of sizes {sizes.tolist()}: each needs an example")
    return (group[:, None] == np.arange(num_groups)) / sizes
