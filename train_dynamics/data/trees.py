"""Nested inputs: dicts, tuples and lists of arrays. These functions do not need JAX."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Shaped

from train_dynamics.config import InputError

Tree = Any
"""An array, or a dict, tuple or list of trees."""

KEY = re.compile(r"[\w-]+")


class DataError(InputError):
    """Raised if data is wrong, wherever it comes from."""


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """List a tree's leaves with their paths: keys and indices joined by dots. The path of a lone leaf is empty.

    Raises:
        DataError: If a dict has keys that cannot be part of a file name.

    Example:
        >>> list(leaves({"a": (1, 2), "b": 3}))
        [('a.0', 1), ('a.1', 2), ('b', 3)]
    """
    if type(tree) in (tuple, list):
        children = enumerate(tree)
    elif type(tree) is dict:
        if odd := [key for key in tree if not (isinstance(key, str) and KEY.fullmatch(key))]:
            raise DataError(f"the names of inputs may contain only letters, digits, - and _, unlike {odd[0]!r}")
        children = sorted(tree.items())
    else:
        yield path, tree
        return
    for name, child in children:
        yield from leaves(child, f"{path}.{name}" if path else str(name))


def mapped(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Apply a function to each leaf.

    Example:
        >>> mapped(abs, {"a": (-1, 2)})
        {'a': (1, 2)}
    """
    if type(tree) in (tuple, list):
        return type(tree)(mapped(function, child) for child in tree)
    if type(tree) is dict:
        return {name: mapped(function, child) for name, child in tree.items()}
    return function(tree)


def structure(tree: Tree) -> Any:
    """Describe how a tree is nested, in a form that JSON can store. Leaves become null.

    Example:
        >>> structure({"a": (1, 2)})
        {'dict': {'a': {'tuple': [None, None]}}}
    """
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [structure(child) for child in tree]}
    return {"dict": {name: structure(child) for name, child in tree.items()}} if type(tree) is dict else None


def restored(form: Any, leaf: Callable[[str], Any], path: str = "") -> Tree:
    """Build a tree from its structure, by calling a function with the path of each leaf.

    Raises:
        KeyError, TypeError, ValueError: If `form` does not come from `structure`.

    Example:
        >>> restored({"dict": {"a": {"tuple": [None, None]}}}, str.upper)
        {'a': ('A.0', 'A.1')}
    """
    if form is None:
        return leaf(path)
    ((kind, children),) = form.items()
    build = {"tuple": tuple, "list": list, "dict": dict}[kind]
    below = f"{path}." if path else ""
    if build is dict:
        return {name: restored(child, leaf, f"{below}{name}") for name, child in children.items()}
    return build(restored(child, leaf, f"{below}{k}") for k, child in enumerate(children))


def arrays(tree: Tree) -> Tree:
    """Make each leaf a NumPy array of numbers with a leading axis.

    Raises:
        DataError: If a leaf cannot become one.
    """

    def array(path: str, leaf: Any) -> Shaped[np.ndarray, "n ..."]:
        name = f"inputs.{path}" if path else "inputs"
        try:
            found = np.asarray(leaf)
        except Exception as error:
            raise DataError(f"{name} must be an array: {' '.join(str(error).split())[:200]}") from error
        if found.dtype.kind not in "buif":
            raise DataError(
                f"{name} must be an array of numbers with the same shape for every example, not of {_kind(found)}"
            )
        if not found.ndim:
            raise DataError(
                f"{name} must be an array with a leading axis of examples, or a dict, tuple or list of such arrays"
            )
        return found

    by_path = {path: array(path, leaf) for path, leaf in leaves(tree)}
    return restored(structure(tree), by_path.__getitem__)


def _kind(array: Shaped[np.ndarray, "..."]) -> str:
    return {"U": "text", "S": "text", "O": "objects", "c": "complex numbers"}.get(array.dtype.kind, str(array.dtype))
