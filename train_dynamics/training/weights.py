"""Reads weights from a checkpoint in any common format."""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train_dynamics.config import InputError
from train_dynamics.gradients.parameters import named

MOST_NAMED = 8
KNOWN = (".npz", ".safetensors", ".msgpack")
AROUND = ("", "params/", "model/", "state/", "state/params/", "model/params/")  # of the states that people save
AFTER = ("", "/value")  # the latter of the variables of Flax NNX


def read_weights(path: Path, flag: str) -> dict[str, np.ndarray]:
    """Read arrays by name, with slashes, from a `.npz`, `.safetensors` or `.msgpack` file, or from Orbax.

    Dots in names are turned into slashes.

    Args:
        path: The file, or the Orbax directory.
        flag: The flag that named it, for error messages.

    Raises:
        InputError: If it does not exist, or cannot be read.
    """
    if not path.exists():
        raise InputError.flag(flag, path, "there is no such file or directory")
    if not path.is_dir() and path.suffix not in KNOWN:
        raise InputError.flag(
            flag,
            path,
            f"must be an Orbax directory, or a file {', '.join(KNOWN)}; save the weights as one of these",
        )
    try:
        found = _read(path)
    except ImportError as error:
        raise InputError.flag(flag, path, f"needs the package {error.name}; pip install {error.name}") from error
    except Exception as error:  # what libraries raise of damaged files is anything
        told = next(iter(str(error).strip().splitlines()), "")[:200]
        if path.suffix == ".npz" and "pickle" in told:  # NumPy would have one load it all the same
            told = "it is not an .npz file, or holds Python objects instead of arrays"
        raise InputError.flag(flag, path, f"cannot be read: {type(error).__name__}: {told}") from error
    return {name.replace(".", "/"): np.asarray(value) for name, value in found.items()}


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        import orbax.checkpoint as ocp

        items = sorted(found.parent for found in path.glob("*/_METADATA"))  # `CheckpointManager` stores a row of them
        alone = items[0] if len(items) == 1 else path
        place = path / "default" if (path / "default").is_dir() else alone
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.metadata(place.absolute()).item_metadata
            if found is None:
                several = f", but several in it: {', '.join(item.name for item in items)}" if items else ""
                raise ValueError(f"Orbax finds no checkpoint in this directory{several}")
            kept = found.tree
            on_host = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), kept
            )  # whatever device it was on
            return named(checkpointer.restore(place.absolute(), restore_args=on_host))
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    if path.suffix == ".msgpack":
        from flax.serialization import msgpack_restore

        return named(msgpack_restore(path.read_bytes()))
    with np.load(path, allow_pickle=False) as file:
        # NumPy stores no name of bfloat16, and gives back two bytes of no type.
        return {name: array.view(jnp.bfloat16) if array.dtype == "V2" else array for name, array in file.items()}


def fitted(weights: dict[str, np.ndarray], like: Any, path: Path, flag: str) -> Any:
    """Arrange weights in the structure of `like`. They may be nested below `params` or a similar name.

    Args:
        weights: What `read_weights` returned.
        like: Parameters, or their shapes.
        path: Where they come from, for error messages.
        flag: The flag that named it, for error messages.

    Raises:
        InputError: If a parameter is missing or has another shape. Additional weights are ignored.
    """
    names = named(like)
    before, after = max(
        itertools.product(AROUND, AFTER), key=lambda ends: sum(ends[0] + name + ends[1] in weights for name in names)
    )
    found = {name: weights.get(before + name + after) for name in names}
    if missing := [name for name, array in found.items() if array is None]:
        there = ", ".join([*weights][:MOST_NAMED]) + (", ..." if len(weights) > MOST_NAMED else "")
        lacks = f"no {missing[0]}" if len(missing) < len(names) else f"nothing of the network, as {missing[0]}"
        raise InputError.flag(flag, path, f"has {lacks}; it has {there or 'nothing'}")
    for name, leaf in names.items():
        shape = found[name].shape
        if shape != leaf.shape:
            raise InputError.flag(flag, path, f"has {name} of shape {list(shape)}; the network's is {list(leaf.shape)}")
    leaves = [found[name].astype(leaf.dtype) for name, leaf in names.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def nested(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Nest arrays by their names, and drop a single `params` around everything.

    Example:
        >>> nested({"params/fc1/bias": np.zeros(1)})
        {'fc1': {'bias': array([0.])}}
    """
    found: dict[str, Any] = {}
    for name, value in weights.items():
        *parents, leaf = name.split("/")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return found["params"] if set(found) == {"params"} else found
