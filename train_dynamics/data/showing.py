"""Shows examples to people: as pictures, or else as a few lines of text."""

import textwrap

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from train_dynamics.data.arrays import Dataset
from train_dynamics.data.trees import leaves

WIDTH, LINES = 26, 6  # characters, and lines, of a text
Shown = UInt8[np.ndarray, "_ h w channel"] | list[str]


def shown(dataset: Dataset, indices: Int[np.ndarray, " m"]) -> Shown:
    """Return examples as 8-bit pictures if they are images, or else as texts."""
    if has_pictures(dataset):
        return _pictures(dataset.inputs, indices)
    return [example_text(dataset, int(n)) for n in indices]


def has_pictures(dataset: Dataset) -> bool:
    """Tell whether the inputs can be shown as pictures: images, or decimal numbers in the shape of images."""
    inputs = dataset.inputs
    if dataset.images is not None:
        return True
    numbers = isinstance(inputs, np.ndarray) and inputs.dtype.kind == "f"
    return numbers and inputs.ndim == 4 and inputs.shape[3] in (1, 3)


def _pictures(
    inputs: Shaped[np.ndarray, "n h w channel"], indices: Int[np.ndarray, " m"]
) -> UInt8[np.ndarray, "m h w channel"]:
    """Scale images to 8 bits, from the smallest value to the largest."""
    if inputs.dtype == np.uint8:
        return inputs[indices]
    least, most = (0, int(inputs.max())) if inputs.dtype == np.uint16 else (float(inputs.min()), float(inputs.max()))
    scaled = (inputs[indices].astype(np.float64) - least) / max(most - least, 1e-30)
    return np.round(255 * scaled).astype(np.uint8)


def example_text(dataset: Dataset, n: int) -> str:
    """Describe an example in a few short lines: a table row, a text of tokens, or its numbers.

    Example:
        >>> table = Dataset(np.array([[31.0, 1.0, 0.0]]), [0], feature_names=("age", "colour=red", "colour=blue"))
        >>> print(example_text(table, 0))
        age 31
        colour=red
    """
    if dataset.vocabulary:
        words = [dataset.vocabulary[token] for token in dataset.inputs[n].ravel()]
        between = "" if max(map(len, dataset.vocabulary)) == 1 else " "
        lines = textwrap.wrap(between.join(words), WIDTH) or ["(no text)"]
    elif dataset.feature_names:
        named = zip(dataset.feature_names, dataset.inputs[n].tolist(), strict=True)
        lines = [line for name, value in named if (line := _cell(name, value))]
    else:
        lines = [line for path, leaf in leaves(dataset.inputs) for line in _numbers(path, leaf[n])]
    cut = [*lines[: LINES - 1], f"... {len(lines) - LINES + 1} more lines"] if len(lines) > LINES else lines
    return "\n".join(textwrap.shorten(line, WIDTH, placeholder="...") if len(line) > WIDTH else line for line in cut)


def _cell(name: str, value: float) -> str:
    """Write a table cell. A column that came from words is shown as the word."""
    if "=" in name and value in (0, 1):
        return name if value else ""
    return f"{name} {value:.4g}"


def _numbers(path: str, values: Shaped[np.ndarray, "..."]) -> list[str]:
    """Write the numbers of an array; if it has several dimensions, its shape and range."""
    name = f"{path}: " if path else ""
    if values.ndim <= 1:
        return textwrap.wrap(name + " ".join(f"{value:.3g}" for value in np.atleast_1d(values)[: WIDTH * LINES]), WIDTH)
    size = " x ".join(map(str, values.shape))
    return [f"{name}{size} numbers", *([f"{values.min():.3g} to {values.max():.3g}"] if values.size else [])]
