"""Turns the loss of a whole batch, as most training code has it, into losses of single examples, and checks it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train_dynamics.config import InputError
from train_dynamics.gradients.examples import count
from train_dynamics.gradients.parameters import in_float32, named

BatchLoss = Callable[[Any, Any], Any]
"""`batch_loss(params, examples) -> [n]`, or a pair of that and outputs with a first axis n."""

MOST = 8  # examples that are looked at: a loss that mixes does so with any


def of_batch(batch_loss: BatchLoss) -> Callable[[Any, Any], tuple[Float[Array, ""], Any]]:
    """Make the loss of one example from a batch loss, by calling it with a batch of one.

    Args:
        batch_loss: Function that returns the losses of a batch of examples, or a pair of losses and outputs. Use
            `check_independent` to check that an example's loss does not depend on the rest of the batch.

    Returns:
        `loss(params, example) -> (loss, outputs)`. It raises InputError if there is not one loss per example.

    Example:
        >>> of_batch(lambda w, x: x @ w)(jnp.array([2.0]), jnp.array([3.0]))
        (Array(6., dtype=float32), ())
    """

    def loss(params: Any, example: Any) -> tuple[Array, Any]:
        losses, outputs = _losses(batch_loss, params, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], example))
        return losses[0], jax.tree.map(lambda leaf: leaf[0], outputs)

    return loss


def check_independent(batch_loss: BatchLoss, params: Any, examples: Any) -> None:
    """Check that an example's gradient is the same alone and among others.

    It is not the same with batch normalisation in training mode, with dropout, or if losses are divided by the batch
    size. Single examples then have no gradient of their own. The check uses the first 8 examples.

    Raises:
        InputError: If a gradient changes by more than rounding, a share of sqrt(eps). The message says where most.

    Example:
        >>> check_independent(lambda w, x: x * w, jnp.array(2.0), jnp.array([1.0, 3.0]))
        >>> check_independent(lambda w, x: (x - x.mean()) * w, jnp.array(2.0), jnp.array([1.0, 3.0]))
        Traceback (most recent call last):
        train_dynamics.config.InputError: ...
    """
    params, seen = in_float32(params), min(count(examples), MOST)
    examples = jax.tree.map(lambda leaf: leaf[:seen], examples)

    def both(params: Any, examples: Any) -> tuple[Any, Any]:
        alone = jax.vmap(jax.grad(of_batch(batch_loss), has_aux=True), (None, 0))(params, examples)[0]
        return alone, jax.jacrev(lambda params: _losses(batch_loss, params, examples)[0])(params)

    # One program, and one that compiles soon: it runs once.
    alone, among = map(named, jax.jit(both, compiler_options={"xla_backend_optimization_level": 1})(params, examples))
    size = max(jnp.abs(leaf).max(initial=0) for gradients in (alone, among) for leaf in gradients.values())
    changes = {name: float(jnp.abs(alone[name] - among[name]).max(initial=0) / size) for name in alone if size}
    worst = max(changes, key=changes.get, default=None)
    if worst and not changes[worst] <= float(jnp.sqrt(jnp.finfo(alone[worst].dtype).eps)):
        raise InputError(
            "an example's gradient depends on the other examples of its batch, as with batch normalisation in training "
            f"mode, dropout, or a mean over the batch; most at {worst}, by {changes[worst]:.2g} of the largest entry"
        )


def _losses(batch_loss: BatchLoss, params: Any, examples: Any) -> tuple[Float[Array, " n"], Any]:
    found = batch_loss(params, examples)
    losses, outputs = found if isinstance(found, tuple) and len(found) == 2 else (found, ())
    if getattr(losses, "shape", None) != (count(examples),):
        described = list(losses.shape) if hasattr(losses, "shape") else type(losses).__name__
        raise InputError(f"batch_loss(params, examples) must return one loss per example, [n]; it returned {described}")
    return losses, outputs
