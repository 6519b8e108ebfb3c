"""Weights to start from, out of somebody's checkpoint."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from train_dynamics.config import InputError
from train_dynamics.gradients.parameters import named

MOST_NAMED = 8


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Read arrays by name, with slashes: of a `.npz` or `.safetensors` file, or of a checkpoint that Orbax wrote.

    Names with dots are taken as paths, too, and a single `params` around everything is left out.

    Raises:
        InputError: If there is no such file or directory, or it cannot be read.
    """
    if not path.exists():
        raise InputError.flag("initial", path, "there is no such file or directory")
    try:
        found = _read(path)
    except ImportError as error:
        raise InputError.flag("initial", path, f"needs the package {error.name}; pip install {error.name}") from error
    except Exception as error:  # what libraries raise of damaged files is anything
        told = next(iter(str(error).strip().splitlines()), "")[:200]
        raise InputError.flag("initial", path, f"cannot be read: {type(error).__name__}: {told}") from error
    found = {name.replace(".", "/"): np.asarray(value) for name, value in found.items()}
    if found and all(name.startswith("params/") for name in found):
        found = {name.removeprefix("params/"): value for name, value in found.items()}
    return found


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        import orbax.checkpoint as ocp

        return named(ocp.PyTreeCheckpointer().restore(path.absolute()))
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def fitted(weights: dict[str, np.ndarray], like: Any, path: Path) -> Any:
    """Give a tree like `like` of these weights.

    Args:
        weights: What `read_weights` gives.
        like: Parameters, or their shapes.
        path: Where they are from, for errors.

    Raises:
        InputError: If a parameter is missing, or has another shape; more than there are is no mistake.
    """
    names = named(like)
    if missing := [name for name in names if name not in weights]:
        there = ", ".join([*weights][:MOST_NAMED]) + (", ..." if len(weights) > MOST_NAMED else "")
        raise InputError.flag("initial", path, f"has no {missing[0]}; it has {there or 'nothing'}")
    for name, leaf in names.items():
        if weights[name].shape != leaf.shape:
            raise InputError.flag(
                "initial", path, f"has {name} of shape {list(weights[name].shape)}; the network's is {list(leaf.shape)}"
            )
    leaves = [weights[name].astype(leaf.dtype) for name, leaf in names.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
