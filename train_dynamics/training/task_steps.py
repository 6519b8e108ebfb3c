"""One training run of any task as pure functions: start, update, record."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from train_dynamics.gradients.cut import cut
from train_dynamics.gradients.evaluation import evaluate
from train_dynamics.gradients.measures import Share
from train_dynamics.gradients.parameters import in_float32, named
from train_dynamics.recording.contents import KINDS, Contents
from train_dynamics.recording.layers import TOGETHER
from train_dynamics.task.task import Task

Record = dict[str, Any]


class TaskState(NamedTuple):
    """Everything that training continues from.

    Attributes:
        parameters: The parameters.
        optimizer: State of the optimizer.
        variables: Everything else in the network that training changes.
        seed: The seed. All random draws of an update depend on it.
        updates: Number of updates so far.
    """

    parameters: Any
    optimizer: optax.OptState
    variables: Any
    seed: Int[Array, ""]
    updates: Int[Array, ""]


class TaskSetup(NamedTuple):
    """Everything that is the same for every seed and iteration.

    Attributes:
        task: What is trained.
        optimizer: The optimizer.
        contents: What is stored of each layer.
        classes: Whether the outputs are a classifier's logits.
        eval_batch_size: Examples to evaluate at a time. None evaluates all at once.
        sketch_size: Length of a sketch, in numbers.
    """

    task: Task
    optimizer: optax.GradientTransformation
    contents: Contents
    classes: bool
    eval_batch_size: int | None
    sketch_size: int

    def initial_state(self, seed: Int[Array, ""], example: Any) -> TaskState:
        """Draw the weights of a seed. They depend on the seed alone."""
        key = jax.random.key(seed)
        parameters = self.task.init(key)
        variables = self.task.variables(key)
        return TaskState(parameters, self.optimizer.init(parameters), variables, jnp.int32(seed), jnp.int32(0))

    def place(self, inputs: Any, labels: np.ndarray) -> Any:
        """Put the training set on the device, as examples `(input, label)`."""
        return jax.device_put((inputs, labels))

    def traced(self, inputs: Any, labels: Array) -> Any:
        """Return what `place` would, where only shapes matter."""
        return inputs, labels

    def updated(self, state: TaskState, batch: Int[Array, " b"], examples: Any) -> TaskState:
        """Make one optimizer step on the loss of the batch. In a short batch, -1 stands for no example.

        An empty place is filled with another example of the batch, with weight 0. So what a network computes over the
        batch, such as its mean, comes only from examples of that batch.
        """
        count = jnp.sum(batch >= 0)
        filled = batch[jnp.arange(len(batch)) % jnp.maximum(count, 1)]
        chosen = jax.tree.map(lambda leaf: leaf[filled], examples)
        weights = jnp.asarray(batch >= 0, jnp.float32)
        key = jax.random.fold_in(jax.random.key(state.seed), state.updates)

        def of_parameters(parameters: Any, chosen: Any) -> tuple[Any, Any]:
            with jax.default_matmul_precision("highest"):
                return self.task.mean_loss(parameters, state.variables, chosen, weights, key)

        def by_products(parameters: Any, chosen: Any) -> tuple[Any, Any]:
            found = cut(of_parameters, parameters, chosen)
            return jax.tree.unflatten(jax.tree.structure(parameters), found.gradients), found.outputs

        as_jax_does = jax.grad(of_parameters, has_aux=True)
        if "conv_general_dilated" in str(jax.make_jaxpr(of_parameters)(state.parameters, chosen)):
            # In a loop, XLA takes ten times as long on CPUs for the backward pass of convolutions as JAX writes it.
            both = {"cpu": by_products, "default": as_jax_does}
            gradient, variables = jax.lax.platform_dependent(state.parameters, chosen, **both)
        else:
            gradient, variables = as_jax_does(state.parameters, chosen)
        descent, optimizer = self.optimizer.update(gradient, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, descent)
        return TaskState(parameters, optimizer, variables, state.seed, state.updates + 1)

    def divided(self, examples: Any, index: Int[Array, " m"]) -> Any:
        """Return the examples that one device evaluates."""
        return jax.tree.map(lambda leaf: leaf[index], examples)

    def recorded(self, state: TaskState, examples: Any, share: Share | None = None) -> Record:
        """Record every example's gradient at the current weights.

        Args:
            state: State with the weights.
            examples: The examples, or those of them that this device evaluates.
            share: How these examples relate to all.

        Returns:
            A dict with `parameters` and `variables` by dotted names, `loss` [n], `outputs` [n, ...] if they are one
            array, of a classifier `prediction` [n], and what is kept of each layer, by kind.
        """
        layouts = {kept.layer.name: kept.layout for kept in self.contents.layers.values()}
        layouts.pop(TOGETHER, None)  # which comes with the measures of any layer
        loss = self.task.loss_with(state.variables)
        arguments = loss, state.parameters, examples, layouts, self.eval_batch_size, self.sketch_size
        found = evaluate(*arguments, share)
        record = {
            "parameters": by_dots(in_float32(state.parameters)),
            "variables": by_dots(state.variables) if jax.tree.leaves(state.variables) else {},
            "loss": jnp.asarray(found.loss, jnp.float32),
        }
        if self.contents.outputs:
            record["outputs"] = outputs = jnp.asarray(found.outputs, jnp.float32)
        if self.classes:
            record["prediction"] = jnp.argmax(outputs, -1).astype(np.min_scalar_type(outputs.shape[-1] - 1))
        for kept in self.contents.layers.values():
            for kind in KINDS[kept.layout][kept.of_inputs :]:
                record.setdefault(kind, {})[kept.key] = found.kept[f"{kind}.{kept.layer.name}"]
        return record


def by_dots(tree: Any) -> dict[str, Any]:
    """Name the leaves by their paths with dots, like the arrays of a recording."""
    return {name.replace("/", "."): leaf for name, leaf in named(tree).items()}
