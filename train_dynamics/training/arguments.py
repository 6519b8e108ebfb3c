"""Checks the arguments of a recorder, and makes errors name arguments instead of flags."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np

from train_dynamics.config import LAYOUTS, InputError, StudyConfig
from train_dynamics.data.arrays import Dataset

FLAGS = {"record_every": "every", "first_seed": "seed", "seeds": "seed", "recording": "path", "model": "loss"}
KINDS = {
    "path": (str | os.PathLike, "the directory of the recording"),
    "loss": (Callable, "a function of params and one example"),
    "class_names": (Iterable | None, "the name of each class"),
    "layers": (str | Sequence, "a name, a pattern as in 'conv*/kernel', or a list of them"),
    "gradient_layout": (str, f"{', '.join(LAYOUTS)}, or by layer as in 'conv*:measures,head/*:factored'"),
    "when": (Callable | None, "a function that takes an iteration and returns whether to record it"),
    "resume": (bool, "True or False"),
    "learning_rate": (Real | None, "a number"),
    "dataset": (Dataset | None, "a train_dynamics.Dataset"),
    "config": (StudyConfig | None, "a train_dynamics.StudyConfig"),
    "log": (Callable, "a function that takes a line of text"),
}


def check_kinds(given: dict[str, Any]) -> None:
    """Check that arguments have the right type.

    Args:
        given: Arguments by name. Those that are not in `KINDS` are not checked.

    Raises:
        InputError: If one has the wrong type.

    Example:
        >>> check_kinds({"when": 3})
        Traceback (most recent call last):
        InputError: when=3: must be a function that takes an iteration and returns whether to record it
    """
    for name, (kind, right) in KINDS.items():
        if name in given and not isinstance(given[name], kind):
            raise InputError(f"{name}={_short(given[name])}: must be {right}")


def layers_of(layers: Any) -> tuple[str, ...]:
    """Return the layers as a tuple, also if only one is given.

    Raises:
        InputError: If there are none, or if they are not names.
    """
    found = (layers,) if isinstance(layers, str) else tuple(layers)
    if not found or not all(isinstance(name, str) and name for name in found):
        raise InputError(f"layers={_short(layers)}: must be {KINDS['layers'][1]}")
    # `fc2` alone is the default of a configuration, where it means all layers of any network but the default one.
    return ("fc[2]",) if found == ("fc2",) else found


def seeds_of(seed: Any) -> list[int]:
    """Return the seeds as a list.

    Raises:
        InputError: If there are none, or if two are the same.
    """
    found = np.atleast_1d(seed)
    if found.dtype.kind not in "iu" or found.ndim != 1 or not 0 < len(found) == len(set(found.tolist())):
        raise InputError(f"seed={_short(seed)}: must be a whole number, or several different ones")
    return found.tolist()


@contextlib.contextmanager
def naming_arguments(wanted: bool = True) -> Iterator[None]:
    """Make errors name arguments where the code below names the flags of commands."""
    try:
        yield
    except InputError as error:
        if wanted:
            error.args = (re.sub(r"(?<![\w/.-])--(\w+)", lambda flag: FLAGS.get(flag[1], flag[1]), str(error)),)
        raise


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:60]
