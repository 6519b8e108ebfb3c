"""How a product of two factors is laid out in a parameter: axes split, permuted and merged. No JAX, no arrays."""

import math
from typing import NamedTuple

import numpy as np

Atom = tuple[tuple[int, ...], int]
"""A piece of an axis that is never split further: where it was in the product (sorts in that order), and its size."""


class Layout(NamedTuple):
    """How a product [i, o] is rearranged: `product.reshape(split).transpose(permutation).reshape(shape)`.

    A dense layer's kernel [in, out] has `split == (in, out)` and `permutation == (0, 1)`; a weight stored [out, in] has
    `permutation == (1, 0)`.
    """

    split: tuple[int, ...]
    permutation: tuple[int, ...]
    shape: tuple[int, ...]

    def apply(self, product):
        """Rearrange a product into the parameter's shape. Axes before the product's are left alone."""
        rows = product.shape[: product.ndim - 2]
        split = product.reshape(*rows, *self.split)
        order = *range(len(rows)), *(len(rows) + axis for axis in self.permutation)
        return split.transpose(order).reshape(*rows, *self.shape)

    def undo(self, parameter, i: int, o: int):
        """Rearrange an array of the parameter's shape back into the product [i, o]."""
        permuted = parameter.reshape([self.split[axis] for axis in self.permutation])
        return permuted.transpose(np.argsort(self.permutation).tolist()).reshape(i, o)


class Axes(NamedTuple):
    """Axes of an array on its way from a product to a parameter. Each is a row of atoms."""

    axes: tuple[tuple[Atom, ...], ...]

    @classmethod
    def of(cls, sizes) -> "Axes":
        """Start with the axes of the product."""
        return cls(tuple((((k,), int(size)),) for k, size in enumerate(sizes)))

    def transpose(self, permutation) -> "Axes":
        """Permute axes."""
        return Axes(tuple(self.axes[axis] for axis in permutation))

    def reshape(self, sizes) -> "Axes | None":
        """Split the same elements into other axes. None if no axis can be split that way, as (2, 3) to (3, 2)."""
        atoms = [atom for axis in self.axes for atom in axis if atom[1] != 1]
        axes = []
        for wanted in sizes:
            axis = []
            while wanted > 1:
                place, size = atoms.pop(0)
                if size > wanted:  # split it
                    if size % wanted:
                        return None
                    atoms.insert(0, ((*place, 1), size // wanted))
                    place, size = (*place, 0), wanted
                if wanted % size:
                    return None
                axis.append((place, size))
                wanted //= size
            axes.append(tuple(axis))
        return Axes(tuple(axes))

    def layout(self, i: int, o: int) -> Layout:
        """Return the resulting layout. Atoms that stay neighbours within i or within o count as one."""
        shape = tuple(math.prod(size for _, size in axis) for axis in self.axes)
        atoms = [atom for axis in self.axes for atom in axis if atom[1] != 1]
        order = sorted(atoms)
        groups, before = [], 1  # runs of neighbours in the product; a new one begins where o does
        for k, atom in enumerate(order):
            follows = k and before != i and atoms.index(order[k - 1]) + 1 == atoms.index(atom)
            groups = [*groups[:-1], [*groups[-1], atom]] if follows else [*groups, [atom]]
            before *= atom[1]
        by_place = sorted(range(len(groups)), key=lambda k: atoms.index(groups[k][0]))
        split = tuple(math.prod(size for _, size in group) for group in groups)
        return Layout(split, tuple(by_place), shape)
