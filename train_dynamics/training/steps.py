"""One training run as pure functions: start, update, record, and a block of iterations in one scan."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from train_dynamics.config import StudyConfig
from train_dynamics.data.batches import batch_indices as batch_indices  # part of training; the analysis needs it too
from train_dynamics.gradients import per_example
from train_dynamics.gradients.measures import Share
from train_dynamics.gradients.per_example import Parameters
from train_dynamics.task.mlp import MLP
from train_dynamics.task.options import optimizer_of

Record = dict[str, Any]
"""What is written down at one iteration, by name: see `record`."""


class State(NamedTuple):
    """Everything that training continues from."""

    parameters: Parameters
    optimizer: optax.OptState


class Examples(NamedTuple):
    """The training set on a device; see `place_examples`.

    Attributes:
        images: Images, as the network sees them.
        labels: Class of each.
        varying: The pixels that differ between images. If all do, the images themselves, without a copy.
        places: Where these pixels are in a flat image.
        common: A flat image with the pixels that are the same in all images, and zero elsewhere.
    """

    images: Float[Array, "n ..."]
    labels: Int[Array, " n"]
    varying: Float[Array, "n ..."]
    places: Int[Array, " k"]
    common: Float[Array, " p"]


class Setup(NamedTuple):
    """Everything that is the same for every seed and iteration.

    Attributes:
        model: The network.
        optimizer: The optimizer.
        layers: Layers whose gradients are recorded.
        output_layer: The layer whose output is the logits. Its cotangent is always recorded, because the class
            probabilities follow from it.
        input_layer: The dense layer whose activation is the flat images. It is stored only once.
        dense: Whether gradients are stored as [in, out] rather than as factors.
        eval_batch_size: Examples to evaluate at a time. None evaluates all at once.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    layers: tuple[str, ...]
    output_layer: str
    input_layer: str
    dense: bool
    eval_batch_size: int | None = None

    def initial_state(self, seed: Int[Array, ""], example: Any) -> State:
        """Draw the weights of a seed."""
        return initial_state(self, seed, example[0])

    def place(self, inputs: Float[np.ndarray, "n ..."], labels: Int[np.ndarray, " n"]) -> Examples:
        """Put the training set on the device."""
        return place_examples(self, inputs, labels)

    def traced(self, inputs: Float[Array, "n ..."], labels: Int[Array, " n"]) -> Examples:
        """Return what `place` would, where only shapes matter."""
        size = inputs[0].size
        return Examples(inputs, labels, inputs, jnp.arange(size), jnp.zeros(size))

    def updated(self, state: State, batch: Int[Array, " b"], examples: Examples) -> State:
        """Make one optimizer step."""
        return update(self, state, batch, examples.images, examples.labels)

    def divided(self, examples: Examples, index: Int[Array, " m"]) -> Examples:
        """Return the examples that one device evaluates."""
        images, labels, varying = (leaf[index] for leaf in examples[:3])
        return examples._replace(images=images, labels=labels, varying=varying)

    def recorded(self, state: State, examples: Examples, share: Share | None = None) -> Record:
        """Record every example's gradient at the current weights. The result does not depend on the other examples."""
        return record(self, state.parameters, examples)


def set_up(config: StudyConfig, num_classes: int) -> Setup:
    """Build the network and the optimizer that a configuration names."""
    return Setup(
        model=MLP(config.hidden_sizes, num_classes),
        optimizer=optimizer_of(config),
        layers=config.layers,
        output_layer=config.layer_names[-1],
        input_layer=config.layer_names[0],
        dense=config.gradient_layout == "dense",
        eval_batch_size=config.eval_batch_size,
    )


def initial_state(setup: Setup, seed: Int[Array, ""], image: Float[Array, "..."]) -> State:
    """Draw the weights of a seed. They depend on the seed alone."""
    parameters = setup.model.init(jax.random.key(seed), image[None])["params"]
    return State(parameters, setup.optimizer.init(parameters))


def place_examples(setup: Setup, images: Float[np.ndarray, "n ..."], labels: Int[np.ndarray, " n"]) -> Examples:
    """Put the training set on the device, and separate pixels that vary from those that do not.

    Updates use whole images, and records use the pixels that vary. So if some pixels are common, most pixels are stored
    twice.

    Example:
        >>> place_examples(setup, np.array([[0.0, 1.0], [0.0, 2.0]]), np.array([3, 4])).places
        Array([1], dtype=int32)
    """
    flat = images.reshape(len(images), -1)
    varies = flat.min(axis=0) != flat.max(axis=0)
    if not varies.any() or (setup.dense and setup.input_layer in setup.layers):
        varies[:] = True  # a network needs some input, and this gradient has a row for every pixel
    placed = jax.device_put(images)
    varying = placed if varies.all() else jax.device_put(flat[:, varies])
    places, common = np.flatnonzero(varies).astype(np.int32), np.where(varies, np.float32(0), flat[0])
    return Examples(placed, *jax.device_put((labels, varying, places, common)))


