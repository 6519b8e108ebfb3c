"""Data sets in one NumPy `.npz` file."""

import zipfile
from pathlib import Path

import numpy as np

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.source import Source, of_arrays
from train_dynamics.data.trees import DataError

MORE = ("ids", "class_names", "feature_names", "vocabulary")


def npz_source(config: StudyConfig) -> Source:
    """Read a `.npz` file: arrays `inputs` and `labels`, unless `--inputs` and `--labels` name others.

    Arrays named `ids`, `class_names`, `feature_names` and `vocabulary` are used under these names, if they exist. If
    `--inputs` has several names, the inputs are a dict of arrays.

    Raises:
        InputError: If it cannot be read, or lacks these arrays.
    """
    try:
        with np.load(Path(config.dataset), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _wanted(config, file.files)}
    except InputError:
        raise
    except ValueError as error:
        pickled = "allow_pickle" in str(error)
        why = (
            "it holds Python objects, which are not supported; store arrays of numbers or text"
            if pickled
            else str(error)
        )
        raise DataError(f"cannot be read: {why}") from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    names = _inputs(config)
    inputs = arrays[names[0]] if len(names) == 1 else {name: arrays[name] for name in names}
    more = {name: arrays[name] for name in MORE if name in arrays}
    return of_arrays(Dataset(inputs, arrays[config.labels or "labels"], **more))


def _inputs(config: StudyConfig) -> list[str]:
    return config.inputs.split(",") if config.inputs else ["inputs"]


def _wanted(config: StudyConfig, there: list[str]) -> list[str]:
    """Choose which of the arrays in the file to read."""
    chosen = {"inputs": _inputs(config), "labels": [config.labels or "labels"]}
    for flag, names in chosen.items():
        for name in names:
            if name not in there:
                listed = ", ".join(there) or "no arrays"
                given = getattr(config, flag)
                message = f"{config.dataset} has {listed}; choose with --{flag}=NAME"
                raise InputError.flag(flag, given or None, message if given else f"there is no array {name}: {message}")
    wanted = [*chosen["inputs"], *chosen["labels"]]
    return wanted + [name for name in MORE if name in there and name not in wanted]
