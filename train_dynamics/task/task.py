"""What is trained: all that the program knows of a network is the loss of one example."""

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
    """Start a network that consists of its parameters alone."""
    return {}


@dataclasses.dataclass(frozen=True)
class Task:
    """A network, its start and its loss, as pure functions.

    Attributes:
        init: From a random key the parameters, a pytree of float32 arrays; a function of the key alone.
        loss: `loss(params, example) -> (loss, outputs)` of one example, a pytree without a leading axis; of a data set
            `(input, label)`. A scalar, and what the network says, of a classifier the logits. What is recorded are its
            gradients with respect to `params`.
        variables: From a random key whatever else the network is made of and training changes, as the statistics of
            batch normalisation; an empty dict if nothing. Where there is something, it is a third argument of `loss`.
        batch_loss: `batch_loss(params, variables, batch, weights, key) -> (loss, variables)`: what an update goes down,
            if that is not the mean of `loss`: with dropout, or with statistics of the batch. `batch` has a leading
            axis, and examples of weight 0 only fill it up; they repeat others.
        losses: `losses(params, variables, batch)`: of a network that takes a whole batch, the losses of its examples,
            so that it can be seen whether each is what `loss` gives of that example alone.

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
        """Give the loss of one example where all but the parameters is fixed."""
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
    """Average; what has weight 0 plays no part, even if it is not finite."""
    return jnp.sum(jnp.where(weights > 0, values * weights, 0)) / jnp.sum(weights)
