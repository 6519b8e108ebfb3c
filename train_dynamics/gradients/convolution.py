"""Gradients of a convolution's kernel as products: input patches times the cotangent.

Rochette, Manoel and Tramel, "Efficient Per-Example Gradient Computations in Convolutional Neural Networks", 2019, use a
convolution with one group per example, as `jax.vmap` does. That is slow; products are not.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from train_dynamics.recording.layout import Axes


class Geometry(NamedTuple):
    """How a kernel moves over its input.

    Attributes:
        padding: Zeros before, after and between the input's elements, for each axis of space. May be negative.
        strides: Steps from one element of the kernel to the next.
        dilation: Steps from one position of the output to the next.
        kernel: Size of the kernel.
        groups: Groups of channels that have kernels of their own.
        inputs: Which axes of the input are channels, positions (several inputs that a layer sees at once), and space.
        cotangent: Which axes of the cotangent are features, positions, and space.
        result: Which axes of the kernel are channels, features, and space.
        precision: Precision of the products.
    """

    padding: tuple[tuple[int, int, int], ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel: tuple[int, ...]
    groups: int
    inputs: tuple[int, ...]
    cotangent: tuple[int, ...]
    result: tuple[int, ...]
    precision: Any


class Convolution(NamedTuple):
    """A `conv_general_dilated` whose result is a kernel's gradient, computed offset by offset of the kernel.

    What the kernel sees at one offset, over all positions of the output, is a strided slice of the padded input.

    Attributes:
        inputs: Input of the layer.
        cotangent: Cotangent of its output.
        geometry: How they meet.
    """

    inputs: Array
    cotangent: Array
    geometry: Geometry

    @classmethod
    def of(cls, params: dict, operands: list[Array], flipped: bool, shape: tuple[int, ...]) -> "Convolution | None":
        """Analyse an equation. None if it is not the gradient of a kernel as JAX writes it."""
        inputs, cotangent = operands
        if flipped or params["feature_group_count"] != 1 or inputs.dtype != cotangent.dtype:
            return None
        if params["preferred_element_type"] not in (None, inputs.dtype):
            return None
        numbers = params["dimension_numbers"]
        geometry = Geometry(
            tuple((*ends, step - 1) for ends, step in zip(params["padding"], params["lhs_dilation"], strict=True)),
            tuple(params["window_strides"]),
            tuple(params["rhs_dilation"]),
            tuple(shape[axis] for axis in numbers.out_spec[2:]),
            params["batch_group_count"],
            *map(tuple, (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)),
            params["precision"],
        )
        return cls(inputs, cotangent, geometry)

    @property
    def positions(self) -> int:
        """Number of products that are summed."""
        return math.prod(self.cotangent.shape[axis] for axis in self.geometry.cotangent[1:])

    @property
    def sizes(self) -> tuple[int, int]:
        """Lengths i, of everything the kernel sees of its group at once, and o, of a cotangent."""
        channels = self.inputs.shape[self.geometry.inputs[0]] // self.geometry.groups
        return math.prod(self.geometry.kernel) * channels, self.cotangent.shape[self.geometry.cotangent[0]]

    @property
    def joined(self) -> bool:
        """Whether there is a single group of channels, so that the gradient is one sum of products."""
        return self.geometry.groups == 1

    @property
    def axes(self) -> Axes:
        """Axes of the equation's result, in terms of those of the product, whose i is offsets and channels."""
        kernel, channels = self.geometry.kernel, self.inputs.shape[self.geometry.inputs[0]] // self.geometry.groups
        here = Axes.of([*kernel, channels, self.sizes[1]])
        at = dict(zip(self.geometry.result, [len(kernel), len(kernel) + 1, *range(len(kernel))], strict=True))
        return here.transpose([at[axis] for axis in range(len(at))])

    def factors(self) -> tuple[Float[Array, "p i"], Float[Array, "p o"]]:
        """Return input patches and the cotangent, for kernels without groups."""
        patches = _patches(self.geometry, self.inputs, self.cotangent.shape)
        return patches.reshape(-1, self.positions).T, _positions_first(self.geometry, self.cotangent)

    def product(self) -> Float[Array, "i o"]:
        """Multiply, and sum over positions.

        Vectorized over examples, CPUs process them one after the other. Each example's patches then stay in the cache,
        which takes half the time, or less, of one product for all.
        """
        multiply = custom_vmap(lambda inputs, cotangent: _multiply(self.geometry, inputs, cotangent))

        def one_by_one(*both: Array) -> Array:
            return jax.lax.map(lambda pair: multiply(*pair), both)

        def at_once(*both: Array) -> Array:
            return jax.vmap(lambda *pair: _multiply(self.geometry, *pair))(*both)

        @multiply.def_vmap
        def over_examples(size: int, batched: list[bool], *both: Array) -> tuple[Array, bool]:
            both = [x if is_batched else jnp.stack([x] * size) for x, is_batched in zip(both, batched, strict=True)]
            return jax.lax.platform_dependent(*both, cpu=one_by_one, default=at_once), True

        return multiply(self.inputs, self.cotangent)


