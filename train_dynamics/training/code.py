"""Stores the user's code that a recording was made with, word for word, so that it can be run again."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.imports import load_attribute, names_code
from train_dynamics.task.task import Task

NAMED = ("dataset", "model", "loss", "optimizer")


def code_of(
    config: StudyConfig, task: Task | None = None, fields: Collection[str] = NAMED
) -> dict[str, dict[str, str]]:
    """List the user's code that a configuration names, and that of a task made in Python.

    Args:
        config: The configuration.
        task: The task, if it was made in Python. Data, model and loss are then ignored.
        fields: Which fields of the configuration to look at.

    Returns:
        For each field of the configuration: the code's import path, its source text, and the SHA-256 of the text. The
        text is empty for code typed into an interpreter.
    """
    found = {}
    for name in fields if task is None else {"optimizer"}.intersection(fields):
        spec = getattr(config, name)
        if names_code(spec):
            found[name] = _described(spec, load_attribute(name, spec))
    if task is not None:
        # Its functions alone: the rest of a script, as what it plots afterwards, may change between two runs.
        functions = filter(None, (task.init, task.loss, task.variables, task.batch_loss))
        found["task"] = _sealed(config.model, "\n".join(map(_source, functions)))
    return found


def code_of_loss(loss: Callable) -> dict[str, dict[str, str]]:
    """Describe the loss function of a user's loop, the only code of the loop that a recording depends on."""
    inner = loss.func if isinstance(loss, functools.partial) else loss
    return {"loss": _sealed(name_of(loss), _source(inner))}


def name_of(loss: Callable) -> str:
    """Name a function by its module.

    Example:
        >>> name_of(name_of)
        'train_dynamics.training.code:name_of'
    """
    inner = loss.func if isinstance(loss, functools.partial) else loss
    return f"{getattr(inner, '__module__', '')}:{getattr(inner, '__qualname__', type(inner).__name__)}"


def _described(spec: str, what: Callable | Any) -> dict[str, str]:
    where = what if inspect.isroutine(what) or inspect.isclass(what) else type(what)
    return _sealed(spec, _source(inspect.getmodule(where) or where))


def _source(what: Any) -> str:
    try:
        return inspect.getsource(what)
    except (OSError, TypeError):
        return ""


def _sealed(spec: str, text: str) -> dict[str, str]:
    return {"import": spec, "source": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def check_code(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]], path: Any) -> None:
    """Check that a recording is continued with the code it was begun with.

    Raises:
        InputError: If some of it has changed.
    """
    for name, code in before.items():
        if code["sha256"] != now.get(name, {}).get("sha256"):
            of = f"--{name}" if names_code(code["import"]) and name != "task" else f"the {name}"
            raise InputError.flag(
                "recording",
                path,
                f"was begun with other code of {of}: {code['import']} has changed; choose another directory",
            )
