"""Examples as arrays, and what is done to them whatever their source."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer, Shaped

from train_dynamics.data.trees import DataError, Tree, arrays, leaves, mapped

PIXELS = (np.uint8, np.uint16)
MOST_NAMED = 5


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Dataset:
    """Examples as arrays. Row `n` of each array is example `n`.

    Only inputs and labels are required. Labels may be whole numbers, with or without gaps, or words; their sorted
    distinct values name the classes. If you give class names, whole-number labels are indices into them, and word
    labels must be among them. Labels with a decimal point are not classes but the targets of a regression.

    Attributes:
        inputs: The examples' inputs, as stored: an array with a leading axis of examples, or dicts, tuples and lists of
            such arrays. Images are [n, h, w, channel] with 8 or 16 bits; images given as [n, h, w] get the last axis.
        labels: Class of each example, as the network is told it; or its regression target, one or several numbers.
        ids: Name of each example in its data set. Default: its index.
        class_names: Name of each class. Empty for a regression.
        true_labels: Class of each example before `flip_labels`. None if no label was flipped.
        feature_names: Name of each column of `inputs`, if they are a table, [n, column].
        vocabulary: Text of each token, if `inputs` are token ids.

    Raises:
        DataError: If these do not fit each other.

    Example:
        >>> Dataset(np.zeros((3, 2)), ["b", "a", "b"]).labels
        array([1, 0, 1], dtype=int32)
    """

    inputs: Tree
    labels: Int[np.ndarray, " n"] | Float[np.ndarray, "n *target"]
    ids: Shaped[np.ndarray, " n"]
    class_names: tuple[str, ...]
    true_labels: Int[np.ndarray, " n"] | None
    feature_names: tuple[str, ...]
    vocabulary: tuple[str, ...]

    def __init__(
        self,
        inputs: Tree,
        labels: Any,
        ids: Any = None,
        class_names: Iterable[Any] | None = None,
        true_labels: Int[np.ndarray, " n"] | None = None,
        feature_names: Iterable[Any] = (),
        vocabulary: Iterable[Any] = (),
    ) -> None:
        inputs = arrays(inputs)
        if is_pixels(inputs) and inputs.ndim == 3:
            inputs = inputs[..., None]
        labels, class_names = classes(labels, class_names)
        ids = np.arange(len(labels)) if ids is None else np.asarray(ids)
        found = {
            "inputs": inputs,
            "labels": labels,
            "ids": ids.astype(str) if ids.dtype.kind == "O" else ids,
            "class_names": class_names,
            "true_labels": true_labels,
            "feature_names": tuple(map(str, feature_names)),
            "vocabulary": tuple(map(str, vocabulary)),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)
        self._check_lengths()
        self._check_words()

    def _check_lengths(self) -> None:
        if self.ids.ndim != 1 or self.ids.dtype.kind not in "biufUS":
            raise DataError("ids must be a number or a text for each example")
        lengths = {f"inputs.{path}" if path else "inputs": len(leaf) for path, leaf in leaves(self.inputs)}
        lengths |= {"labels": len(self.labels), "ids": len(self.ids)}
        if self.true_labels is not None:
            lengths["true_labels"] = len(self.true_labels)
        for name, length in lengths.items():
            if length != len(self.labels):
                raise DataError(f"{name} and labels must have the same length, not {length} and {len(self.labels)}")
        if len(lengths) == 2 + (self.true_labels is not None):
            raise DataError("inputs must hold an array")
        if not len(self.labels):
            raise DataError("has no examples in it")

    def _check_words(self) -> None:
        single = self.inputs if isinstance(self.inputs, np.ndarray) else None
        if self.feature_names and (single is None or single.shape[1:] != (len(self.feature_names),)):
            raise DataError(f"has {len(self.feature_names)} feature names, but another number of input columns")
        if self.vocabulary:
            if single is None or single.dtype.kind not in "iu":
                raise DataError("has a vocabulary, but inputs that are not an array of token ids")
            if single.size and not 0 <= single.min() <= single.max() < len(self.vocabulary):
                raise DataError(f"token ids must be from 0 to {len(self.vocabulary) - 1}, the words of the vocabulary")

    @property
    def images(self) -> Integer[np.ndarray, "n h w channel"] | None:
        """The inputs, if they are grey or colour images of 8 or 16 bits; otherwise None."""
        return (
            self.inputs if is_pixels(self.inputs) and self.inputs.ndim == 4 and self.inputs.shape[3] in (1, 3) else None
        )

    @property
    def is_regression(self) -> bool:
        """Whether the labels are regression targets rather than classes."""
        return self.labels.dtype.kind == "f"

    @property
    def num_classes(self) -> int:
        """Number of classes, including those without an example here. 0 for a regression."""
        return len(self.class_names)

    def take(self, indices: Int[np.ndarray, " k"]) -> "Dataset":
        """Return a data set with some of the examples."""
        return dataclasses.replace(
            self,
            inputs=mapped(lambda leaf: leaf[indices], self.inputs),
            labels=self.labels[indices],
            ids=self.ids[indices],
            true_labels=None if self.true_labels is None else self.true_labels[indices],
        )

    def check_finite(self) -> None:
        """Check that all numbers are finite.

        Raises:
            DataError: If one is not. The message names the example.
        """
        for path, leaf in (*leaves(self.inputs), (None, self.labels)):
            if leaf.dtype.kind != "f":
                continue
            broken = ~np.isfinite(leaf.reshape(len(leaf), -1))
            if broken.any():
                n, k = np.argwhere(broken)[0].tolist()
                name = "labels" if path is None else f"inputs.{path}" if path else "inputs"
                column = f", column {self.feature_names[k]}," if self.feature_names and path is not None else ""
                raise DataError(
                    f"{name}{column} of example {n} (id {self.ids[n]}) has {leaf.reshape(len(leaf), -1)[n, k]}, and "
                    "networks need finite numbers; leave such examples out, or fill in the values"
                )


def is_pixels(inputs: Tree) -> bool:
    """Tell whether inputs look like images: integers of 8 or 16 bits with at least two dimensions."""
    return isinstance(inputs, np.ndarray) and inputs.dtype in PIXELS and inputs.ndim >= 3


def classes(
    labels: Any, class_names: Iterable[Any] | None
) -> tuple[Int[np.ndarray, " n"] | Float[np.ndarray, "n *target"], tuple[str, ...]]:
    """Number the classes from 0, and name them. Regression targets are returned without classes.

    Raises:
        DataError: If the labels are neither classes nor targets, or if a label is not among the given class names.

    Example:
        >>> classes([7, 3, 7], None)
        (array([1, 0, 1], dtype=int32), ('3', '7'))
    """
    found = np.asarray(labels)
    if found.dtype.kind == "O" and all(isinstance(label, str) for label in found.flat):
        found = found.astype(str)
    if found.dtype.kind == "S":
        found = np.char.decode(found, "utf-8", "replace")
    if found.ndim == 2 and found.shape[1] == 1 and found.dtype.kind != "f":
        found = found[:, 0]  # as Keras has them
    if found.dtype.kind == "f":
        if not found.ndim:
            raise DataError("there must be one label for each example")
        return found.astype(np.float32), ()
    if found.dtype.kind not in "biuU" or found.ndim != 1:
        raise DataError(
            "labels must be a whole number or a word per example (its class), or numbers with a decimal point "
            f"(its target); these are {found.dtype} of shape {found.shape}"
        )
    if class_names is None:
        values, places = np.unique(found, return_inverse=True)
        return places.astype(np.int32), tuple(map(str, values.tolist()))
    names = tuple(map(str, class_names))
    if found.dtype.kind == "U":
        place = {name: k for k, name in enumerate(names)}
        unknown = np.array([label not in place for label in found.tolist()], bool)
        places = np.array([place.get(label, -1) for label in found.tolist()], np.int32)
        known = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
        right = f"must be among the classes {known}"
    else:
        unknown, places = (found < 0) | (found >= len(names)), found.astype(np.int32)
        right = f"must be from 0 to {len(names) - 1}"
    if unknown.any():
        n = int(unknown.argmax())
        raise DataError(f"labels {right}, but example {n} has {found[n]}")
    return places, names


def standardise(images: Integer[np.ndarray, "*shape"], mean: float, std: float) -> Float[np.ndarray, "*shape"]:
    """Scale pixels of 8 or 16 bits to [0, 1], subtract the mean and divide by the standard deviation, in float32.

    Example:
        >>> standardise(np.array([0, 255], np.uint8), mean=0.5, std=0.25)
        array([-2.,  2.], dtype=float32)
    """
    most = np.float32(np.iinfo(images.dtype).max)
    with np.errstate(over="ignore"):  # training says so itself where the loss is not finite
        return (images.astype(np.float32) / most - np.float32(mean)) / np.float32(std)


def subset(num_available: int, num_examples: int | None, seed: int) -> Int[np.ndarray, " n"]:
    """Draw indices of `num_examples` examples uniformly without replacement, in ascending order.

    Example:
        >>> subset(3, None, seed=0)
        array([0, 1, 2])
    """
    if num_examples is None:
        return np.arange(num_available)
    return np.sort(np.random.default_rng(seed).choice(num_available, num_examples, replace=False))


def flip_labels(labels: Int[np.ndarray, " n"], num_classes: int, share: float, seed: int) -> Int[np.ndarray, " n"]:
    """Give exactly round(share * n) examples another label, drawn uniformly from the other classes.

    This is symmetric label noise as in Zhang et al., "Understanding Deep Learning Requires Rethinking Generalization"
    (2017), except that the share is exact, and a flipped label always changes. It is *not* the noise that people make,
    who confuse classes that look alike. Which examples are flipped, and how far along the classes each moves, depends
    only on `seed` and `n`. So the labels that a smaller share flips, a larger share flips in the same way.

    Args:
        labels: Class of each example.
        num_classes: Number of classes, two or more.
        share: Share of the examples, in [0, 1).
        seed: Seed of the draw.

    Example:
        >>> flip_labels(np.zeros(6, np.int32), num_classes=3, share=0.5, seed=0)
        array([0, 1, 0, 2, 1, 0], dtype=int32)
    """
    rng = np.random.default_rng((seed, 1))  # apart from the draw of the examples, which has the seed alone
    order, steps = rng.permutation(len(labels)), rng.integers(1, num_classes, len(labels))
    flipped = order[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[flipped] = (labels[flipped] + steps[flipped]) % num_classes
    return noisy
