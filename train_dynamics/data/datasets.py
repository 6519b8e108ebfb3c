"""Reads the examples that a configuration asks for, wherever they come from."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from train_dynamics.config import InputError, StudyConfig, pluralise
from train_dynamics.data.arrays import Dataset, flip_labels, standardise, subset
from train_dynamics.data.folder import folder_source
from train_dynamics.data.function import function_source
from train_dynamics.data.images import of_size
from train_dynamics.data.imports import names_code
from train_dynamics.data.npz import npz_source
from train_dynamics.data.source import Parts, Source, parts_of
from train_dynamics.data.table import table_source
from train_dynamics.data.tfds import is_embedded, tfds_source
from train_dynamics.data.trees import DataError

__all__ = ["Dataset", "flip_labels", "load_dataset", "standardise", "subset"]

FILES = {".npz": npz_source, ".csv": table_source, ".parquet": table_source}


def load_dataset(config: StudyConfig) -> Dataset:
    """Read the examples that a configuration asks for. TFDS downloads the data set if necessary.

    Raises:
        InputError: If the data set or the split does not exist, has too few examples, or is malformed.
    """
    try:
        source = source_of(config)(config)
        dataset = of_size(_drawn(config, source), config)
        dataset.check_finite()
    except DataError as error:
        raise InputError.flag("dataset", config.dataset, str(error)) from error
    return with_noise(dataset, config)


def source_of(config: StudyConfig) -> Callable[[StudyConfig], Source]:
    """Find out from its name what kind of data set is asked for.

    Raises:
        InputError: If the name looks like a file or directory, but there is none, or none of a known kind.
    """
    name = config.dataset
    if is_embedded(name):
        return tfds_source
    if names_code(name):
        return function_source
    path = Path(name)
    if path.is_dir() and config.data_dir is None:  # without which TFDS would not look here
        return folder_source
    if path.is_file() and path.suffix.lower() not in FILES:
        kinds = f"a directory of images, or a file that ends in {', '.join(FILES)}"
        code = f"; of Python code, name the function: {name}:FUNCTION" if path.suffix == ".py" else ""
        raise InputError.flag("dataset", name, f"must be {kinds}{code}")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or path.suffix.lower() in FILES):
        raise InputError.flag("dataset", name, f"there is no such file or directory in {os.getcwd()}")
    return FILES.get(path.suffix.lower(), tfds_source)


def _drawn(config: StudyConfig, source: Source) -> Dataset:
    """Read the examples of `--split`, or the `--num_examples` drawn from them."""
    parts = parts_of(config, source.sizes)
    available = sum(len(indices) for _, indices in parts)
    if config.num_examples is not None and config.num_examples > available:
        raise InputError.flag(
            "num_examples",
            config.num_examples,
            f"{config.dataset} has {pluralise(available, 'example')} in split {config.split}",
        )
    drawn, first = subset(available, config.num_examples, config.subset_seed), 0
    chosen: Parts = []
    for name, indices in parts:
        here = drawn[(drawn >= first) & (drawn < first + len(indices))] - first
        chosen.append((name, indices[here]))
        first += len(indices)
    return source.read(chosen)


def with_noise(dataset: Dataset, config: StudyConfig) -> Dataset:
    """Flip the share of the labels that `--label_noise` asks for.

    Raises:
        InputError: If there are fewer than two classes, or if the share is less than one example.
    """
    share, labels = config.label_noise, dataset.labels
    if not share:
        return dataset
    if dataset.num_classes < 2:
        has = "numbers to predict, and no classes" if dataset.is_regression else "one class, and no other to flip to"
        raise InputError.flag("label_noise", share, f"{config.dataset} has {has}")
    if not round(share * len(labels)):
        raise InputError.flag("label_noise", share, f"flips none of {len(labels)} labels; choose 0 or a larger share")
    noisy = flip_labels(labels, dataset.num_classes, share, config.subset_seed)
    return dataclasses.replace(dataset, labels=noisy, true_labels=labels)
