"""The examples of a user's training loop, and the data set that is stored from them."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from train_dynamics.config import InputError
from train_dynamics.data.arrays import Dataset
from train_dynamics.gradients.examples import count


class Given:
    """The examples as given. Once the network's outputs are known, they are turned into a data set."""

    def __init__(
        self, examples: Any, labels: Any, ids: Any, class_names: Iterable[Any] | None, dataset: Dataset | None
    ) -> None:
        self._dataset = dataset
        if dataset is not None:
            labels, ids, class_names = dataset.labels, dataset.ids, dataset.class_names or None
        pair = type(examples) in (tuple, list) and len(examples) == 2 and bool(getattr(examples[1], "ndim", 0))
        if lists := [leaf for leaf in jax.tree.leaves(examples) if not hasattr(leaf, "ndim")]:
            raise InputError(
                f"examples must be arrays, but hold a {type(lists[0]).__name__}; convert lists with np.array"
            )
        # Copies: a loop may shuffle or augment its own in place.
        self.examples = examples = jax.tree.map(np.array, examples)
        if words := [leaf for leaf in jax.tree.leaves(examples) if leaf.dtype.kind in "USO"]:
            raise InputError(
                f"examples hold words or objects ({words[0].dtype}), which no loss can take; give whole numbers here, "
                "and words as labels="
            )
        self._inputs, self._ids = examples[0] if pair else examples, ids
        self._class_names = None if class_names is None else list(map(str, class_names))
        if twice := [name for k, name in enumerate(self._class_names or []) if name in self._class_names[:k]]:
            raise InputError(f"class_names: {twice[0]} is there twice, and each class needs a name of its own")
        if pair and labels is not None and dataset is None:
            _check_same(np.asarray(labels), examples[1])
        if pair and labels is not None and class_names is None:
            self._class_names = _named_classes(np.asarray(labels), examples[1])
        self._are_given = labels is not None or pair
        labels = examples[1] if pair and labels is None else labels
        self._labels = np.zeros(count(self.examples), np.float32) if labels is None else np.asarray(labels)
        self._check()

    def _check(self) -> None:
        """Check that they can be read, before there is a network."""
        (self._dataset or Dataset(self._inputs, self._labels, self._ids, self._class_names)).check_finite()
        if self._dataset is not None and len(self._dataset.labels) != count(self.examples):
            raise InputError(
                f"dataset has {len(self._dataset.labels)} examples, and examples has {count(self.examples)}"
            )

    def dataset(self, outputs: tuple[int, ...] | None, log: Callable[[str], None]) -> Dataset:
        """Make the data set.

        Args:
            outputs: Shape of the network's outputs; None if they are not a single array. If there is one number per
                class, the labels are classes. Otherwise they only colour the figures, and no example is right or wrong.
            log: Function that prints a line for the user.
        """
        if self._dataset is not None and (outputs == (self._dataset.num_classes,) or self._dataset.is_regression):
            return self._dataset
        labels, names = self._labels, self._class_names
        if outputs and len(outputs) == 1 and outputs[0] > 1:  # of these classes some may have no example
            if names is None and labels.dtype.kind in "iu" and 0 <= labels.min() <= labels.max() < outputs[0]:
                names = range(outputs[0])
            elif names is not None:
                names = [*names, *map(str, range(len(names), outputs[0]))]
        found = Dataset(self._inputs, labels, self._ids, names)
        if outputs == (found.num_classes,) and names is None:
            classes = ", ".join(found.class_names[:5]) + (", ..." if found.num_classes > 5 else "")
            log(f"The outputs are taken to stand for the classes {classes}, in this order; if not, give class_names")
        if found.is_regression and self._are_given:
            log(
                f"The labels are decimal numbers ({self._labels.dtype}), so they are taken for regression targets, "
                "without accuracy and predictions; for classes, give whole numbers as labels="
            )
        if not self._are_given and outputs and outputs[-1] > 1:
            log("No labels were given, so there will be no accuracy and no predictions; give them with labels=")
        if not found.num_classes or outputs == (found.num_classes,):
            return found
        shape = "no single array" if outputs is None else f"of shape {list(outputs)}"
        log(
            f"The outputs are {shape}, not one number for each of {found.num_classes} classes, so there will be no "
            "accuracy and no predictions"
        )
        return Dataset(self._inputs, found.labels.astype(np.float32), self._ids)


def _check_same(labels: np.ndarray, of_loss: np.ndarray) -> None:
    """Check that whole-number labels are the same as those that the loss gets.

    Raises:
        InputError: If they differ.
    """
    if labels.dtype.kind not in "iu" or of_loss.dtype.kind not in "iu" or labels.shape != of_loss.shape:
        return
    if (labels != of_loss).any():
        n = int(np.argmax((labels != of_loss).reshape(len(labels), -1).any(axis=1)))
        raise InputError(
            f"labels: example {n} has {labels[n]}, but the second of the examples is {of_loss[n]}; leave labels out, "
            "or give the examples as a dict if their second part is not a label"
        )


def _named_classes(words: np.ndarray, labels: np.ndarray) -> list[str] | None:
    """Name classes by the words given beside their numbers. None if there are no such words."""
    if words.dtype.kind not in "UO" or labels.dtype.kind not in "iu" or words.shape != labels.shape:
        return None
    names = [str(k) for k in range(labels.max() + 1)]
    for label, word in set(zip(labels.tolist(), words.tolist(), strict=True)):
        if names[label] not in (str(label), word):
            raise InputError(f"labels: class {label} of the examples is called {names[label]} and {word}")
        names[label] = word
    return names
