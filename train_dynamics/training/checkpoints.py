"""Makes a recording from the checkpoints of a finished run."""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.scaling import network_inputs
from train_dynamics.recording.reader import Recording
from train_dynamics.training.arguments import naming_arguments
from train_dynamics.training.models import check_arrays, difference, split
from train_dynamics.training.recorder import Recorder
from train_dynamics.training.setup import task_of
from train_dynamics.training.weights import fitted, nested, read_weights

LAST_NUMBER = r"(\d+)(?!.*\d)"


def record_checkpoints(
    loss: Any,
    examples: Any,
    checkpoints: Any,
    path: Any,
    *,
    iteration_pattern: str = LAST_NUMBER,
    like: Any = None,
    **options: Any,
) -> Recording:
    """Record every example's gradient at each checkpoint of a finished run.

    Args:
        loss: As for `Recorder`.
        examples: As for `Recorder`.
        checkpoints: Files or directories, as a pattern `runs/3/step_*` or as a list, in the format of Orbax, `.npz`,
            `.safetensors` or Flax's `.msgpack`. Or pairs `(iteration, params)`, which you load yourself. All are read
            and checked before anything is recorded.
        path: Directory of the recording.
        iteration_pattern: A regular expression with one group that finds the iteration in a name. Default: the last
            number in the name.
        like: The parameters, or their shapes, in the structure that `loss` expects. Default: nested dicts, as in the
            checkpoint.
        options: More arguments for `Recorder`.

    Returns:
        The recording.

    Raises:
        InputError: If a checkpoint cannot be read, or belongs to another network.

    Example:
        >>> record_checkpoints(loss, (images, labels), "runs/3/step_*", "recordings/run3").iterations
        array([   0,  100,  200])
    """
    with naming_arguments():
        found = _listed(checkpoints, iteration_pattern)
    if odd := [leaf for leaf in jax.tree.leaves(like) if not hasattr(leaf, "shape")]:
        raise InputError(f"like must hold arrays or their shapes, and holds a {type(odd[0]).__name__}")

    def read(checkpoint: Any) -> tuple[Any]:
        return (_read(checkpoint, like) if isinstance(checkpoint, str | os.PathLike) else checkpoint,)

    with Recorder(path, loss, examples, **options) as recorder, naming_arguments():
        _record(recorder, found, read)
    return Recording(path)


def _listed(checkpoints: Any, iteration_pattern: str) -> list[tuple[int, Any]]:
    """List checkpoints with their iterations, which must rise.

    Raises:
        InputError: If there are none, or if iterations do not rise.
    """
    if isinstance(checkpoints, str | os.PathLike):
        return find_checkpoints(os.fspath(checkpoints), iteration_pattern)
    right = "must be a pattern like runs/3/step_*, a list of files, or pairs (iteration, params)"
    found = list(checkpoints) if isinstance(checkpoints, Iterable) and not isinstance(checkpoints, Mapping) else []
    if not found:
        raise InputError(
            f"checkpoints {right}, and is {'empty' if checkpoints == [] else f'a {type(checkpoints).__name__}'}"
        )
    if all(isinstance(one, str | os.PathLike) for one in found):
        return numbered(map(Path, found), iteration_pattern)
    for one in found:
        if not (isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], int | np.integer)):
            raise InputError(f"checkpoints {right}, and one of them is a {type(one).__name__}")
    for (t, _), (following, _) in itertools.pairwise(found):
        if following <= t:
            raise InputError(f"checkpoints: iteration {following} comes after iteration {t}, and iterations must rise")
    return found


def _read(path: str | os.PathLike, like: Any) -> Any:
    weights = read_weights(Path(path), "checkpoints")
    if like is not None:
        return jax.tree.map(jnp.asarray, fitted(weights, like, Path(path), "checkpoints"))
    for name, value in weights.items():
        parent, _, last = name.rpartition("/")
        if last.isdigit() and not value.ndim:
            raise InputError.flag("checkpoints", path, f"has a list of numbers as {parent}; it must be an array")
        if value.dtype.kind in "USO":
            raise InputError.flag("checkpoints", path, f"has text as {name}; use like= to choose which arrays to read")
    return jax.tree.map(jnp.asarray, nested(weights))


