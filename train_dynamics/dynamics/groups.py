"""Averages and sums over groups of examples."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


def group_weights(group: Int[np.ndarray, " n"], num_groups: int) -> Float[np.ndarray, "n group"]:
    """Make the matrix that averages over groups: `values @ weights` are the means of values `[..., n]`.

    If the values are correctness, the means are the accuracy of each group.

    Args:
        group: Group of each example, from 0.
        num_groups: Number of groups. Each must have an example.

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


class Groups(NamedTuple):
    """Examples sorted by group.

    Attributes:
        order: The examples of all groups.
        ends: Where each group begins in `order`, and where the last one ends.
    """

    order: Int[np.ndarray, " m"]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[Int[np.ndarray, " _"]]) -> "Groups":
        """Build this from groups, each given by its examples. They may be empty, overlap, and leave examples out."""
        return cls(
            np.concatenate([np.empty(0, int), *groups]), (0, *np.cumsum([len(group) for group in groups]).tolist())
        )


def gradient_sums(
    gradients: tuple[Float[np.ndarray, "..."], ...], groups: Groups, weights: Float[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "group k"]:
    """Add up the weighted gradients of each group, without multiplying factors out.

    With the factors a and d of the gradients this is, for each group, the product of its transposed a with its weighted
    d.

    Args:
        gradients: Either activation `[n, i]` and cotangent `[n, o]`, or only the gradients, `[n, i, o]`.
        groups: The groups.
        weights: Weight of each example. Default: 1.

    Returns:
        The sums, flattened to k = i o. Zero for a group without examples.

    Example:
        >>> a, d = np.array([[3.0], [1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> gradient_sums((a, d), Groups.of([np.array([0, 1])]))
        array([[3., 1.]])
    """
    # np.take is several times as fast as an index.
    parts = [np.take(part, groups.order, axis=0) for part in gradients]
    if len(parts) == 1:
        (flat,) = parts
        parts = [np.ones((len(flat), 1), flat.dtype), flat.reshape(len(flat), math.prod(flat.shape[1:]))]
    left, right = parts
    if weights is not None:
        right *= np.take(weights, groups.order)[:, None]
    spans = list(itertools.pairwise(groups.ends))
    sizes = {stop - start for start, stop in spans}
    if len(sizes) == 1 and sizes != {0}:  # as batches have: one call for all
        shape = (len(spans), sizes.pop(), -1)
        sums = np.matmul(np.swapaxes(left.reshape(shape), 1, 2), right.reshape(shape))
    else:
        sums = np.empty((len(spans), left.shape[1], right.shape[1]), right.dtype)
        for total, (start, stop) in zip(sums, spans, strict=True):
            np.matmul(left[start:stop].T, right[start:stop], out=total)
    return sums.reshape(len(spans), left.shape[1] * right.shape[1])
