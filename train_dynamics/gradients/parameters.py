"""Names parameters, and checks them before anything is computed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path

from train_dynamics.config import InputError
from train_dynamics.recording.layers import TOGETHER


def named(params: Any) -> dict[str, Any]:
    """List the leaves by their paths, such as `Dense_0/kernel`, in the order of `jax.tree.leaves`.

    Raises:
        InputError: If there are none, or if two have the same name.
    """
    leaves, found = tree_flatten_with_path(params)[0], {}
    for path, leaf in leaves:
        if len(path) > 1 and path[-1] == GetAttrKey("value"):
            path = path[:-1]  # of an NNX variable
        name = keystr(path, simple=True, separator="/") or "parameter"
        if name in found or name == TOGETHER:
            raise InputError(
                f"the parameters' names must differ from each other and from {TOGETHER!r}; found {name!r} again"
            )
        found[name] = leaf
    if not found:
        raise InputError("there are no parameters")
    return found


def in_float32(params: Any) -> Any:
    """Convert bfloat16 parameters to float32, for the computation.

    Raises:
        InputError: If a parameter is not float32, float64 or bfloat16.
    """
    for name, leaf in named(params).items():
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if dtype not in (jnp.float32, jnp.float64, jnp.bfloat16):
            raise InputError(f"parameter {name} is {dtype}; gradients need float32, float64 or bfloat16")
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, params)


def check_loss(loss: Callable, params: Any, example: Any) -> None:
    """Check what the loss function returns for one example, without computing it.

    Raises:
        InputError: If it is not a pair of a real scalar and outputs.
    """
    found = jax.eval_shape(loss, params, example)
    expected = "loss(params, example) must return a pair (loss, outputs) with a scalar loss"
    if not (isinstance(found, tuple) and len(found) == 2):
        raise InputError(f"{expected}; it returned {_described(found)}")
    value = found[0]
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(f"{expected}; its loss is {_described(value)}")


def _described(found: Any) -> str:
    if hasattr(found, "shape"):
        return f"{found.dtype}{list(found.shape)}"
    return f"a {type(found).__name__} of {len(jax.tree.leaves(found))} arrays"
