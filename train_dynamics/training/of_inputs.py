"""How a classifier's outputs and loss depend on its input, for scores of any network, in JAX.

What each score means is explained in its file in `train_dynamics.dynamics.scores`, which computes it for the default
network.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Example = tuple[Array, Array]
Loss = Callable[[Array, Array], tuple[Array, Array]]
"""`loss(input, label) -> (loss, logits)` of one example, by a network whose parameters are fixed."""
OfRows = Callable[[np.ndarray, np.ndarray], Any]
"""A function of inputs and labels of any number of examples, in NumPy."""

STEPS = 50
OVERSHOOT = 0.02
HALVINGS = 10
ONE_BY_ONE = 16  # classes; each lengthens the program


def logit_gradients(loss: Loss, examples: Example) -> Float[Array, "n *input"]:
    """Compute the gradient of the label's logit with respect to each input, in logits per unit of input."""
    return jax.vmap(jax.grad(lambda value, label: loss(value, label)[1][label]))(*examples)


def curvatures(loss: Loss, examples: Example, vectors: Float[Array, "m *input"]) -> Float[Array, " n"]:
    """Average the squared length of H v over some vectors v, where H is the Hessian of a loss at its input.

    For random vectors of +1 and -1 this estimates the trace of H², as Hutchinson does. Garg and Roy, "Samples With Low
    Loss Curvature Improve Data Efficiency" (2023), use ten vectors, and compute H v as the difference of two gradients
    a step of 0.001 v apart, divided by 0.001. Here it is the derivative itself, the limit of small steps, so kinks have
    no effect. With m inputs and m orthogonal vectors of length sqrt(m) it is the trace exactly.

    Args:
        loss: The loss of one example.
        examples: Inputs and labels.
        vectors: The vectors, the same for all examples.

    Returns:
        In squared units of loss per (unit of input)⁴.
    """

    def one(value: Array, label: Array) -> Array:
        slope = jax.grad(lambda value: loss(value, label)[0])
        lengths = jax.lax.map(lambda v: jnp.sum(jnp.square(jax.jvp(slope, (value,), (v,))[1])), vectors)
        return lengths.mean()

    return jax.vmap(one)(*examples)


def curvatures_of_pieces(loss: Loss, examples: Example) -> Float[Array, " n"]:
    """Compute the same trace exactly, for a piecewise linear network with softmax cross-entropy.

    There H = Jᵀ A J with J = dz/dx and A = diag(p) - p pᵀ, and the trace of H² is that of (A J Jᵀ)².
    """

    def one(jacobian: Array, logits: Array) -> Array:
        rows, p = jacobian.reshape(len(logits), -1), jax.nn.softmax(logits)
        products = rows @ rows.T
        bent = p[:, None] * (products - p @ products)
        return jnp.sum(bent * bent.T)

    return jax.vmap(one)(*_jacobians(loss, examples))


def is_of_pieces(loss: Loss, examples: Example, vector: Float[Array, "*input"]) -> Bool[Array, ""]:
    """Tell whether H v equals Jᵀ A J v to a thousandth for some examples, so `curvatures_of_pieces` is right."""

    def one(value: Array, label: Array) -> tuple[Array, Array, Array]:
        bent = jax.jvp(jax.grad(lambda value: loss(value, label)[0]), (value,), (vector,))[1]
        logits, moved = jax.jvp(lambda value: loss(value, label)[1], (value,), (vector,))
        back = jax.vjp(lambda value: loss(value, label)[1], value)[1]
        p = jax.nn.softmax(logits)
        return bent, back(p * (moved - p @ moved))[0], back(p * moved)[0]

    bent, expected, parts = jax.vmap(one)(*examples)
    rounding = 1e-6 * jnp.abs(parts).max()  # what is left of large ones that cancel
    return jnp.abs(bent - expected).max() <= 1e-3 * jnp.abs(bent).max() + rounding


def predictions(loss: Loss, examples: Example) -> Int[Array, " n"]:
    """Return the predicted class of each example."""
    return jax.vmap(loss)(*examples)[1].argmax(axis=1)


