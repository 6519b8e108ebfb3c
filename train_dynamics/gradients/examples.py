"""Applies a function of one example to all examples, at once or some at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from train_dynamics.config import InputError


def count(examples: Any) -> int:
    """Count examples: the length that all leaves share.

    Raises:
        InputError: If the leaves differ in length, or if there are no examples.
    """
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(examples)}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        found = ", ".join(str(list(leaf.shape)) for leaf in jax.tree.leaves(examples)) or "none"
        raise InputError(f"examples must be arrays that share their first axis; their shapes are {found}")
    return sizes.pop()


def shape_of_one(examples: Any) -> Any:
    """Return shape and type of one example. JAX converts 64-bit types to 32 bits, unless configured otherwise."""
    count(examples)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jax.dtypes.canonicalize_dtype(leaf.dtype)), examples
    )


def over_examples(of_one: Callable[[Any], Any], examples: Any, batch_size: int | None) -> Any:
    """Apply a function to every example with `jax.vmap`, all at once or some at a time."""
    num_examples = count(examples)
    if batch_size is None or batch_size >= num_examples:
        return jax.vmap(of_one)(examples)

    def join(batches: Shaped[Array, "batch b ..."]) -> Shaped[Array, "n ..."]:
        flat = batches.reshape(-1, *batches.shape[2:])
        rest = num_examples % batch_size  # a last slice that would reach beyond the end begins earlier
        return jnp.concatenate([flat[: num_examples - rest], flat[len(flat) - rest :]])

    starts = jnp.arange(0, num_examples, batch_size)
    batches = jax.lax.map(lambda start: jax.vmap(of_one)(_slice(examples, start, batch_size)), starts)
    return jax.tree.map(join, batches)


def _slice(examples: Any, start: Int[Array, ""] | int, size: int) -> Any:
    # By index: `jax.lax.map` over the examples themselves would copy them all.
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), examples)


def sum_over_examples(of_batch: Callable[[Any, Bool[Array, " b"]], Any], examples: Any, batch_size: int | None) -> Any:
    """Add up `of_batch(batch, new)` over batches; `new` marks the examples not counted in an earlier batch."""
    num_examples = count(examples)
    if batch_size is None or batch_size >= num_examples:
        return of_batch(examples, jnp.ones(num_examples, bool))

    def add(total: Any, start: Int[Array, ""]) -> tuple[Any, None]:
        first = jnp.minimum(start, num_examples - batch_size)  # where `dynamic_slice` begins too
        new = first + jnp.arange(batch_size) >= start
        return jax.tree.map(jnp.add, total, of_batch(_slice(examples, first, batch_size), new)), None

    shapes = jax.eval_shape(of_batch, _slice(examples, 0, batch_size), jnp.ones(batch_size, bool))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.scan(add, zeros, jnp.arange(0, num_examples, batch_size))[0]
