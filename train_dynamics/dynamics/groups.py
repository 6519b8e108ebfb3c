"""Averages over groups of examples, and over seeds."""

import numpy as np
from jaxtyping import Bool, Float, Int


def group_means(
    values: Float[np.ndarray, "*lead n"] | Bool[np.ndarray, "*lead n"], group: Int[np.ndarray, " n"], num_groups: int
) -> Float[np.ndarray, "*lead group"]:
    """Average values over the examples of each group; of correctness, that is the accuracy of each group.

    Args:
        values: One value for each example.
        group: Group of each example, from 0.
        num_groups: Number of groups; every one must have an example.

    Raises:
        ValueError: If a group has no example.

    Example:
        >>> group_means(np.array([[True, False, True]]), np.array([0, 0, 1]), 2)
        array([[0.5, 1. ]])
    """
    sizes = np.bincount(group, minlength=num_groups)
    if len(sizes) > num_groups or not sizes.all():
        raise ValueError(f"{num_groups} groups of sizes {sizes.tolist()}: each needs an example")
    members = (group[:, None] == np.arange(num_groups)).astype(np.float64)
    return values @ members / sizes
