"""Norms of gradients and their products with the mean gradient, computed from factors where there are any.

The squared norm of a sum of products over positions is the sum of the products of two Gram matrices: Li, Tramer, Liang
and Hashimoto, "Large Language Models Can Be Strong Differentially Private Learners", 2022 (ghost clipping); Bu et al.,
"Scalable and Efficient Training of Large Convolutional Neural Networks with Differential Privacy", 2022.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from train_dynamics.gradients.cut import cut
from train_dynamics.gradients.examples import count, sum_over_examples
from train_dynamics.gradients.products import Term, dense, join, layers_of
from train_dynamics.recording.layers import TOGETHER, Layer


class Share(NamedTuple):
    """The examples of one device, if they are divided over several.

    Attributes:
        held: Which of them are real, and do not only fill up an equal share.
        add: Function that adds up over the devices, like `jax.lax.psum`.
    """

    held: Bool[Array, " n"]
    add: Callable[[Any], Any]


def mean_gradient(
    loss: Callable, params: Any, examples: Any, batch_size: int | None, share: Share | None = None
) -> dict[str, Float[Array, "..."]]:
    """Compute the gradient of the mean loss over all examples, by name, some examples at a time.

    It too uses the products, because on CPUs JAX is slower for the gradient of a convolution's kernel over a batch.
    """
    held = jnp.ones(count(examples), bool) if share is None else share.held

    def total(both: tuple[Any, Bool[Array, " b"]], new: Bool[Array, " b"]) -> dict[str, Array]:
        batch, held = both
        layers, counted = {}, new & held

        def parts(example: Any) -> dict[str, Any]:
            found = cut(loss, params, example)
            layers.update(layers_of(params, found.terms))
            both = zip(layers.items(), found.gradients, found.terms, strict=True)
            return {name: join(terms) if of.factors else dense(gradient, terms) for (name, of), gradient, terms in both}

        def add(layer: Layer, found: Any) -> Array:
            *activation, last = found if layer.factors else (found,)
            last = jnp.where(counted.reshape(-1, *[1] * (last.ndim - 1)), last, 0)
            if not layer.factors:
                return last.sum(0)
            return layer.factors.layout.apply(jnp.einsum("npi,npo->io", *activation, last))

        found = jax.vmap(parts)(batch)
        return {name: add(layers[name], found[name]) for name in found}

    totals, number = sum_over_examples(total, (examples, held), batch_size), count(examples)
    if share is not None:
        totals, number = share.add((totals, held.sum()))
    return {name: leaf / number for name, leaf in totals.items()}


def squared_norm(layer: Layer, gradient: Float[Array, "..."], terms: tuple[Term, ...]) -> Float[Array, ""]:
    """Compute the squared norm of one example's gradient.

    From Gram matrices, the rounding error is as large as the terms, so the result may be 0 where they cancel.
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
    """Divide by both norms. 0 where either is 0."""
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
