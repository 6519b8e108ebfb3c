"""One training run as pure functions: start, update, record, and a block of iterations in one scan."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from train_dynamics import gradients
from train_dynamics.batches import batch_indices as batch_indices  # part of training; the analysis needs it too
from train_dynamics.config import StudyConfig
from train_dynamics.gradients import Parameters
from train_dynamics.models import MLP

Record = dict[str, Any]
"""What is written down at one iteration, by name: see `record`."""


class State(NamedTuple):
    """All that training goes on from."""

    parameters: Parameters
    optimizer: optax.OptState


class Setup(NamedTuple):
    """What stays the same for every seed and iteration.

    Attributes:
        model: The network.
        optimizer: The rule of the updates.
        layers: Layers whose gradients are recorded.
        output_layer: The layer whose output is the logits; its cotangent is always recorded, because the class
            probabilities follow from it.
        input_layer: The layer whose activation is the images themselves, which are stored once.
        dense: Whether gradients are stored as [in, out] and not as factors.
        eval_batch_size: Examples to evaluate at a time; all at once if None.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    layers: tuple[str, ...]
    output_layer: str
    input_layer: str
    dense: bool
    eval_batch_size: int | None = None


def set_up(config: StudyConfig, num_classes: int) -> Setup:
    """Build the network and the optimizer that a configuration names."""
    return Setup(
        model=MLP(config.hidden_sizes, num_classes),
        optimizer=optax.sgd(config.learning_rate, config.momentum or None, config.nesterov),
        layers=config.layers,
        output_layer=config.layer_names[-1],
        input_layer=config.layer_names[0],
        dense=config.gradient_layout == "dense",
        eval_batch_size=config.eval_batch_size,
    )


def initial_state(setup: Setup, seed: Int[Array, ""], image: Float[Array, "..."]) -> State:
    """Draw the weights of a seed, a function of the seed alone."""
    parameters = setup.model.init(jax.random.key(seed), image[None])["params"]
    return State(parameters, setup.optimizer.init(parameters))


def update(
    setup: Setup, state: State, batch: Int[Array, " b"], images: Float[Array, "n ..."], labels: Int[Array, " n"]
) -> State:
    """Take one optimizer step down the mean loss over the batch."""

    def mean_loss(transposed: Parameters) -> Float[Array, ""]:
        logits = gradients.forward(setup.model, _transposed(transposed), images[batch])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
        return jnp.sum(jnp.where(batch >= 0, losses, 0)) / jnp.sum(batch >= 0)

    gradient = _transposed(jax.grad(mean_loss)(_transposed(state.parameters)))
    descent, optimizer = setup.optimizer.update(gradient, state.optimizer, state.parameters)
    return State(optax.apply_updates(state.parameters, descent), optimizer)


def _transposed(parameters: Parameters) -> Parameters:
    """Transpose the kernels, behind a barrier that keeps XLA from undoing it.

    On CPUs the gradient of a kernel with many inputs and few outputs takes a quarter of the time as [out, in].
    """
    barrier = jax.lax.optimization_barrier
    return {name: {**layer, "kernel": barrier(layer["kernel"]).T} for name, layer in parameters.items()}


def record(setup: Setup, parameters: Parameters, images: Float[Array, "n ..."], labels: Int[Array, " n"]) -> Record:
    """Write down what every example does to the weights as they are.

    Returns:
        A dict with

        - `parameters`: the weights;
        - `loss` [n], in nats, and `prediction` [n], the likeliest class;
        - `cotangent`: {layer: [n, o]}, of the output layer always, of the other recorded layers if factored;
        - `activation`: {layer: [n, i]}, of the recorded layers if factored, except the input layer;
        - `gradient`: {layer: [n, i, o]}, of the recorded layers if dense.
    """
    factored = () if setup.dense else setup.layers
    layers, size = tuple(dict.fromkeys((*factored, setup.output_layer))), setup.eval_batch_size
    found = gradients.evaluate(setup.model, parameters, images, labels, layers, size)
    return {
        "parameters": parameters,
        "loss": found.loss,
        "prediction": found.prediction,
        "cotangent": found.cotangent,
        "activation": {name: found.activation[name] for name in factored if name != setup.input_layer},
        "gradient": gradients.kernel_gradients(setup.model, parameters, images, labels, setup.layers, size)
        if setup.dense
        else {},
    }


def step(
    setup: Setup,
    state: State,
    batches: Int[Array, "gap b"],
    gap: Int[Array, ""],
    images: Float[Array, "n ..."],
    labels: Int[Array, " n"],
) -> tuple[State, Record]:
    """Record the state as it is, then update it `gap` times; neither uses anything of the other."""
    after = update(setup, state, batches[0], images, labels)
    if len(batches) > 1:  # a loop that only ever ran once would still cost a tenth
        after = jax.lax.fori_loop(1, gap, lambda k, state: update(setup, state, batches[k], images, labels), after)
    return after, record(setup, state.parameters, images, labels)


def run_block(
    setup: Setup,
    state: State,
    records: Record,
    batches: Int[Array, "t gap b"],
    gaps: Int[Array, " t"],
    images: Float[Array, "n ..."],
    labels: Int[Array, " n"],
) -> tuple[State, Record]:
    """Record, write it into row `t` of `records`, and take `gaps[t]` updates with the first of `batches[t]`; and so on.

    The records are carried through the scan, and not stacked by it, so that a caller can hand in the memory of an
    earlier block: fresh memory costs a quarter of the time of a block.

    Returns:
        The state after the last update, and the records, with a leading axis `t`.
    """

    def write(carry: tuple[State, Record], x: tuple[Array, Array, Array]) -> tuple[tuple[State, Record], None]:
        state, records = carry
        t, batch, gap = x
        state, now = step(setup, state, batch, gap, images, labels)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=t, axis=0)
        return (state, jax.tree.map(put, records, now)), None

    return jax.lax.scan(write, (state, records), (jnp.arange(len(batches)), batches, gaps))[0]
