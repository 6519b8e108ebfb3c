"""Turns image files into arrays, and images of any size into one size, with OpenCV, as TFDS does."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Shaped

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.trees import DataError


def decoded(content: bytes) -> Shaped[np.ndarray, "h w channel"]:
    """Decode a PNG or JPEG file with one or three channels of 8 or 16 bits. Transparency is dropped.

    Raises:
        DataError: If it is damaged.
    """
    import cv2

    try:
        with silent_libraries():
            found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        found = None
    if found is None:
        raise DataError("is damaged, or not a PNG or JPEG image")
    return found[..., None] if found.ndim == 2 else found[..., ::-1]


def stacked(images: Sequence[Shaped[np.ndarray, "_ _ _"]], config: StudyConfig) -> Shaped[np.ndarray, "n h w c"]:
    """Make one array of images, resized if `--image_size` is given. If some are in colour, grey ones become colour.

    Raises:
        InputError: If they differ in size, and no `--image_size` is given.
    """
    if config.image_size is not None:
        images = [resized(image, config.image_size) for image in images]
    shapes = {image.shape[:2] for image in images}
    if len(shapes) > 1:
        least, most = (f"{shape[0]} x {shape[1]}" for shape in (min(shapes), max(shapes)))
        raise InputError.flag(
            "dataset",
            config.dataset,
            f"has images of different sizes, for example {least} and {most} pixels; give one size for all of them, "
            "for example --image_size=32",
        )
    channels = max(image.shape[2] for image in images)
    deepest = max((image.dtype for image in images), key=lambda dtype: dtype.itemsize)
    return np.stack([_like(image, channels, deepest) for image in images])


def _like(image: Shaped[np.ndarray, "h w channel"], channels: int, dtype: np.dtype) -> Shaped[np.ndarray, "h w _"]:
    """Give a grey image three channels, or an 8-bit image 16 bits, if other images have these."""
    if image.dtype != dtype and dtype == np.uint16:
        image = image.astype(np.uint16) * 257
    return image if image.shape[2] == channels else np.repeat(image[..., :1], channels, axis=2)


def resized(image: Shaped[np.ndarray, "h w channel"], size: int) -> Shaped[np.ndarray, "size size channel"]:
    """Resize an image to a square, by averaging areas to shrink it, by interpolation to enlarge it."""
    import cv2

    if image.shape[:2] == (size, size):
        return image
    method = cv2.INTER_AREA if min(image.shape[:2]) >= size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=method).reshape(size, size, -1)


def of_size(dataset: Dataset, config: StudyConfig) -> Dataset:
    """Resize the images of a data set as `--image_size` says.

    Raises:
        InputError: If it has no images.
    """
    if config.image_size is None:
        return dataset
    if dataset.images is None:
        raise InputError.flag("image_size", config.image_size, f"{config.dataset} has no images to resize")
    if dataset.images.shape[1:3] == (config.image_size, config.image_size):
        return dataset
    return dataclasses.replace(dataset, inputs=stacked(list(dataset.images), config))


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """Drop warnings that libraries write about damaged images; such damage is raised as an error anyway."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed: nothing is written
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