def _record(
    recorder: Recorder,
    found: Sequence[tuple[int, Any]],
    read: Callable[[Any], tuple[Any, ...]],
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Check all checkpoints first, and then record them. Reading twice takes little time beside evaluating.

    Raises:
        InputError: If a checkpoint cannot be read or belongs to another network than the first, or if none is selected.
    """
    chosen = [(t, checkpoint) for t, checkpoint in found if recorder.chooses(t)]
    if not chosen and not recorder.next_iteration:
        raise InputError(
            "every, records_per_doubling or when selects none of the checkpoints, which are at iterations "
            f"{found[0][0]} to {found[-1][0]}"
        )
    first: tuple[str, dict[str, str]] | None = None
    for t, checkpoint in chosen:
        of_file = isinstance(checkpoint, str | os.PathLike)
        name = str(checkpoint) if of_file else f"iteration {t}"
        try:
            model = split(*read(checkpoint))
            check_arrays(model)
            first = first or (name, model.described)
            if changed := difference(first[1], model.described):
                raise InputError(f"not the network of {first[0]}: {changed}")
        except InputError as error:
            if str(error).startswith("--checkpoints="):
                raise
            where = f"--checkpoints={name}" if of_file else f"checkpoints: {name}"
            raise InputError(f"{where}: {error}") from error
    for t, checkpoint in found:
        if recorder.chooses(t):
            recorder.record(t, *read(checkpoint))
        progress()


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
        config: The configuration: model, loss, data, and what to record.
        dataset: The examples.
        checkpoints: What `find_checkpoints` found.
        path: Directory of the recording.
        log: Function that prints a line for the user.
        progress: Called after each checkpoint.

    Raises:
        InputError: If a checkpoint cannot be read, or belongs to another network.
    """
    task, inputs = task_of(config, dataset), network_inputs(dataset, config)
    like, variables = (jax.eval_shape(of, jax.random.key(0)) for of in (task.init, task.variables))
    options = {"config": config, "dataset": dataset, "seed": config.first_seed, "log": log}

    def read(checkpoint: Path) -> tuple[Any, Any]:
        weights = read_weights(checkpoint, "checkpoints")
        params = fitted(weights, like, checkpoint, "checkpoints")
        rest = fitted(weights, variables, checkpoint, "checkpoints") if jax.tree.leaves(variables) else None
        return jax.tree.map(jnp.asarray, (params, rest))

    with Recorder(path, task.loss, (inputs, dataset.labels), **options) as recorder:
        _record(recorder, checkpoints, read, progress)


def find_checkpoints(pattern: str, iteration_pattern: str = LAST_NUMBER) -> list[tuple[int, Path]]:
    """Find checkpoints by a pattern with wildcards; return them with their iterations, in ascending order.

    Raises:
        InputError: If there are none, or if a name does not contain the iteration.
    """
    found: list[Path] = []
    for part in pattern.split(","):
        if not (matches := sorted(glob.glob(os.path.expanduser(part)))):
            raise InputError.flag(
                "checkpoints", part, "there is no such file or directory; give a pattern like runs/3/step_*"
            )
        found += map(Path, matches)
    return numbered(found, iteration_pattern)


def numbered(paths: Iterable[Path], iteration_pattern: str) -> list[tuple[int, Path]]:
    r"""Find the iteration of each checkpoint in its name, and sort them by it.

    Raises:
        InputError: If a name does not contain the iteration, or if two have the same one.

    Example:
        >>> numbered([Path("runs/3/step_20.npz"), Path("runs/3/step_5.npz")], LAST_NUMBER)
        [(5, PosixPath('runs/3/step_5.npz')), (20, PosixPath('runs/3/step_20.npz'))]
    """
    try:
        pattern = re.compile(iteration_pattern)
    except (re.error, TypeError) as error:
        raise InputError.flag(
            "iteration_pattern", iteration_pattern, f"is not a regular expression: {error}"
        ) from error
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
        if told is None and pattern.pattern != LAST_NUMBER:  # an item of a step: `runs/3/100/params`
            told = pattern.search(path.as_posix())
        if told is None or not (told.group(1) or "").isdigit():
            raise InputError.flag(
                "checkpoints", path, f"its name has no iteration that --iteration_pattern={pattern.pattern} finds"
            )
        yield int(told.group(1)), path
