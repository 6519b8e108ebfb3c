"""Sketches: gradients projected to a few random directions, linearly and the same for all examples. Needs no JAX.

A gradient is taken as a matrix G [i, o]. Entry j of its sketch is `u_j' G v_j / sqrt(size)`, with random signs u_j and
v_j. For a gradient in factors this is `sum_p (u_j . a_p) (v_j . d_p)`, without multiplying them out (rows of a
Khatri-Rao product; Rakhshan and Rabusseau, "Tensorized Random Projections", 2020). Inner products of sketches estimate
those of gradients without bias. If one side has at most `NARROW` entries, only the other side is projected, which is
more accurate for the same size. A gradient that is no longer than its sketch is kept as it is.
"""

import math
import zlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int8

from train_dynamics.recording.layers import Layer

NARROW = 4
"""Up to this m the relative variance 2 m / size of projecting one side is no more than the 8 / size of both."""


class SketchError(NamedTuple):
    """How far estimates from sketches are off.

    Attributes:
        squared_norm: Standard deviation of an estimated squared norm, relative to the norm.
        cosine: Standard deviation of an estimated cosine if the true one is 0; at c it is (1 - c^2) times that.
    """

    squared_norm: float
    cosine: float


def sketch_error(layer: Layer, size: int) -> SketchError:
    """Bound how far estimates from a layer's sketches are off.

    Rows are independent, so that variances fall with their number k. For one row `s = u' G v`, |G| = 1, E s^2 = 1, and
    for normal u and v E s^4 = 3 E |G v|^4 = 3 (1 + 2 tr (G'G)^2) <= 9, with 9 for an outer product; random signs give
    no more. So the variance of the squared norm is at most 8 / k; where only u is random (narrow layers) 2 / k.

    The cosine c of G and H is off by the mean of `s t - c (s^2 + t^2) / 2`, to first order: a quadratic form on u (x) v
    whose matrix is (1 - c^2) / 2 (p p' - q q') with orthonormal p and q. Its variance is at most 4 (1 - c^2)^2, with
    equality where p and q are outer products of vectors orthogonal on both sides; where only u is random (1 - c^2)^2.

    Example:
        >>> sketch_error(Layer("fc1/kernel", (784, 100)), 800)
        SketchError(squared_norm=0.1, cosine=0.07071067811865475)
    """
    i, o = _sides(layer)
    if i * o <= size:
        return SketchError(0.0, 0.0)
    if min(i, o) <= NARROW:
        rows = size // min(i, o)
        return SketchError(math.sqrt(2 / rows), math.sqrt(1 / rows))
    return SketchError(math.sqrt(8 / size), math.sqrt(4 / size))


def sketch_of(layer: Layer, size: int, gradient: Any = None, factors: tuple[Any, Any] | None = None) -> Any:
    """Project one gradient. It works on NumPy and JAX arrays.

    Args:
        layer: The layer of the gradient.
        size: Length of the sketch, at most.
        gradient: The gradient, in the layer's shape; or None if `factors` are given.
        factors: The gradient's factors with an axis of positions, [p, i] and [p, o].

    Returns:
        A vector of `size` numbers; for a narrow layer, as many as whole rows fill; or the gradient itself.

    Example:
        >>> sketch_of(Layer("fc1/bias", (2,)), 3, np.array([2.0, 1.0]))
        array([2., 1.])
    """
    i, o = _sides(layer)
    if factors is not None:
        left, right = factors
    else:  # as if it were given by its factors: its rows, and those of the identity
        left = gradient.reshape(i, o) if layer.factors is None else layer.factors.layout.undo(gradient, i, o)
        left, right = left.T, np.eye(o, dtype=gradient.dtype)
    if i * o <= size:
        return (left.T if factors is None else left.T @ right).reshape(-1)
    if min(i, o) <= NARROW:
        wide, narrow = (left, right) if i > o else (right, left)
        signs = _signs(layer.name, size // min(i, o), max(i, o)).astype(left.dtype)
        return (signs @ wide.T @ narrow).reshape(-1) / math.sqrt(len(signs))
    signs = _signs(layer.name, size, i + o).astype(left.dtype)
    return ((signs[:, :i] @ left.T) * (signs[:, i:] @ right.T)).sum(1) / math.sqrt(size)


def _sides(layer: Layer) -> tuple[int, int]:
    if layer.factors is not None:
        return layer.factors.i, layer.factors.o
    return math.prod(layer.shape[:-1]), math.prod(layer.shape[-1:])


def _signs(name: str, rows: int, columns: int) -> Int8[np.ndarray, "rows columns"]:
    """Draw +1 and -1 for a layer, from its name: the same on all machines."""
    bits = np.random.Generator(np.random.Philox(zlib.crc32(name.encode()))).bytes(-(-rows * columns // 8))
    return (2 * np.unpackbits(np.frombuffer(bits, np.uint8))[: rows * columns].astype(np.int8) - 1).reshape(rows, -1)
