"""What is trained. All that the program knows of a network is the loss of one example."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Key = Any
Parameters = Any
Variables = Any
Example = Any
Loss = Callable[[Parameters, Example], tuple[Any, Any]]


def no_variables(key: Key) -> Variables:
    """Return no variables, for a network that consists of its parameters alone."""
    return {}


@dataclasses.dataclass(frozen=True)
class Task:
    """A network, its initial weights and its loss, as pure functions.

    Attributes:
        init: Takes a random key and returns the parameters, a pytree of float32 arrays. They must depend on the key
            alone.
        loss: `loss(params, example) -> (loss, outputs)`, for one example: a pytree without a leading axis, which for a
            data set is `(input, label)`. The loss is a scalar; the outputs are what the network computes, for a
            classifier the logits. The recording holds its gradients with respect to `params`.
        variables: Takes a random key and returns everything else that training changes, such as the statistics of batch
            normalisation; an empty dict if there is nothing. If there is something, `loss` gets it as its third
            argument.
        batch_loss: `batch_loss(params, variables, batch, weights, key) -> (loss, variables)`, the loss that updates
            minimise, if it is not the mean of `loss`: for example with dropout, or with statistics of the batch.
            `batch` has a leading axis. Examples of weight 0 repeat others and only fill up the batch.
        losses: `losses(params, variables, batch)`, for a network that takes a whole batch: the loss of each example in
            it. It is used to check that each equals what `loss` gives for that example alone.

    Example:
        >>> def loss(params, example):
        ...     x, label = example
        ...     logits = x @ params["kernel"]
        ...     return optax.softmax_cross_entropy_with_integer_labels(logits, label), logits
        >>> Task(init=lambda key: {"kernel": jnp.zeros((4, 3))}, loss=loss)
    """

    init: Callable[[Key], Parameters]
    loss: Callable[..., tuple[Any, Any]]
    variables: Callable[[Key], Variables] = no_variables
    batch_loss: Callable[..., tuple[Any, Variables]] | None = None
    losses: Callable[[Parameters, Variables, Example], Any] | None = None

    def loss_with(self, variables: Variables) -> Loss:
        """Return the loss of one example, with everything but the parameters fixed."""
        if not jax.tree.leaves(variables):
            return self.loss
        return lambda params, example: self.loss(params, example, variables)

    def mean_loss(
        self, params: Parameters, variables: Variables, batch: Example, weights: Float[Array, " b"], key: Key
    ) -> tuple[Float[Array, ""], Variables]:
        """Compute the loss of a batch, and the variables after it."""
        if self.batch_loss is not None:
            return self.batch_loss(params, variables, batch, weights, key)
        losses = jax.vmap(lambda example: self.loss_with(variables)(params, example)[0])(batch)
        return weighted_mean(losses, weights), variables


def weighted_mean(values: Float[Array, " b"], weights: Float[Array, " b"]) -> Float[Array, ""]:
    """Compute a weighted mean. Values of weight 0 are ignored, even if they are not finite."""
    return jnp.sum(jnp.where(weights > 0, values * weights, 0)) / jnp.sum(weights)
