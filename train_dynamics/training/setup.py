"""Builds what is trained, and what is recorded of it, from a configuration and its examples."""

import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.imports import load_attribute
from train_dynamics.data.scaling import check_flat, network_inputs
from train_dynamics.gradients.evaluation import find_layers
from train_dynamics.gradients.independence import check_independent
from train_dynamics.recording.contents import Contents, KeptLayer, mlp_contents
from train_dynamics.recording.layers import TOGETHER, Layer, choose
from train_dynamics.task.flax import SWITCHES, task_of_linen, task_of_model
from train_dynamics.task.mlp import MLP
from train_dynamics.task.options import DEFAULTS, optimizer_of, output_loss
from train_dynamics.task.task import Task
from train_dynamics.training import steps
from train_dynamics.training.task_steps import TaskSetup, by_dots
from train_dynamics.training.weights import fitted, read_weights


class Prepared(NamedTuple):
    """What a run needs to know before it starts.

    Attributes:
        setup: The training and recording steps.
        contents: What each record holds.
        inputs: The inputs of all examples, as the network sees them.
        start: Parameters that all seeds start from. None if each seed draws its own.
    """

    setup: steps.Setup | TaskSetup
    contents: Contents
    inputs: Any
    start: Any = None


def prepare(config: StudyConfig, dataset: Dataset, task: Task | None = None) -> Prepared:
    """Build what a configuration names, and read the initial weights.

    Arguments and errors are those of `_built`.

    Raises:
        InputError: If the weights cannot be read, or belong to another network.
    """
    prepared = _built(config, dataset, task)
    if not config.initial:
        return prepared
    example = jax.tree.map(lambda leaf: leaf[0], (prepared.inputs, np.asarray(dataset.labels)))
    like = jax.eval_shape(lambda *of: prepared.setup.initial_state(*of).parameters, jnp.int32(0), example)
    path = Path(config.initial)
    return prepared._replace(start=fitted(read_weights(path, "initial"), like, path, "initial"))


def _built(config: StudyConfig, dataset: Dataset, task: Task | None) -> Prepared:
    """Build what a configuration names.

    The default network, with the default loss and only kernels recorded, has steps of its own, which use what is known
    of that network and take a fraction of the time.

    Args:
        config: The configuration.
        dataset: The examples.
        task: What to train, if not what `config.model` names.

    Raises:
        InputError: If the model, loss, optimizer, a layer or a layout does not exist, or if they do not go together.
    """
    if task is None and config.model == "mlp":
        check_flat(dataset, config)
    inputs, classes = network_inputs(dataset, config), bool(dataset.class_names)
    if task is None and _is_default(config, classes):
        widths = [inputs[0].size, *config.hidden_sizes, dataset.num_classes]
        return Prepared(steps.set_up(config, dataset.num_classes), mlp_contents(config, widths), inputs)
    example = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (inputs, np.asarray(dataset.labels))
    )
    if task is None:
        task = task_of(config, dataset)
    optimizer = optimizer_of(config)
    return Prepared(*set_up_task(config, task, optimizer, example, dataset.num_classes if classes else None), inputs)


def _is_default(config: StudyConfig, classes: bool) -> bool:
    whole_kernels = set(config.layers) <= set(config.layer_names)
    default_loss = config.loss in ("", DEFAULTS[True])
    layouts = config.gradient_layout in ("factored", "dense")
    return classes and config.model == "mlp" and default_loss and whole_kernels and layouts


def task_of(config: StudyConfig, dataset: Dataset) -> Task:
    """Make the task that a configuration names, for examples like these.

    Raises:
        InputError: If the model or the loss does not exist.
    """
    classes = bool(dataset.class_names)
    example = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
        network_inputs(dataset.take(np.arange(1)), config),
    )
    of_outputs = output_loss(config.loss, classes)
    if config.model == "mlp":
        num_outputs = dataset.num_classes if classes else int(np.prod(dataset.labels.shape[1:]))
        return task_of_linen(MLP(config.hidden_sizes, num_outputs), example, of_outputs)
    return task_of_model(load_attribute("model", config.model), example, of_outputs, config.model)


