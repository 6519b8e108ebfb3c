"""Computes what the network sees from inputs as they are stored."""

import numpy as np
from jaxtyping import Float, Shaped

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import PIXELS, Dataset, is_pixels, standardise
from train_dynamics.data.trees import Tree, leaves, restored, structure

LARGEST = np.iinfo(np.int32).max


def network_inputs(dataset: Dataset, config: StudyConfig, like: Dataset | None = None) -> Tree:
    """Compute what the network sees, as `--input_scaling` says: float32, or int32 for whole numbers.

    Args:
        dataset: The examples.
        config: The configuration.
        like: The examples whose columns give mean and standard deviation. None uses `dataset` itself.

    Returns:
        A tree like `dataset.inputs`, of arrays of the same shapes.

    Raises:
        InputError: If a whole number does not fit into 32 bits.
    """
    reference = dict(leaves((like or dataset).inputs))

    def seen(path: str, leaf: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
        kind, whole = config.input_scaling, leaf.dtype.kind in "iu"
        if kind == "auto":
            kind = "pixels" if is_pixels(leaf) else "columns" if dataset.feature_names else "none"
        if kind == "pixels" and leaf.dtype in PIXELS:
            return standardise(leaf, config.pixel_mean, config.pixel_std)
        if kind == "columns":
            return standard_columns(leaf, reference[path])
        if whole and leaf.size and max(-int(leaf.min()), int(leaf.max())) > LARGEST:
            raise InputError(f"inputs hold the whole number {leaf.max()}; the largest allowed is {LARGEST}")
        with np.errstate(over="ignore"):  # training says so itself where the loss is not finite
            return leaf.astype(np.int32 if whole else np.float32)

    found = {path: seen(path, leaf) for path, leaf in leaves(dataset.inputs)}
    return restored(structure(dataset.inputs), found.__getitem__)


def standard_columns(
    columns: Shaped[np.ndarray, "n ..."], reference: Shaped[np.ndarray, "m ..."]
) -> Float[np.ndarray, "n ..."]:
    """Scale each column to mean 0 and standard deviation 1, as in the reference; a constant one to 0.

    Example:
        >>> table = np.array([[1.0, 5.0], [3.0, 5.0]])
        >>> standard_columns(table, table)
        array([[-1.,  0.],
               [ 1.,  0.]], dtype=float32)
    """
    exact = reference.astype(np.float64)
    mean, std = exact.mean(axis=0), exact.std(axis=0)
    varies = exact.min(axis=0) != exact.max(axis=0)  # rounding leaves a little of a constant column
    return np.divide(columns - mean, std, out=np.zeros(columns.shape), where=varies).astype(np.float32)


def flat_inputs(dataset: Dataset, config: StudyConfig, like: Dataset | None = None) -> Float[np.ndarray, "n ..."]:
    """Compute what the network sees, for the MLP, which takes one array of numbers and outputs classes.

    Raises:
        InputError: If the MLP cannot take these examples.
    """
    check_flat(dataset, config)
    return network_inputs(dataset, config, like)


def check_flat(dataset: Dataset, config: StudyConfig) -> None:
    """Check that the MLP can be trained on some examples.

    Raises:
        InputError: If it cannot.
    """
    what = config.dataset
    if not isinstance(dataset.inputs, np.ndarray):
        names = ", ".join(path for path, _ in leaves(dataset.inputs))
        raise InputError.flag("dataset", what, f"has the inputs {names}, which need a --model; the MLP takes one array")
    if not dataset.inputs[0].size:
        raise InputError.flag("dataset", what, f"has inputs of shape {dataset.inputs.shape}, with nothing in them")
    if network_inputs(dataset.take(np.arange(1)), config).dtype.kind == "f":
        return
    if dataset.vocabulary:
        raise InputError.flag("dataset", what, "has token ids, which need a --model that embeds them; the MLP does not")
    raise InputError.flag(
        "dataset",
        what,
        f"has whole numbers of {dataset.inputs.dtype}, but the MLP needs decimal numbers: --input_scaling=columns "
        "converts counts and measurements, --input_scaling=pixels converts 8 or 16 bits; token ids need a --model",
    )