def update(
    setup: Setup, state: State, batch: Int[Array, " b"], images: Float[Array, "n ..."], labels: Int[Array, " n"]
) -> State:
    """Make one optimizer step on the mean loss of the batch."""

    def mean_loss(transposed: Parameters) -> Float[Array, ""]:
        logits = per_example.forward(setup.model, _transposed(transposed), images[batch])
        losses = jax.vmap(per_example.cross_entropy)(logits, labels[batch])
        return jnp.sum(jnp.where(batch >= 0, losses, 0)) / jnp.sum(batch >= 0)

    gradient = _transposed(jax.grad(mean_loss)(_transposed(state.parameters)))
    descent, optimizer = setup.optimizer.update(gradient, state.optimizer, state.parameters)
    return State(optax.apply_updates(state.parameters, descent), optimizer)


def _transposed(parameters: Parameters) -> Parameters:
    """Transpose the kernels, behind a barrier that keeps XLA from undoing it.

    On CPUs, the gradient of a kernel with many inputs and few outputs takes a quarter of the time as [out, in].
    """
    barrier = jax.lax.optimization_barrier
    return {name: {**layer, "kernel": barrier(layer["kernel"]).T} for name, layer in parameters.items()}


def record(setup: Setup, parameters: Parameters, examples: Examples) -> Record:
    """Record every example's gradient at the current weights.

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
    arguments = setup.model, _with_common(setup, parameters, examples), examples.varying, examples.labels
    found = per_example.evaluate(*arguments, layers, size)
    return {
        "parameters": parameters,
        "loss": found.loss,
        "prediction": found.prediction,
        "cotangent": found.cotangent,
        "activation": {name: found.activation[name] for name in factored if name != setup.input_layer},
        "gradient": per_example.kernel_gradients(*arguments, setup.layers, size) if setup.dense else {},
    }


def _with_common(setup: Setup, parameters: Parameters, examples: Examples) -> Parameters:
    """Add the pixels that are the same in all images to the bias of the first layer.

    The network then needs only the other pixels. In the default study, one pixel in six is black in all images.
    """
    first = parameters[setup.input_layer]
    bias = first["bias"] + jnp.matmul(examples.common, first["kernel"], precision="highest")
    return {**parameters, setup.input_layer: {"kernel": first["kernel"][examples.places], "bias": bias}}


def step(
    setup: Any,
    state: Any,
    batches: Int[Array, "gap b"],
    gap: Int[Array, ""],
    examples: Any,
    share: tuple[Any, Share] | None = None,
) -> tuple[Any, Record]:
    """Record the state, then update it `gap` times. The two do not use each other's results.

    `setup` is a `Setup`, or a `TaskSetup` for any task. With a share, only its examples are recorded.
    """

    def update_once(k: Int[Array, ""] | int, state: Any) -> Any:
        return setup.updated(state, batches[k], examples)

    after = update_once(0, state)
    if len(batches) > 1:  # a loop that only ever ran once would still cost a tenth
        after = jax.lax.fori_loop(1, gap, update_once, after)
    return after, setup.recorded(state, *(share or (examples,)))


def run_block(
    setup: Any,
    state: Any,
    records: Record,
    batches: Int[Array, "t gap b"],
    gaps: Int[Array, " t"],
    examples: Any,
    share: tuple[Any, Share] | None = None,
) -> tuple[Any, Record]:
    """For each row `t`: record into `records[t]`, then make `gaps[t]` updates with the first of `batches[t]`.

    The records are carried through the scan rather than stacked by it, so that a caller can pass in the memory of an
    earlier block. Allocating memory would cost a quarter of the time of a block.

    Returns:
        The state after the last update, and the records, with a leading axis `t`.
    """

    def write(carry: tuple[Any, Record], x: tuple[Array, Array, Array]) -> tuple[tuple[Any, Record], None]:
        state, records = carry
        t, batch, gap = x
        state, now = step(setup, state, batch, gap, examples, share)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=t, axis=0)
        return (state, jax.tree.map(put, records, now)), None

    return jax.lax.scan(write, (state, records), (jnp.arange(len(batches)), batches, gaps))[0]
