"""Equations of a backward pass whose result is a sum over positions of activation times cotangent.

For dense layers: Goodfellow, "Efficient Per-Example Gradient Computations", 2015. For convolutions: see `convolution`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from train_dynamics.gradients.convolution import Convolution
from train_dynamics.gradients.parameters import named
from train_dynamics.recording.layers import Factors, Layer
from train_dynamics.recording.layout import Axes


class Dot(NamedTuple):
    """A `dot_general` of an activation and a cotangent that contracts all positions.

    Attributes:
        activation: One operand.
        cotangent: The other one.
        contracted: Axes of each that are positions.
        flipped: Whether the cotangent was the first operand, so that it has the first axes of the result.
        precision: The precision that the equation asks for.
    """

    activation: Array
    cotangent: Array
    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    flipped: bool
    precision: Any

    @classmethod
    def of(cls, params: dict, operands: list[Array], flipped: bool) -> "Dot | None":
        """Analyse an equation. None if it is more than an outer product summed over positions."""
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
        """Number of products that are summed."""
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


class Plain(NamedTuple):
    """A value in no form known here: the value itself, dense."""

    value: Array


class Term(NamedTuple):
    """A product, and where its axes have moved since."""

    product: Dot | Convolution | Plain
    axes: Axes | None


def layers_of(params: Any, terms: Sequence[tuple[Term, ...]]) -> dict[str, Layer]:
    """Tell for every parameter whether its gradient has factors, and which."""
    return {
        name: Layer(name, leaf.shape, _factors(leaf.shape, of_leaf))
        for (name, leaf), of_leaf in zip(named(params).items(), terms, strict=True)
    }


def _factors(shape: tuple[int, ...], terms: tuple[Term, ...]) -> Factors | None:
    """Join the products of a gradient's sum into one, with all their positions, if their axes match."""
    found = set()
    for term in terms:
        if isinstance(term.product, Plain) or (isinstance(term.product, Convolution) and not term.product.joined):
            return None
        i, o = term.product.sizes
        found.add((i, o, term.axes.layout(i, o)))
    if len(found) != 1:
        return None
    i, o, layout = found.pop()
    positions = sum(term.product.positions for term in terms)
    return Factors(i, o, positions, layout) if positions * (i + o) < i * o else None


def join(terms: tuple[Term, ...]) -> tuple[Float[Array, "p i"], Float[Array, "p o"]]:
    """Return the factors of all terms, one after the other."""
    activations, cotangents = zip(*(term.product.factors() for term in terms), strict=True)
    return jnp.concatenate(activations), jnp.concatenate(cotangents)


def dense(gradient: Float[Array, "..."], terms: tuple[Term, ...]) -> Float[Array, "..."]:
    """Return a gradient as JAX computed it, unless a convolution is in it, which is faster from its terms."""
    if not any(isinstance(term.product, Convolution) for term in terms):
        return gradient

    def of_term(term: Term) -> Array:
        if isinstance(term.product, Plain):
            return term.product.value
        return term.axes.layout(*term.product.sizes).apply(term.product.product())

    return sum(map(of_term, terms[1:]), of_term(terms[0]))
