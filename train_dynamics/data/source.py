"""What each kind of data set provides: its number of examples, and a function to read some of them."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset

PART = re.compile(r"([\w.-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


Parts = list[tuple[str, Int[np.ndarray, " _"]]]
"""Examples: of each split, in order, which."""


class Source(NamedTuple):
    """A data set that has not been read yet; only its size is known.

    Attributes:
        sizes: Number of examples of each split.
        read: Function that reads some examples.
    """

    sizes: dict[str, int]
    read: Callable[[Parts], Dataset]


def joined(parts: Parts) -> Int[np.ndarray, " k"]:
    """Return the indices of examples in a data set that has only one split."""
    return np.concatenate([indices for _, indices in parts])


def of_arrays(dataset: Dataset) -> Source:
    """Make a source, with the single split `train`, from a data set that was already read."""
    return Source({"train": len(dataset.labels)}, lambda parts: dataset.take(joined(parts)))


def parts_of(config: StudyConfig, sizes: dict[str, int]) -> Parts:
    """List the examples that `--split` asks for, as indices into each split that it names.

    Ranges are written as in TFDS: from and to, in examples or percent of the split. Negative bounds count from its end.

    Raises:
        InputError: If there is no such split, or it is malformed or empty.

    Example:
        >>> parts_of(StudyConfig(split="train[:50%]+test"), {"train": 4, "test": 1})
        [('train', array([0, 1])), ('test', array([0]))]
    """
    found = []
    for part in config.split.split("+"):
        match = PART.fullmatch(part.strip())
        if match is None:
            raise InputError.flag(
                "split",
                config.split,
                "must be a split or parts of splits, for example train[:50%] or train[100:200]+test",
            )
        name, start, stop = match.groups()
        if name not in sizes:
            splits = ", ".join(sorted(sizes))
            raise InputError.flag("split", config.split, f"{config.dataset} has the splits {splits}")
        chosen = slice(_place(start, sizes[name]), _place(stop, sizes[name]))
        found.append((name, np.arange(max(sizes[name], 0))[chosen]))
    if not sum(len(indices) for _, indices in found):
        raise InputError.flag("split", config.split, f"{config.dataset} has no examples in it")
    return found


def _place(bound: str | None, size: int) -> int | None:
    """Read a bound of a range, rounded to the nearest example."""
    if bound is None:
        return None
    return round(int(bound[:-1]) * size / 100) if bound.endswith("%") else int(bound)