def leads(loss: Loss, examples: Example) -> Float[Array, " n"]:
    """Compute by how much the class given as label leads the next one, in logits."""
    values, class_of = examples
    return jax.vmap(_lead)(jax.vmap(loss)(values, class_of)[1], class_of).min(axis=1)


def steps(loss: Loss, examples: Example) -> tuple[Bool[Array, " n"], Float[Array, "n *input"]]:
    """Compute the step from each input to the nearest boundary of the class given as label, of the linearised network.

    Returns:
        Whether there is a boundary, and the step.
    """
    return jax.vmap(_step)(*_jacobians(loss, examples), examples[1])


def distances(
    inputs: Float[np.ndarray, "n *input"], predict: OfRows, lead: OfRows, step: OfRows
) -> Float[np.ndarray, " n"]:
    """Find how far each input is from one that the network gives another class, by DeepFool.

    It takes the same steps as `train_dynamics.dynamics.scores.adversarial`. Most examples need one or two, a few need
    more. Steps cost most, so they are computed only for examples that have not crossed yet.

    Args:
        inputs: The inputs.
        predict: Gives what `predictions` does, of inputs and whatever in the place of labels.
        lead: Gives what `leads` does, of inputs and classes.
        step: Gives what `steps` does, of these.

    Returns:
        L2 norm of the change found, in units of input; infinite where no step leads to a boundary.
    """
    class_of = predict(inputs, np.zeros(len(inputs), int))
    change, going = np.zeros_like(inputs), np.arange(len(inputs))
    for _ in range(STEPS):
        if len(going):
            going = going[lead(inputs[going] + change[going], class_of[going]) > 0]
        if not len(going):
            break
        there, steps = step(inputs[going] + change[going], class_of[going])
        going = going[there]
        change[going] += steps[there]

    def ahead(share: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Compute by how much the class leads the next one, part of the way along."""
        return lead(inputs + share.reshape(-1, *[1] * (inputs.ndim - 1)) * change, class_of)

    low, high = np.zeros(len(inputs), inputs.dtype), np.ones(len(inputs), inputs.dtype)
    for _ in range(HALVINGS):  # back to where it crosses
        middle = (low + high) / 2
        inside = ahead(middle) > 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    before, after = ahead(low), ahead(high)  # between kinks, a straight line
    share = np.divide(before, before - after, out=np.zeros_like(before), where=before > after)
    length = (low + share * (high - low)) * np.sqrt(np.square(change).reshape(len(inputs), -1).sum(axis=1))
    return np.where(after <= 0, length, np.inf)


def _jacobians(loss: Loss, examples: Example) -> tuple[Float[Array, "n c *input"], Float[Array, "n c"]]:
    """Compute how each logit changes with the input, and the logits.

    Few classes are taken one after the other: for convolutions on CPUs, all at once took 1.6 times as long.
    """
    values, labels = examples
    logits, back = jax.vjp(lambda values: jax.vmap(loss)(values, labels)[1], values)
    units = jnp.eye(logits.shape[1], dtype=logits.dtype)

    def of_class(unit: Array) -> Array:
        return back(jnp.broadcast_to(unit, logits.shape))[0]

    if len(units) > ONE_BY_ONE:
        return jax.vmap(of_class, out_axes=1)(units), logits
    return jnp.stack([of_class(unit) for unit in units], axis=1), logits


def _step(jacobian: Float[Array, "c *input"], logits: Float[Array, " c"], class_of: Int[Array, ""]) -> tuple:
    lead = _lead(logits, class_of)
    toward = (jacobian - jacobian[class_of]).reshape(len(logits), -1)
    squares = jnp.sum(jnp.square(toward), axis=1)
    there = squares > 0  # else no unit is active, and nothing changes the class
    nearest = jnp.where(there, lead / jnp.sqrt(jnp.where(there, squares, 1)), jnp.inf).argmin()
    move = (1 + OVERSHOOT) * lead[nearest] / jnp.where(there, squares, 1)[nearest] * toward[nearest]
    return there[nearest], move.reshape(jacobian.shape[1:])


def _lead(logits: Float[Array, " c"], class_of: Int[Array, ""]) -> Float[Array, " c"]:
    """Compute by how much a class leads each other one."""
    return jnp.where(jnp.arange(len(logits)) == class_of, jnp.inf, logits[class_of] - logits)