def set_up_task(
    config: StudyConfig, task: Task, optimizer: Any, example: Any, num_classes: int | None
) -> tuple[TaskSetup, Contents]:
    """Find out what can be recorded of a task.

    Args:
        config: Which layers to record, and how.
        task: The task.
        optimizer: The optimizer.
        example: Shape and type of one example.
        num_classes: Number of classes that the outputs stand for. None if they are not classes.

    Raises:
        InputError: If the task does not run on such an example, or if a layer does not exist.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        parameters, variables = jax.eval_shape(task.init, key), jax.eval_shape(task.variables, key)

        def loss(params: Any, example: Any) -> tuple[Any, Any]:  # whose variables are traced as well
            return task.loss_with(example[1])(params, example[0])

        found = find_layers(loss, parameters, (example, variables))
        outputs = jax.eval_shape(loss, parameters, (example, variables))[1]
    except InputError as error:
        name = "loss" if "scalar loss" in str(error) and config.loss else "model"
        raise InputError.flag(name, getattr(config, name), str(error)) from error
    except Exception as error:  # of the user's own code
        inputs = example[0] if isinstance(example, tuple) else example
        raise InputError.flag("model", config.model, _why(error, inputs)) from error
    shape = getattr(outputs, "shape", None)
    if num_classes is not None and shape != (num_classes,):
        right = f"one number for each of {num_classes} classes"
        raise InputError.flag("model", config.model, f"must output {right}, but outputs {_shapes(outputs)}")
    if config.model == "mlp":
        found = {name.removesuffix("/kernel"): layer for name, layer in found.items()}
    layers = {
        name: _kept(name, found[name], layout, config.model == "mlp" and name == config.layer_names[0])
        for name, layout in _layouts(config, found).items()
    }
    if any(kept.layout == "measures" for kept in layers.values()):
        total = sum(int(np.prod(layer.shape)) for layer in found.values())
        layers[TOGETHER] = KeptLayer(TOGETHER, Layer(TOGETHER, (total,)), "measures")
    contents = Contents(
        layers,
        tuple(f"{name}.{part}" for name in config.layer_names for part in ("kernel", "bias"))
        if config.model == "mlp"
        else tuple(by_dots(parameters)),
        classes=num_classes is not None,
        state=tuple(by_dots(variables)) if jax.tree.leaves(variables) else (),
        outputs=shape is not None and 0 not in shape,
    )
    setup = TaskSetup(task, optimizer, contents, num_classes is not None, config.eval_batch_size, config.sketch_size)
    return setup, contents


def _kept(name: str, layer: Layer, layout: str, of_inputs: bool) -> KeptLayer:
    """Return what is really stored of a layer: one without smaller factors is stored dense."""
    layout = "dense" if layout == "factored" and layer.factors is None else layout
    return KeptLayer(name, layer, layout, of_inputs=of_inputs and layout == "factored")


def _layouts(config: StudyConfig, found: dict[str, Layer]) -> dict[str, str]:
    """Choose layers, and how to store each. The first pattern of `--gradient_layout` that matches decides."""
    try:
        names = choose(found, config.layers)
    except InputError as error:
        raise InputError.flag("layers", config.layers, str(error)) from error
    chosen = {}
    rules = config.layout_rules
    for name in names:
        layout = next((layout for pattern, layout in rules if fnmatch.fnmatch(name, pattern)), None)
        chosen[name] = layout or "factored"
    unused = [pattern for pattern, _ in rules if pattern != "*" and not fnmatch.filter(names, pattern)]
    if unused:
        raise InputError.flag(
            "gradient_layout",
            config.gradient_layout,
            f"no recorded layer matches {unused[0]}; there are {', '.join(names)}",
        )
    return chosen


def _why(error: Exception, inputs: Any) -> str:
    """Explain in one line why a network does not run."""
    told = next(iter(str(error).strip().splitlines()), "").partition(" (https://")[0][:200]
    kind = type(error).__name__
    evaluated = f"where it is evaluated and not trained ({told}); let its __call__ take one of {', '.join(SWITCHES)}"
    if kind == "InvalidRngError":
        return f"needs random numbers {evaluated}"
    if kind == "ModifyScopeVariableError":
        return f"changes its statistics {evaluated}"
    return f"does not run on inputs of shape {_shapes(inputs)}: {kind}: {told}"


def check_examples_apart(config: StudyConfig, prepared: Prepared, labels: np.ndarray) -> None:
    """Check that a network that takes a whole batch gives each example the loss it has alone.

    Raises:
        InputError: If it does not; then no example has a gradient of its own.
    """
    setup = prepared.setup
    if isinstance(setup, steps.Setup) or setup.task.losses is None:
        return
    key = jax.random.key(config.first_seed)
    parameters, variables = jax.jit(setup.task.init)(key), jax.jit(setup.task.variables)(key)
    few = jax.tree.map(lambda leaf: jnp.asarray(leaf[:8]), (prepared.inputs, labels))
    try:
        check_independent(lambda params, batch: setup.task.losses(params, variables, batch), parameters, few)
    except InputError as error:
        raise InputError.flag("model", config.model, str(error)) from error


def _shapes(tree: Any) -> str:
    return ", ".join(str(list(leaf.shape)) for leaf in jax.tree.leaves(tree)) or "nothing"
