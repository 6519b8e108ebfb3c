"""Describes a layer of a recording, and rebuilds gradients from their factors. Needs no JAX."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from train_dynamics.config import InputError
from train_dynamics.recording.layout import Layout

TOGETHER = "all"
"""The name under which measures of all weights together are kept."""


class Factors(NamedTuple):
    """Sizes of a gradient's two factors, and how their product becomes the parameter's shape.

    Attributes:
        i: Length of an activation.
        o: Length of a cotangent.
        positions: Number of products that are summed (pixels, tokens, or uses of the same weight).
        layout: How the product [i, o] is rearranged into the parameter.
    """

    i: int
    o: int
    positions: int
    layout: Layout


class Layer(NamedTuple):
    """A parameter whose gradient can be kept.

    Attributes:
        name: Its path in the parameters, such as `Dense_0/kernel`.
        shape: Its shape.
        factors: The factors of its gradients, if there are any and they are smaller than the gradient itself.
    """

    name: str
    shape: tuple[int, ...]
    factors: Factors | None = None


def choose(layers: Mapping[str, Layer], patterns: Sequence[str]) -> list[str]:
    """Choose layers by `all`, by exact name, or by wildcards as in `conv1/*`, where `*` also matches slashes.

    Returns:
        The names, in the order of `layers`, each once.

    Raises:
        InputError: If a pattern matches no layer.

    Example:
        >>> layers = {name: Layer(name, (2,)) for name in ("fc1/bias", "fc2/bias")}
        >>> choose(layers, ["fc2/*"])
        ['fc2/bias']
    """
    chosen = set()
    for pattern in patterns:
        exact = [pattern] if pattern in layers else []
        matches = list(layers) if pattern == "all" else exact or fnmatch.filter(layers, pattern)
        if not matches:
            raise InputError(f"no layer matches {pattern!r}; there are {', '.join(layers)}")
        chosen.update(matches)
    return [name for name in layers if name in chosen]


def rebuild(
    layer: Layer, activation: Float[np.ndarray, "*n i"], cotangent: Float[np.ndarray, "*n o"]
) -> Float[np.ndarray, "..."]:
    """Multiply the factors of a layer's gradients.

    Args:
        layer: The layer, with factors.
        activation: Activations [..., i], or [..., positions, i] if there are several positions.
        cotangent: Cotangents [..., o], or [..., positions, o], with the same axes before.

    Returns:
        Gradients, [..., *layer.shape].

    Raises:
        ValueError: If the layer has no factors.

    Example:
        >>> factors = Factors(1, 2, 1, Layout((1, 2), (0, 1), (1, 2)))
        >>> rebuild(Layer("fc1/kernel", (1, 2), factors), np.array([[2.0]]), np.array([[3.0, -1.0]]))
        array([[[ 6., -2.]]])
    """
    if layer.factors is None:
        raise ValueError(f"the gradient of {layer.name} is not kept as factors")
    if layer.factors.positions == 1:
        product = activation[..., :, None] * cotangent[..., None, :]
    else:
        product = np.swapaxes(activation, -1, -2) @ cotangent
    rows = product.shape[:-2]  # as one axis: `Layout.apply` takes any
    return layer.factors.layout.apply(product.reshape(-1, *product.shape[-2:])).reshape(*rows, *layer.shape)
