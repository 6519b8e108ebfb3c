"""Losses, optimizers and learning rates by name, from Optax or from the user."""

import ast
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.imports import load_attribute
from train_dynamics.gradients.per_example import cross_entropy

OF_CLASSES: dict[str, Callable] = {
    "softmax_cross_entropy": cross_entropy,
    "multiclass_hinge_loss": optax.losses.multiclass_hinge_loss,
    "multiclass_perceptron_loss": optax.losses.multiclass_perceptron_loss,
    "multiclass_sparsemax_loss": optax.losses.multiclass_sparsemax_loss,
}
OF_ONE_HOT: dict[str, Callable] = {
    "poly_loss_cross_entropy": optax.losses.poly_loss_cross_entropy,
    "sigmoid_binary_cross_entropy": optax.losses.sigmoid_binary_cross_entropy,
    "sigmoid_focal_loss": optax.losses.sigmoid_focal_loss,
}
OF_TARGETS: dict[str, Callable] = {
    "squared_error": optax.losses.squared_error,
    "l2_loss": optax.losses.l2_loss,
    "huber_loss": optax.losses.huber_loss,
    "log_cosh": optax.losses.log_cosh,
}
DEFAULTS = {True: "softmax_cross_entropy", False: "squared_error"}


def output_loss(name: str, classes: bool) -> Callable[[Any, Any], ArrayLike]:
    """Find the loss of one example, from the network's output and the label.

    Losses for targets and for independent classes are averaged over the outputs.

    Args:
        name: An Optax loss, `module:function` or `file.py:function`. Empty means softmax cross-entropy for classes and
            squared error for targets.
        classes: Whether labels are classes rather than targets of a regression.

    Raises:
        InputError: If there is no such loss, or if it is for the other kind of labels.
    """
    name = name or DEFAULTS[classes]
    if ":" in name:
        return load_attribute("loss", name)
    for_classes, for_targets = {**OF_CLASSES, **OF_ONE_HOT}, OF_TARGETS
    if name not in (here := for_classes if classes else for_targets):
        there = "for targets of a regression, and the labels are classes" if classes else "for classes"
        what = there if name in for_classes or name in for_targets else "is not known"
        raise InputError.flag(
            "loss", name, f"{what}; choose one of {', '.join(here)}, or module:function of output and label"
        )
    if name in OF_CLASSES:
        return OF_CLASSES[name]
    if name in OF_ONE_HOT:
        return lambda output, label: OF_ONE_HOT[name](output, jax.nn.one_hot(label, output.shape[-1])).mean()
    return lambda output, target: jnp.mean(OF_TARGETS[name](output.reshape(target.shape), target))


def optimizer_of(config: StudyConfig) -> optax.GradientTransformation:
    """Build the optimizer that a configuration names.

    Raises:
        InputError: If there is no optimizer of that name, or if it does not take these arguments.
    """
    rate = schedule_of(config.learning_rate)
    if config.optimizer == "sgd":
        return optax.sgd(rate, config.momentum or None, config.nesterov)
    if ":" in config.optimizer:
        make, arguments = load_attribute("optimizer", config.optimizer), {}
    else:
        make, arguments = _named(config.optimizer, "optimizer")
    return _made(
        functools.partial(make, rate, **arguments), "optimizer", config.optimizer, optax.GradientTransformation
    )


def schedule_of(rate: float | str) -> float | optax.Schedule:
    """Return a learning rate, or the Optax schedule that is named with its arguments."""
    if not isinstance(rate, str):
        return rate
    make, arguments = _named(rate, "learning_rate")
    return _made(functools.partial(make, **arguments), "learning_rate", rate, Callable)


def _made(make: Callable[[], Any], flag: str, text: str, kind: Any) -> Any:
    try:
        found = make()
    except Exception as error:
        raise InputError.flag(flag, text, f"cannot be made: {str(error).strip().splitlines()[0][:200]}") from error
    if (kind is Callable and not callable(found)) or (kind is not Callable and not hasattr(found, "update")):
        right = "a schedule, a function of the update" if kind is Callable else "an optimizer like those of Optax"
        raise InputError.flag(flag, text, f"must make {right}, but makes a {type(found).__name__}")
    return found


def _named(text: str, flag: str) -> tuple[Callable, dict[str, Any]]:
    """Parse `name(argument=value, ...)`. Values must be literals; nothing is executed."""
    example = (
        "adamw(weight_decay=0.01)" if flag == "optimizer" else "cosine_decay_schedule(init_value=0.1, decay_steps=99)"
    )
    right = f"must be a name of Optax's, with arguments by name where there are some, for example {example}"
    try:
        call = ast.parse(text, mode="eval").body
        named = call.func if isinstance(call, ast.Call) else call
        arguments = {word.arg: ast.literal_eval(word.value) for word in getattr(call, "keywords", ())}
        if not isinstance(named, ast.Name) or getattr(call, "args", ()) or None in arguments:
            raise ValueError(right)
    except (SyntaxError, ValueError) as error:
        raise InputError.flag(flag, text, right) from error
    found = getattr(optax, named.id, None)
    if not callable(found):
        raise InputError.flag(flag, text, f"Optax has no {named.id}; {right}")
    return found, arguments