def convolve(primitive: Any, params: dict, inputs: Array, kernel: Array) -> Array:
    """Convolve as an equation says. On CPUs the kernel's axes are in the order that XLA handles fast.

    JAX writes the cotangent of a convolution's input with both channel axes exchanged. Inside loops, XLA leaves it like
    that, and takes eight times as long if the strides are 2.
    """
    numbers = params["dimension_numbers"]
    features, channels, *space = numbers.rhs_spec
    last = len(space)
    moved = numbers._replace(rhs_spec=(last + 1, last, *range(last)))

    def bound(numbers: Any, *operands: Array) -> Array:
        return primitive.bind(*operands, **{**params, "dimension_numbers": numbers})

    def on_cpu(inputs: Array, kernel: Array) -> Array:
        return bound(moved, inputs, kernel.transpose(*space, channels, features))

    as_it_is = functools.partial(bound, numbers)
    return jax.lax.platform_dependent(inputs, kernel, cpu=on_cpu, default=as_it_is)


def _multiply(geometry: Geometry, inputs: Float[Array, "..."], cotangent: Float[Array, "..."]) -> Float[Array, "i o"]:
    patches = _patches(geometry, inputs, cotangent.shape)
    rows = _positions_first(geometry, cotangent)
    if geometry.groups == 1:
        return jnp.matmul(patches.reshape(-1, len(rows)), rows, precision=geometry.precision)
    rows = rows.reshape(len(rows), geometry.groups, -1)
    return jnp.einsum("kgbp,pgf->kbgf", patches, rows, precision=geometry.precision).reshape(-1, rows[0].size)


def _patches(geometry: Geometry, inputs: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "k g b p"]:
    """Return what the kernel sees, by offset, group, channel of the group and position of the output."""
    inputs = inputs.transpose(geometry.inputs)
    inputs = jax.lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), (0, 0, 0), *geometry.padding])
    space = [shape[axis] for axis in geometry.cotangent[2:]]
    patches = []
    for offset in itertools.product(*map(range, geometry.kernel)):
        starts = [at * stride for at, stride in zip(offset, geometry.strides, strict=True)]
        ends = [
            start + (size - 1) * step + 1 for start, size, step in zip(starts, space, geometry.dilation, strict=True)
        ]
        patches.append(jax.lax.slice(inputs, (0, 0, *starts), (*inputs.shape[:2], *ends), (1, 1, *geometry.dilation)))
    return jnp.stack(patches).reshape(len(patches), geometry.groups, len(inputs) // geometry.groups, -1)


def _positions_first(geometry: Geometry, cotangent: Float[Array, "..."]) -> Float[Array, "p o"]:
    features, *positions = geometry.cotangent
    return cotangent.transpose(*positions, features).reshape(-1, cotangent.shape[features])
