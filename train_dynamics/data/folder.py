"""Data sets that are a directory with one sub-directory of images per class."""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from train_dynamics.config import StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.images import decoded, stacked
from train_dynamics.data.source import Parts, Source, joined
from train_dynamics.data.trees import DataError

SUFFIXES = (".png", ".jpg", ".jpeg")


def folder_source(config: StudyConfig) -> Source:
    """List the images of a directory. Each sub-directory is a class, and its files are the examples.

    Examples are named by their paths in the directory, such as `cat/7.png`, and sorted by them.

    Raises:
        DataError: If there are no images, or if a sub-directory has none.
    """
    root = Path(config.dataset)
    try:
        of_class = {
            entry.name: sorted(file for file in entry.iterdir() if file.suffix.lower() in SUFFIXES)
            for entry in sorted(root.iterdir())
            if entry.is_dir() and not entry.name.startswith(".")
        }
        empty = [name for name, files in of_class.items() if not files]
        below = [name for name in empty if any(entry.is_dir() for entry in (root / name).iterdir())]
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    if below:
        raise DataError(
            f"must have one sub-directory of images per class, but {below[0]} has directories instead of images; "
            f"did you mean {root / below[0]}?"
        )
    if empty:
        raise DataError(f"has no PNG or JPEG images in {empty[0]}; move that directory away, or put images into it")
    if not of_class:
        raise DataError("must have one sub-directory of PNG or JPEG images per class, but has no sub-directory")
    files = [file for of_one in of_class.values() for file in of_one]
    labels = np.repeat(np.arange(len(of_class), dtype=np.int32), [len(of_one) for of_one in of_class.values()])

    def read(parts: Parts) -> Dataset:
        indices = joined(parts)
        chosen = [files[n] for n in indices]
        ids = np.array([file.relative_to(root).as_posix() for file in chosen])
        return Dataset(stacked([_image(file) for file in chosen], config), labels[indices], ids, tuple(of_class))

    return Source({"train": len(files)}, read)


def _image(file: Path) -> Shaped[np.ndarray, "h w channel"]:
    try:
        return decoded(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read: {file}: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"cannot be read: {file} {error}") from error
