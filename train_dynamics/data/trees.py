"""Nested inputs: dicts, tuples and lists of arrays, walked without JAX, which what reads a recording does without."""

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
    """Something wrong with data, wherever they come from."""


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """List the leaves of a tree, each with its path: keys and places joined by dots, empty of a tree that is a leaf.

    Raises:
        DataError: If a dict has keys that can't stand in the name of a file.

    Example:
        >>> list(leaves({"a": (1, 2), "b": 3}))
        [('a.0', 1), ('a.1', 2), ('b', 3)]
    """
    if type(tree) in (tuple, list):
        children = enumerate(tree)
    elif type(tree) is dict:
        if odd := [key for key in tree if not (isinstance(key, str) and KEY.fullmatch(key))]:
            raise DataError(f"the names of inputs must be of letters, digits, - and _, unlike {odd[0]!r}")
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
    """Write down how a tree is nested, as JSON can hold it; its leaves become null.

    Example:
        >>> structure({"a": (1, 2)})
        {'dict': {'a': {'tuple': [None, None]}}}
    """
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [structure(child) for child in tree]}
    return {"dict": {name: structure(child) for name, child in tree.items()}} if type(tree) is dict else None


def restored(form: Any, leaf: Callable[[str], Any], path: str = "") -> Tree:
    """Build a tree of a structure, asking for each leaf by its path.

    Raises:
        KeyError, TypeError, ValueError: If `form` is not what `structure` gives.

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
        DataError: If one is none.
    """

    def array(path: str, leaf: Any) -> Shaped[np.ndarray, "n ..."]:
        name = f"inputs.{path}" if path else "inputs"
        try:
            found = np.asarray(leaf)
        except Exception as error:
            raise DataError(f"{name} must be an array: {' '.join(str(error).split())[:200]}") from error
        if found.dtype.kind not in "buif":
            raise DataError(f"{name} must be an array of numbers of one shape for every example, not of {_kind(found)}")
        if not found.ndim:
            raise DataError(f"{name} must have a leading axis of examples; what is no array is a dict, tuple or list")
        return found

    by_path = {path: array(path, leaf) for path, leaf in leaves(tree)}
    return restored(structure(tree), by_path.__getitem__)


def _kind(array: Shaped[np.ndarray, "..."]) -> str:
    return {"U": "text", "S": "text", "O": "objects", "c": "complex numbers"}.get(array.dtype.kind, str(array.dtype))
