"""Exact per-example gradients: the definition, and the two factors of a dense layer's gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Integer

from train_dynamics.gradients.cut import cut
from train_dynamics.gradients.examples import over_examples
from train_dynamics.gradients.parameters import named

Parameters = dict[str, Any]
"""A network's weights: a dict of arrays by layer, `{"fc1": {"kernel": [in, out], "bias": [out]}, ...}`."""


def forward(model: nn.Module, parameters: Parameters, images: Float[Array, "n ..."]) -> Float[Array, "n c"]:
    """Compute logits in full float32. By default, recent GPUs would multiply in TF32."""
    with jax.default_matmul_precision("highest"):
        return model.apply({"params": parameters}, images)


def example_loss(
    model: nn.Module, parameters: Parameters, image: Float[Array, "..."], label: Int[Array, ""]
) -> Float[Array, ""]:
    """Compute the softmax cross-entropy of one example, in nats."""
    return cross_entropy(forward(model, parameters, image[None])[0], label)


def cross_entropy(logits: Float[Array, " c"], label: Int[Array, ""]) -> Float[Array, ""]:
    """Compute the softmax cross-entropy of one example from its logits, in nats.

    It is the same as `optax.softmax_cross_entropy_with_integer_labels`, but the label's logit is chosen by a single
    index. JAX knows that the gradient of this index adds to each logit once. For the choice in Optax it does not know
    that, so on GPUs XLA sorts all examples to add in the same order each time, which took a fifth of an iteration where
    we measured it.

    As in Optax, the loss of a class beyond the last is NaN although its gradient is not, and -1 is the last class.

    Example:
        >>> cross_entropy(jnp.zeros(2), jnp.int32(0))
        Array(0.6931472, dtype=float32)
    """
    return jax.nn.logsumexp(logits) - logits.at[label].get(mode="fill")


def kernel_gradients(
    model: nn.Module,
    parameters: Parameters,
    images: Float[Array, "n ..."],
    labels: Int[Array, " n"],
    layers: tuple[str, ...],
    batch_size: int | None = None,
) -> dict[str, Float[Array, "n i o"]]:
    """Compute d loss_n / d kernel for every example and each named layer: the definition.

    This is the gradient of each single example, not its share of the batch gradient: the mean over examples is the
    gradient of the mean loss.

    Args:
        model: A Linen module that maps a batch of images to logits.
        parameters: Its weights.
        images: Inputs, as the network sees them.
        labels: Class of each example, from 0 to the number of logits minus one. This is not checked here.
        layers: Names of layers that have a kernel.
        batch_size: Examples to evaluate at a time, which bounds memory. None evaluates all at once.

    Returns:
        For each layer the gradients, in nats per unit of weight.

    Example:
        >>> kernel_gradients(model, parameters, images, labels, ("fc2",))["fc2"].shape
        (6000, 8, 10)
    """

    def loss_of_kernels(
        kernels: dict[str, Array], image: Float[Array, "..."], label: Int[Array, ""]
    ) -> Float[Array, ""]:
        changed = {name: {**parameters[name], "kernel": kernel} for name, kernel in kernels.items()}
        return example_loss(model, {**parameters, **changed}, image, label)

    kernels = {name: parameters[name]["kernel"] for name in layers}
    return over_examples(lambda example: jax.grad(loss_of_kernels)(kernels, *example), (images, labels), batch_size)


class Evaluation(NamedTuple):
    """The result of one pass over the examples, which does not change the weights."""

    loss: Float[Array, " n"]
    prediction: Integer[Array, " n"]
    activation: dict[str, Float[Array, "n i"]]
    cotangent: dict[str, Float[Array, "n o"]]


def evaluate(
    model: nn.Module,
    parameters: Parameters,
    images: Float[Array, "n ..."],
    labels: Int[Array, " n"],
    layers: tuple[str, ...],
    batch_size: int | None = None,
) -> Evaluation:
    """Evaluate every example, with the two factors of its gradient at each named dense layer.

    For a dense layer y = x W + b the gradient of an example is exactly the outer product of its activation x and its
    cotangent d loss / d y (Goodfellow, "Efficient Per-Example Gradient Computations", 2015). The backward pass
    multiplies the two, and `cut` returns them.

    Args:
        model: A Linen module that maps a batch of images to logits. `layers` must be plain `nn.Dense` modules in it.
        parameters: Its weights.
        images: Inputs, as the network sees them.
        labels: Class of each example.
        layers: Names of the layers whose factors are returned.
        batch_size: Examples to evaluate at a time, which bounds memory. None evaluates all at once.

    Returns:
        Loss in nats, predicted class, and for each layer its input and the gradient of the loss at its output.

    Example:
        >>> found = evaluate(model, parameters, images, labels, ("fc2",))
        >>> found.activation["fc2"].shape, found.cotangent["fc2"].shape
        ((6000, 8), (6000, 10))
    """

    def loss(parameters: Parameters, example: tuple[Array, Array]) -> tuple[Array, Array]:
        image, label = example
        logits = forward(model, parameters, image[None])[0]
        return cross_entropy(logits, label), logits

    places = {name: list(named(parameters)).index(f"{name}/kernel") for name in layers}

    def one(example: tuple[Array, Array]) -> Evaluation:
        found, activation, cotangent = cut(loss, parameters, example), {}, {}
        for name, place in places.items():
            (term,) = found.terms[place]
            (activation[name],), (cotangent[name],) = term.product.factors()  # of a single position
        prediction = jnp.argmax(found.outputs).astype(np.min_scalar_type(len(found.outputs) - 1))
        return Evaluation(found.loss, prediction, activation, cotangent)

    return over_examples(one, (images, labels), batch_size)
