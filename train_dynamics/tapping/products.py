"""Equations of a backward pass whose result is a sum over positions of activation times cotangent.

For a dense layer: Goodfellow, "Efficient Per-Example Gradient Computations", 2015. For convolutions: Rochette, Manoel
and Tramel, "Efficient Per-Example Gradient Computations in Convolutional Neural Networks", 2019.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train_dynamics.tapping.layout import Axes


class Dot(NamedTuple):
    """A `dot_general` of an activation and a cotangent that contracts all positions.

    Attributes:
        activation: One operand.
        cotangent: The other one.
        contracted: Axes of each that are positions.
        flipped: Whether the cotangent was the first operand, and so has the first axes of the result.
        precision: What the equation asks for.
    """

    activation: Array
    cotangent: Array
    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    flipped: bool
    precision: Any

    @classmethod
    def of(cls, params: dict, operands: list[Array], flipped: bool) -> "Dot | None":
        """Take an equation apart; None if it is more than an outer product summed over positions."""
        contracted, batch = params["dimension_numbers"]
        if batch[0] or len({operand.dtype for operand in operands}) > 1:
            return None
        if params["preferred_element_type"] not in (None, operands[0].dtype):
            return None
        operands, contracted = (operands[::-1], contracted[::-1]) if flipped else (operands, contracted)
        return cls(*operands, tuple(map(tuple, contracted)), flipped, params["precision"])

    def _kept(self, k: int) -> list[int]:
        return [axis for axis in range(self[k].ndim) if axis not in self.contracted[k]]

    @property
    def positions(self) -> int:
        """How many products are summed."""
        return math.prod(self.activation.shape[axis] for axis in self.contracted[0])

    @property
    def sizes(self) -> tuple[int, int]:
        """Lengths i of an activation and o of a cotangent."""
        return tuple(math.prod(self[k].shape[axis] for axis in self._kept(k)) for k in (0, 1))

    @property
    def axes(self) -> Axes:
        """Axes of the equation's result, in terms of those of the product [i, o]."""
        left, right = ([self[k].shape[axis] for axis in self._kept(k)] for k in (0, 1))
        axes, order = Axes.of(left + right), list(range(len(left) + len(right)))
        return axes.transpose(order[len(left) :] + order[: len(left)]) if self.flipped else axes

    def factors(self) -> tuple[Float[Array, "p i"], Float[Array, "p o"]]:
        """Give both factors with one axis of positions."""

        def flat(k: int) -> Array:
            moved = self[k].transpose(*self.contracted[k], *self._kept(k))
            return moved.reshape(self.positions, self.sizes[k])

        return flat(0), flat(1)

    def product(self) -> Float[Array, "i o"]:
        """Multiply, and sum over positions."""
        return jnp.einsum("pi,po->io", *self.factors(), precision=self.precision)


class Convolution(NamedTuple):
    """A `conv_general_dilated` that gives the gradient of a kernel, by offset of the kernel.

    Its output at an offset is the product of a strided slice of the padded input with the cotangent. Vectorized over
    examples by `jax.vmap` the equation itself would be a convolution with a group for each example, which is slow.

    Attributes:
        inputs: The layer's padded input, [group, channel, position, *space].
        cotangent: Cotangent of its output, [group, feature, position, *space].
        strides: Steps of the slices' beginnings, by axis of space.
        dilation: Steps within the slices.
        offsets: Size of the kernel.
        spec: Where the result has its axes channel, feature, *space.
        precision: What the equation asks for.
    """

    inputs: Array
    cotangent: Array
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    offsets: tuple[int, ...]
    spec: tuple[int, ...]
    precision: Any

    @classmethod
    def of(cls, params: dict, operands: list[Array], flipped: bool, shape: tuple[int, ...]) -> "Convolution | None":
        """Take an equation apart; None if it is not the gradient of a kernel as JAX writes it."""
        inputs, cotangent = operands
        if flipped or params["feature_group_count"] != 1 or inputs.dtype != cotangent.dtype:
            return None
        if params["preferred_element_type"] not in (None, inputs.dtype):
            return None
        numbers, groups = params["dimension_numbers"], params["batch_group_count"]
        padding = [(0, 0, 0)] * 2 + [
            (*ends, step - 1) for ends, step in zip(params["padding"], params["lhs_dilation"], strict=True)
        ]
        inputs = jax.lax.pad(inputs.transpose(numbers.lhs_spec), jnp.zeros((), inputs.dtype), padding)
        cotangent = cotangent.transpose(numbers.rhs_spec)
        grouped = [array.reshape(groups, -1, *array.shape[1:]) for array in (inputs, cotangent)]
        offsets = tuple(shape[axis] for axis in numbers.out_spec[2:])
        return cls(
            *grouped, params["window_strides"], params["rhs_dilation"], offsets, numbers.out_spec, params["precision"]
        )

    @property
    def positions(self) -> int:
        """How many products are summed."""
        return math.prod(self.cotangent.shape[2:])

    @property
    def sizes(self) -> tuple[int, int]:
        """Lengths i, of all that the kernel sees of its group at once, and o, of a cotangent."""
        groups, features = self.cotangent.shape[:2]
        return math.prod(self.offsets) * self.inputs.shape[1], groups * features

    @property
    def joined(self) -> bool:
        """Whether there is one group of channels, so that the gradient is one sum of products."""
        return len(self.inputs) == 1

    @property
    def axes(self) -> Axes:
        """Axes of the equation's result, in terms of those of the product."""
        here = Axes.of([*self.offsets, self.inputs.shape[1], self.sizes[1]])  # as in the product
        order = [len(self.offsets), len(self.offsets) + 1, *range(len(self.offsets))]
        at = dict(zip(self.spec, order, strict=True))
        return here.transpose([at[axis] for axis in range(len(at))])

    def slices(self) -> list[Float[Array, "g b c ..."]]:
        """Give what the kernel sees at each of its offsets, over all positions of the output."""
        space = self.cotangent.shape[3:]

        def slice_at(offset: tuple[int, ...]) -> Array:
            array = self.inputs
            for k, (at, size) in enumerate(zip(offset, space, strict=True)):
                start = at * self.strides[k]
                limit = start + (size - 1) * self.dilation[k] + 1
                array = jax.lax.slice_in_dim(array, start, limit, self.dilation[k], axis=3 + k)
            return array

        return [slice_at(offset) for offset in itertools.product(*map(range, self.offsets))]

    def factors(self) -> tuple[Float[Array, "p i"], Float[Array, "p o"]]:
        """Give patches of the input and the cotangent; for kernels without groups."""
        patches = jnp.stack([piece[0].reshape(piece.shape[1], -1) for piece in self.slices()])  # [offset, b, p]
        return patches.reshape(-1, self.positions).T, self.cotangent[0].reshape(-1, self.positions).T

    def product(self) -> Float[Array, "i o"]:
        """Multiply slice by slice; rows of i are offsets and channels, columns of o are features."""
        cotangent = self.cotangent.reshape(*self.cotangent.shape[:2], -1)
        of_offset = [
            jnp.einsum("gbp,gfp->bgf", piece.reshape(*piece.shape[:2], -1), cotangent, precision=self.precision)
            for piece in self.slices()
        ]
        return jnp.stack(of_offset).reshape(-1, cotangent.shape[0] * cotangent.shape[1])


class Plain(NamedTuple):
    """What is in no form known here: the value itself, dense."""

    value: Array


class Term(NamedTuple):
    """A product, and where its axes have got to since."""

    product: Dot | Convolution | Plain
    axes: Axes | None
