"""A recording from what is left of a run: its checkpoints."""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.scaling import network_inputs
from train_dynamics.recording.reader import Recording
from train_dynamics.training.recorder import Recorder
from train_dynamics.training.setup import task_of
from train_dynamics.training.weights import fitted, nested, read_weights

LAST_NUMBER = r"(\d+)(?!.*\d)"


def record_checkpoints(
    loss: Callable[..., tuple[Any, Any]],
    examples: Any,
    checkpoints: str | os.PathLike | Iterable[Any],
    path: str | os.PathLike,
    *,
    iteration_pattern: str = LAST_NUMBER,
    like: Any = None,
    **options: Any,
) -> Recording:
    """Record what every example asked for at each checkpoint of a run.

    Args:
        loss: As of `Recorder`.
        examples: As of `Recorder`.
        checkpoints: Files or directories, as `runs/3/step_*` or a list: of Orbax, `.npz`, `.safetensors` or Flax's
            `.msgpack`. Or pairs of an iteration and the parameters then, of any loader.
        path: Directory of the recording.
        iteration_pattern: A regular expression that finds the iteration in a name, in its group; the last number if not
            given.
        like: Parameters, or their shapes, as the loss takes them; nested dicts as the checkpoint has them if not given.
        options: Options of `Recorder`.

    Returns:
        The recording.

    Raises:
        InputError: If a checkpoint cannot be read, or is of another network.

    Example:
        >>> record_checkpoints(loss, (images, labels), "runs/3/step_*", "recordings/run3").iterations
        array([   0,  100,  200])
    """
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = find_checkpoints(os.fspath(checkpoints), iteration_pattern)
    found = list(checkpoints)
    if found and not isinstance(found[0], tuple):
        found = numbered(map(Path, found), iteration_pattern)
    with Recorder(path, loss, examples, **options) as recorder:
        for t, checkpoint in found:
            params = checkpoint
            if isinstance(checkpoint, str | os.PathLike):
                weights = read_weights(Path(checkpoint), "checkpoints")
                params = nested(weights) if like is None else fitted(weights, like, Path(checkpoint), "checkpoints")
                params = jax.tree.map(jnp.asarray, params)
            recorder.record(t, params)
    return Recording(path)


def record_task(
    config: StudyConfig,
    dataset: Dataset,
    checkpoints: Sequence[tuple[int, Path]],
    path: str | os.PathLike,
    log: Callable[[str], None] = print,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Record the network that a configuration names, at each checkpoint.

    Args:
        config: Model, loss, data and what is recorded.
        dataset: The examples.
        checkpoints: What `find_checkpoints` found.
        path: Directory of the recording.
        log: Takes the lines to show the user.
        progress: Called after each checkpoint.

    Raises:
        InputError: If a checkpoint cannot be read, or is of another network.
    """
    task, inputs = task_of(config, dataset), network_inputs(dataset, config)
    like, variables = (jax.eval_shape(of, jax.random.key(0)) for of in (task.init, task.variables))
    options = {"config": config, "dataset": dataset, "seed": config.first_seed, "log": log}
    with Recorder(path, task.loss, (inputs, dataset.labels), **options) as recorder:
        for t, checkpoint in checkpoints:
            weights = read_weights(checkpoint, "checkpoints")
            params = fitted(weights, like, checkpoint, "checkpoints")
            rest = fitted(weights, variables, checkpoint, "checkpoints") if jax.tree.leaves(variables) else None
            recorder.record(t, *jax.tree.map(jnp.asarray, (params, rest)))
            progress()


def find_checkpoints(pattern: str, iteration_pattern: str = LAST_NUMBER) -> list[tuple[int, Path]]:
    """Find checkpoints by a pattern with wildcards, with the iteration of each, in their order.

    Raises:
        InputError: If there are none, or a name does not tell the iteration.
    """
    found: list[Path] = []
    for part in pattern.split(","):
        if not (matches := sorted(glob.glob(os.path.expanduser(part)))):
            raise InputError.flag("checkpoints", part, "nothing is there; name files or directories, as runs/3/step_*")
        found += map(Path, matches)
    return numbered(found, iteration_pattern)


def numbered(paths: Iterable[Path], iteration_pattern: str) -> list[tuple[int, Path]]:
    r"""Tell the iteration of each checkpoint by its name, and put them in order.

    Raises:
        InputError: If a name does not tell it, or two tell the same.

    Example:
        >>> numbered([Path("runs/3/step_20.npz"), Path("runs/3/step_5.npz")], LAST_NUMBER)
        [(5, PosixPath('runs/3/step_5.npz')), (20, PosixPath('runs/3/step_20.npz'))]
    """
    try:
        pattern = re.compile(iteration_pattern)
    except re.error as error:
        raise InputError.flag("iteration_pattern", iteration_pattern, f"is no regular expression: {error}") from error
    if pattern.groups != 1:
        raise InputError.flag("iteration_pattern", iteration_pattern, "must have one group, as in step_(\\d+)")
    found = sorted(_numbers(paths, pattern))
    for (t, one), (following, other) in itertools.pairwise(found):
        if t == following:
            raise InputError.flag(
                "checkpoints", one, f"is of iteration {t}, and so is {other}; see --iteration_pattern"
            )
    return found


def _numbers(paths: Iterable[Path], pattern: re.Pattern) -> Iterator[tuple[int, Path]]:
    for path in paths:
        told = pattern.search(path.stem if path.is_file() else path.name)
        if told is None or not (told.group(1) or "").isdigit():
            raise InputError.flag(
                "checkpoints", path, f"its name has no iteration that --iteration_pattern={pattern.pattern} finds"
            )
        yield int(told.group(1)), path
