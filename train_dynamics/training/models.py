"""Takes a user's network apart: into what gradients are taken of, and the rest."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train_dynamics.config import InputError
from train_dynamics.gradients.parameters import named


class Model(NamedTuple):
    """A network, or those of several seeds, with a leading axis each.

    Attributes:
        parameters: The arrays that gradients are taken of, as a pytree.
        variables: The other arrays that are recorded, such as the statistics of batch normalisation. An empty dict if
            none.
        hidden: Arrays that are neither, such as counters and random keys.
        arguments: Function from these three to the arguments of the user's loss, besides the example.
        fixed: Everything that is not an array. It is compiled into the program.
    """

    parameters: Any
    variables: Any
    hidden: Any
    arguments: Callable[[Any, Any, Any], tuple[Any, ...]]
    fixed: Any = None

    @property
    def arrays(self) -> tuple[Any, Any, Any]:
        """All its arrays."""
        return self.parameters, self.variables, self.hidden

    @property
    def by_name(self) -> dict[str, Any]:
        """All its arrays, by kind and path."""
        kinds = {"parameter": self.parameters, "variable": self.variables, "hidden array": self.hidden}
        return {
            f"{kind} {name}": leaf
            for kind, of in kinds.items()
            if jax.tree.leaves(of)
            for name, leaf in named(of).items()
        }

    @property
    def described(self) -> dict[str, str]:
        """Shape and type of all its arrays."""
        return {name: f"{list(leaf.shape)} {leaf.dtype}" for name, leaf in self.by_name.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        """Type of each parameter that is not float32, by name."""
        return {name: str(leaf.dtype) for name, leaf in named(self.parameters).items() if leaf.dtype != jnp.float32}

    def bound(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """Turn the user's loss into `loss(params, example, variables)`, with hidden arrays fixed."""

        def of_parameters(params: Any, example: Any, variables: Any = None) -> Any:
            first, *rest = self.arguments(params, variables or {}, self.hidden)
            return loss(first, example, *rest)

        return of_parameters


def split(model: Any, variables: Any = None) -> Model:
    """Take a network apart.

    A Flax NNX module is used in evaluation mode: statistics fixed, dropout off. For any other pytree, such as an
    Equinox module, the parameters are its floating-point arrays.

    Args:
        model: An NNX module, or a pytree that holds arrays and anything else.
        variables: A pytree that the loss takes as third argument. None if it takes none.

    Example:
        >>> split({"w": jnp.ones(2), "activation": jax.nn.relu}).parameters
        {'activation': None, 'w': Array([1., 1.], dtype=float32)}
    """
    if isinstance(model, nnx.Module):
        return _split_nnx(model, variables)
    leaves, structure = jax.tree.flatten(model)
    trained = [_is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    hidden = [leaf for leaf, is_trained in zip(leaves, trained, strict=True) if _is_array(leaf) and not is_trained]
    parameters = structure.unflatten(
        leaf if is_trained else None for leaf, is_trained in zip(leaves, trained, strict=True)
    )

    def arguments(parameters: Any, variables: Any, hidden: Any) -> tuple[Any, ...]:
        values, rest = iter(jax.tree.leaves(parameters)), iter(hidden)
        whole = [
            next(values) if is_trained else next(rest) if _is_array(leaf) else leaf
            for leaf, is_trained in zip(leaves, trained, strict=True)
        ]
        return structure.unflatten(whole), *([variables] if given else [])

    given = variables is not None
    fixed = [leaf for leaf in leaves if not _is_array(leaf)]
    return Model(model if all(trained) else parameters, variables or {}, hidden, arguments, fixed)


def check_arrays(model: Model) -> None:
    """Check that a network consists of arrays that can be computed with.

    Raises:
        InputError: If it has no arrays, or if they are being traced, or were deleted.
    """
    if not jax.tree.leaves(model.parameters):
        raise InputError("params hold no floating-point array to take gradients of; convert them with jnp.asarray")
    for leaf in jax.tree.leaves(model.arrays):
        if isinstance(leaf, jax.core.Tracer):
            raise InputError(
                "record was called inside of jax.jit or another transformation; call it in the loop itself"
            )
        if not _is_array(leaf) or getattr(leaf, "is_deleted", bool)():
            name = next(name for name, other in model.by_name.items() if other is leaf)
            raise InputError(
                f"{name} was deleted by an update that took its memory (donate_argnums); record before it, or a copy"
                if _is_array(leaf)
                else f"{name} is a {type(leaf).__name__} and not an array; convert it with jnp.asarray"
            )


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Describe the array in which two networks differ. Empty if they do not.

    Example:
        >>> difference({"parameter w": "[2]"}, {"parameter w": "[3]"})
        'parameter w was [2], and is [3] now'
    """
    for name in (*before, *now):
        was, found = (of.get(name, "missing") for of in (before, now))
        if was != found:
            return f"{name} was {was}, and is {found} now"
    return ""


def _split_nnx(model: nnx.Module, variables: Any) -> Model:
    graph, parameters, statistics, hidden = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    given = variables is not None

    def arguments(parameters_now: Any, variables: Any, hidden: Any) -> tuple[Any, ...]:
        statistics_now, *rest = (variables["statistics"], variables["given"]) if given else (variables,)
        drawn = jax.tree.map(lambda leaf: leaf, hidden)  # anew, or Flax lets no random key be drawn under a gradient
        states = _filled(parameters, parameters_now), _filled(statistics, statistics_now), drawn
        module = nnx.merge(graph, *states)
        module.eval()
        return module, *rest

    evaluated = nnx.merge(graph, parameters, statistics, hidden)
    evaluated.eval()  # whichever mode the loop has it in
    found = nnx.to_pure_dict(statistics)
    found = {"statistics": found, "given": variables} if given else found
    return Model(nnx.to_pure_dict(parameters), found, hidden, arguments, nnx.graphdef(evaluated))


def _filled(state: Any, values: Any) -> Any:
    """Return a state like this one with other values."""
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def placed_like(examples: Any, parameters: Any) -> Any:
    """Put examples where the parameters are: on the same device, or a whole copy on each of several."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(parameters) if isinstance(leaf, jax.Array)]
    several = [of for of in shardings if isinstance(of, NamedSharding) and len(of.device_set) > 1]
    if several:
        return jax.device_put(examples, NamedSharding(several[0].mesh, PartitionSpec()))
    return jax.device_put(examples, next(iter(shardings), None))


def on_automatic_meshes(arrays: Any) -> Any:
    """Let XLA choose the sharding from here on, for arrays whose sharding is explicit (`AxisType.Explicit`)."""

    def leaf_of(leaf: Any) -> Any:
        of = getattr(leaf, "sharding", None)
        if not isinstance(of, NamedSharding) or all(kind == AxisType.Auto for kind in of.mesh.axis_types):
            return leaf
        return jax.device_put(leaf, NamedSharding(Mesh(of.mesh.devices, of.mesh.axis_names), of.spec))

    return jax.tree.map(leaf_of, arrays)
