"""Makes tasks from Flax modules, Linen or NNX.

Records are computed with fixed statistics and without dropout; updates use both as Flax does. Through the statistics of
a batch, single examples have no gradients, because each example's loss depends on all others.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from train_dynamics.config import InputError
from train_dynamics.task.task import Task, weighted_mean

OutputLoss = Callable[[Any, Any], Any]
SWITCHES = {"train": False, "training": False, "is_training": False, "deterministic": True, "use_running_average": True}
"""Arguments by which Linen modules are told whether they are trained, with their values where they are not."""


def task_of_linen(model: nn.Module, inputs: Any, output_loss: OutputLoss) -> Task:
    """Make a task from a Linen module that maps a batch of inputs to a batch of outputs.

    Args:
        model: The module. Its `__call__` takes the inputs, and may take one of `SWITCHES`.
        inputs: One example's input, or its shape, without a batch axis.
        output_loss: The loss of one example, from the network's output and its label.
    """
    parameters = inspect.signature(type(model).__call__).parameters
    switches = {name: value for name, value in SWITCHES.items() if name in parameters}
    trained = {name: not value for name, value in switches.items()}
    shape = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), inputs)

    def begin(key: Any) -> tuple[Any, Any]:
        variables = dict(model.init({"params": key, "dropout": key}, _batch_of_one(shape), **switches))
        return variables.pop("params", {}), variables

    def loss(params: Any, example: Any, variables: Any = None) -> tuple[Any, Any]:
        value, label = example
        outputs = model.apply({"params": params, **(variables or {})}, _batch_of_one(value), **switches)[0]
        return output_loss(outputs, label), outputs

    def batch_loss(params: Any, variables: Any, batch: Any, weights: Any, key: Any) -> tuple[Any, Any]:
        values, labels = batch
        outputs, changed = model.apply(
            {"params": params, **variables}, values, **trained, rngs={"dropout": key}, mutable=list(variables)
        )
        return weighted_mean(jax.vmap(output_loss)(outputs, labels), weights), {**variables, **changed}

    def losses(params: Any, variables: Any, batch: Any) -> Any:
        values, labels = batch
        return jax.vmap(output_loss)(model.apply({"params": params, **variables}, values, **switches), labels)

    return Task(lambda key: begin(key)[0], loss, lambda key: begin(key)[1], batch_loss, losses)


def task_of_nnx(make: Callable[[nnx.Rngs], nnx.Module], output_loss: OutputLoss) -> Task:
    """Make a task from a function that makes an NNX module, which maps a batch of inputs to a batch of outputs.

    Args:
        make: Function that takes `rngs` and returns the module.
        output_loss: The loss of one example, from the network's output and its label.
    """

    def begin(key: Any) -> tuple[Any, Any]:
        model = make(nnx.Rngs(params=key, dropout=key))
        _, params, rest = nnx.split(model, nnx.Param, ...)
        return nnx.to_pure_dict(params), _statistics(rest)

    def run(params: Any, variables: Any, values: Any, key: Any, trained: bool) -> tuple[Any, Any]:
        model = make(nnx.Rngs(params=key, dropout=key))  # whose drawing of weights nobody uses, and XLA leaves out
        (model.train if trained else model.eval)()
        nnx.update(model, _states(model, nnx.Param, params), _states(model, nnx.BatchStat, variables))
        outputs = model(values)
        return outputs, _statistics(nnx.state(model, nnx.BatchStat))

    def loss(params: Any, example: Any, variables: Any = None) -> tuple[Any, Any]:
        value, label = example
        outputs = run(params, variables or {}, _batch_of_one(value), jax.random.key(0), False)[0][0]
        return output_loss(outputs, label), outputs

    def batch_loss(params: Any, variables: Any, batch: Any, weights: Any, key: Any) -> tuple[Any, Any]:
        values, labels = batch
        outputs, variables = run(params, variables, values, key, True)
        return weighted_mean(jax.vmap(output_loss)(outputs, labels), weights), variables

    def losses(params: Any, variables: Any, batch: Any) -> Any:
        values, labels = batch
        return jax.vmap(output_loss)(run(params, variables, values, jax.random.key(0), False)[0], labels)

    return Task(lambda key: begin(key)[0], loss, lambda key: begin(key)[1], batch_loss, losses)


def _states(model: nnx.Module, kind: Any, values: Any) -> Any:
    state = nnx.state(model, kind)
    nnx.replace_by_pure_dict(state, values)
    return state


def _statistics(state: Any) -> Any:
    return nnx.to_pure_dict(nnx.filter_state(state, nnx.BatchStat))


def _batch_of_one(value: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], value)


def task_of_model(found: Any, inputs: Any, output_loss: OutputLoss, flag: str) -> Task:
    """Make a task from what `--model` names.

    Args:
        found: A `Task`; a Linen module; a function without arguments that makes either; or a function of `rngs` that
            makes an NNX module.
        inputs: One example's input, or its shape.
        output_loss: The loss of one example, from the network's output and its label.
        flag: The value of `--model`, for error messages.

    Raises:
        InputError: If it is none of these.
    """
    if callable(found) and not isinstance(found, nn.Module):
        if "rngs" in inspect.signature(found.__init__ if isinstance(found, type) else found).parameters:
            return task_of_nnx(lambda rngs: found(rngs=rngs), output_loss)
        if not isinstance(found, Task):
            try:
                found = found()
            except TypeError as error:
                raise InputError.flag("model", flag, f"cannot be called without arguments: {error}") from error
    if isinstance(found, nn.Module):
        return task_of_linen(found, inputs, output_loss)
    if isinstance(found, Task):
        return found
    raise InputError.flag(
        "model",
        flag,
        f"is of type {type(found).__name__}, but must be a Linen module, a Task, or a function of rngs that makes an "
        "NNX module",
    )
