"""How a recording's examples are stored: one file per array, and the rest in the header."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

from train_dynamics.data.arrays import Dataset
from train_dynamics.data.trees import leaves, restored, structure

LISTS = ("feature_names", "vocabulary")


def example_arrays(dataset: Dataset) -> dict[str, Shaped[np.ndarray, "n ..."]]:
    """Return the arrays of a data set by the names of their files."""
    of_labels = {"labels": dataset.labels, "ids": dataset.ids, "true_labels": dataset.true_labels}
    rest = {name: array for name, array in of_labels.items() if array is not None}
    if dataset.images is not None:
        return {"images": dataset.images, **rest}
    return {**{_file(path): leaf for path, leaf in leaves(dataset.inputs)}, **rest}


def example_header(dataset: Dataset) -> dict[str, Any]:
    """Return what a recording's header stores about its examples. For images, only their classes."""
    header = {name: list(getattr(dataset, name)) for name in ("class_names", *LISTS) if getattr(dataset, name)}
    if not isinstance(dataset.inputs, np.ndarray):
        header["inputs"] = structure(dataset.inputs)
    return {"class_names": [], **header}


def read_examples(header: dict[str, Any], read: Callable[[str], Shaped[np.ndarray, "n ..."]]) -> Dataset:
    """Make a data set from what `example_arrays` and `example_header` returned.

    Args:
        header: The header of a recording.
        read: Function that reads an array by the name of its file.
    """
    names = header["dataset"]
    form = header.get("inputs")
    return Dataset(
        read("images") if "images" in names else restored(form, lambda path: read(_file(path))),
        read("labels"),
        read("ids"),
        tuple(header["class_names"]),
        read("true_labels") if "true_labels" in names else None,
        **{name: tuple(header.get(name, ())) for name in LISTS},
    )


def check_example_header(header: dict[str, Any]) -> None:
    """Check that what a header says about the examples is well formed.

    Raises:
        ValueError: If it is not.
    """
    if not all(isinstance(header.get(name, []), list) for name in LISTS):
        raise ValueError("feature names or vocabulary are malformed")
    try:
        files = [_file(path) for path, _ in leaves(restored(header.get("inputs"), lambda path: path))]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the structure of the inputs is malformed") from error
    if "images" not in header["dataset"] and not set(files) <= set(header["dataset"]):
        raise ValueError("the inputs are not among the files of the data set")


def _file(path: str) -> str:
    """Return the file name of an array of the inputs."""
    return f"inputs.{path}" if path else "inputs"
