"""Norms of gradients and their products with the mean gradient, from the factors where there are any.

The squared norm of a sum of products over positions is the sum of the products of two Gram matrices: Li, Tramer, Liang
and Hashimoto, "Large Language Models Can Be Strong Differentially Private Learners", 2022 (ghost clipping); Bu et al.,
"Scalable and Efficient Training of Large Convolutional Neural Networks with Differential Privacy", 2022.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from train_dynamics.tapping.examples import count, sum_over_examples
from train_dynamics.tapping.layers import Layer
from train_dynamics.tapping.parameters import TOGETHER
from train_dynamics.tapping.products import Term, dense, join


def mean_gradient(loss: Callable, params: Any, examples: Any, batch_size: int | None) -> Any:
    """Compute the gradient of the mean loss over all examples, so many at a time."""

    def total(params: Any, batch: Any, new: Bool[Array, " b"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(new, jax.vmap(loss, (None, 0))(params, batch)[0], 0))

    total_gradient = sum_over_examples(lambda *batch: jax.grad(total)(params, *batch), examples, batch_size)
    return jax.tree.map(lambda leaf: leaf / count(examples), total_gradient)


def squared_norm(layer: Layer, gradient: Float[Array, "..."], terms: tuple[Term, ...]) -> Float[Array, ""]:
    """Compute the squared norm of one example's gradient.

    From Gram matrices it is rounded by as much as the terms, so that it may be 0 where they cancel.
    """
    if layer.factors is None:
        return jnp.sum(jnp.square(dense(gradient, terms)))
    activation, cotangent = join(terms)
    return jnp.maximum(jnp.sum((activation @ activation.T) * (cotangent @ cotangent.T)), 0)


def product(
    layer: Layer, gradient: Float[Array, "..."], terms: tuple[Term, ...], other: Float[Array, "..."]
) -> Float[Array, ""]:
    """Compute the inner product of one example's gradient with an array of the same shape."""
    if layer.factors is None:
        return jnp.sum(dense(gradient, terms) * other)
    activation, cotangent = join(terms)
    return jnp.sum((activation @ layer.factors.layout.undo(other, layer.factors.i, layer.factors.o)) * cotangent)


def cosine(product: Float[Array, ""], norm: Float[Array, ""], other: Float[Array, ""]) -> Float[Array, ""]:
    """Divide by both norms; 0 where either is."""
    either = (norm == 0) | (other == 0)
    return jnp.where(either, 0, product / jnp.where(either, 1, norm) / jnp.where(either, 1, other))


def measures_of(
    layers: dict[str, Layer], gradients: list[Array], terms: list[tuple[Term, ...]], mean: dict[str, Array]
) -> dict[str, dict[str, Float[Array, ""]]]:
    """Compute the measures of one example's gradients: of every layer, and of all together as `all`."""
    both = dict(zip(layers, zip(gradients, terms, strict=True), strict=True))
    squares = {name: squared_norm(layers[name], *both[name]) for name in layers}
    products = {name: product(layers[name], *both[name], mean[name]) for name in layers}
    of_mean = {name: jnp.sum(jnp.square(leaf)) for name, leaf in mean.items()}
    for values in (squares, products, of_mean):
        values[TOGETHER] = sum(values.values())
    norms = {name: jnp.sqrt(square) for name, square in squares.items()}
    alignments = {name: cosine(products[name], norms[name], jnp.sqrt(of_mean[name])) for name in norms}
    return {"norm": norms, "product": products, "alignment": alignments}
