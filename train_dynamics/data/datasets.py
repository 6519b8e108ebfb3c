"""Image classification data sets by TFDS name, as plain arrays; TensorFlow is not needed to read a prepared one."""

import contextlib
import dataclasses
import io
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from train_dynamics.config import InputError, StudyConfig, counted

EMBEDDED = Path(__file__).parent
PROBE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples as arrays; row `n` of each is example `n`.

    Attributes:
        images: Pixels as stored, 0 to 255.
        labels: Class of each example, as the network is told it.
        ids: Name of each example in its data set: its `id` feature, or else its index in the split.
        class_names: Name of each class.
        true_labels: Class of each example before `flip_labels`; None if no label was flipped.
    """

    images: UInt8[np.ndarray, "n h w channel"]
    labels: Int[np.ndarray, " n"]
    ids: Shaped[np.ndarray, " n"]
    class_names: tuple[str, ...]
    true_labels: Int[np.ndarray, " n"] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, of which some may have no example here."""
        return len(self.class_names)


def standardise(images: UInt8[np.ndarray, "*shape"], mean: float, std: float) -> Float[np.ndarray, "*shape"]:
    """Scale pixels to [0, 1], subtract the mean and divide by the standard deviation, in float32.

    Example:
        >>> standardise(np.array([0, 255], np.uint8), mean=0.5, std=0.25)
        array([-2.,  2.], dtype=float32)
    """
    with np.errstate(over="ignore"):  # training says so itself where the loss is not finite
        return (images.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)


def network_inputs(dataset: Dataset, config: StudyConfig) -> Any:
    """Give the inputs as a network sees them."""
    return standardise(dataset.images, config.pixel_mean, config.pixel_std)


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
    """Give exactly round(share * n) examples another label, drawn uniformly from the other classes: label noise.

    Symmetric noise, as in Zhang et al., "Understanding Deep Learning Requires Rethinking Generalization" (2017), but an
    exact share, and never the label that was there; it is *not* noise of the kind people make, who confuse classes
    that look alike. Which examples, and how far along the classes each moves, depends on `seed` and `n` alone: what a
    smaller share flips, a larger one flips to the same.

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


def load_dataset(config: StudyConfig) -> Dataset:
    """Read the examples that a configuration asks for, downloading the data set if TFDS has to.

    Raises:
        InputError: If the data set, the split or so many examples do not exist, or it is not one of images with a
            single class label each.
    """
    builder = _builder(config)
    if config.split not in builder.info.splits:
        splits = ", ".join(sorted(builder.info.splits))
        raise InputError.flag("split", config.split, f"{config.dataset} has the splits {splits}")
    available = builder.info.splits[config.split].num_examples
    if available < 1:
        raise InputError.flag("split", config.split, f"{config.dataset} has no examples in it")
    if config.num_examples is not None and config.num_examples > available:
        raise InputError.flag(
            "num_examples",
            config.num_examples,
            f"{config.dataset} has {counted(available, 'example')} in split {config.split}",
        )
    indices = subset(available, config.num_examples, config.subset_seed)
    if len(indices) < config.batch_size:
        raise InputError.flag(
            "batch_size", config.batch_size, f"must be at most the {counted(len(indices), 'example')}"
        )
    class_names = _class_names(config, builder)
    try:
        with _silent_libraries():
            rows = builder.as_data_source(split=config.split).__getitems__(indices.tolist())
    except Exception as error:
        # OpenCV returns None for an image that it cannot decode, and TFDS then uses an attribute of it; or it raises.
        damaged = "'NoneType' object has no attribute" in str(error) or type(error).__module__ == "cv2"
        why = "an image in it is damaged" if damaged else _line(error)
        raise InputError.flag("dataset", config.dataset, f"cannot be read in {builder.data_dir}: {why}") from error

    shapes = {row["image"].shape for row in rows}
    if len(shapes) > 1:
        smallest, largest = min(shapes), max(shapes)
        raise InputError.flag(
            "dataset",
            config.dataset,
            f"needs images of one size, but has some of {smallest} and some of {largest}",
        )
    labels = np.array([row["label"] for row in rows], np.int32)
    if (unknown := (labels < 0) | (labels >= len(class_names))).any():
        raise InputError.flag(
            "dataset",
            config.dataset,
            f"must have labels from 0 to {len(class_names) - 1}, but example {indices[unknown.argmax()]} has "
            f"{labels[unknown.argmax()]}",
        )
    if config.label_noise and not round(config.label_noise * len(labels)):
        raise InputError.flag(
            "label_noise", config.label_noise, f"flips none of {len(labels)} labels; choose 0 or a larger share"
        )
    noisy = flip_labels(labels, len(class_names), config.label_noise, config.subset_seed)
    return Dataset(
        images=np.stack([row["image"] for row in rows]),
        labels=noisy,
        true_labels=labels if (noisy != labels).any() else None,
        ids=np.array([_text(row["id"]) for row in rows]) if "id" in builder.info.features else indices,
        class_names=class_names,
    )


@contextlib.contextmanager
def _silent_libraries() -> Iterator[None]:
    """Drop what libraries write about damaged images, past Python's `sys.stderr`; what is wrong is raised as well."""
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


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _builder(config: StudyConfig) -> Any:
    """Find the data set where it lies prepared, or have TFDS prepare it."""
    import tensorflow_datasets as tfds  # seconds to import, and needed by nothing else here

    directory = config.data_dir
    if (EMBEDDED / config.dataset.split(":")[0]).is_dir():
        directory = EMBEDDED
    elif directory is not None and not os.path.isdir(directory):
        raise InputError.flag("data_dir", directory, "must be a directory of prepared TFDS data sets")
    where = directory or tfds.core.constants.DATA_DIR
    try:
        return tfds.core.read_only_builder.builder_from_files(config.dataset, data_dir=directory)
    except tfds.core.registered.DatasetNotFoundError:
        pass
    except Exception as error:
        raise InputError.flag("dataset", config.dataset, f"cannot be read in {where}: {_line(error)}") from error
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # TFDS prints a banner where TensorFlow is missing
            builder = tfds.builder(config.dataset, data_dir=directory, file_format="array_record")
        _probe(builder)
        builder.download_and_prepare()
    except tfds.core.registered.DatasetNotFoundError as error:
        raise InputError.flag(
            "dataset",
            config.dataset,
            f"is neither prepared in {where} nor known to TFDS; "
            f"give mini_mnist, a TFDS name such as mnist, or the --data_dir that holds it",
        ) from error
    except Exception as error:
        raise InputError.flag(
            "dataset",
            config.dataset,
            f"looked for it in {where}, where it is not prepared, and could not prepare it ({_line(error)}); "
            f"prepare it on a machine with a network and TensorFlow, with `tfds build {config.dataset} "
            f"--file_format=array_record`, and give its --data_dir",
        ) from error
    return builder


def _probe(builder: Any) -> None:
    """Fail within seconds on a dead network, which TFDS would retry for minutes without a word."""
    import requests

    hosts = {urllib.parse.urlsplit(url)[:2]: url for url in builder.url_infos if url.startswith("http")}
    for (_, host), url in hosts.items():
        try:
            requests.head(url, timeout=PROBE_SECONDS)
        except requests.RequestException as error:
            raise ConnectionError(f"{host} cannot be reached") from error


def _class_names(config: StudyConfig, builder: Any) -> tuple[str, ...]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    present = {name: features[name] for name in ("image", "label") if name in features}
    image, label = present.get("image"), present.get("label")
    if (
        not isinstance(image, tfds.features.Image)
        or image.np_dtype != np.uint8
        or not isinstance(label, tfds.features.ClassLabel)
    ):
        raise InputError.flag(
            "dataset",
            config.dataset,
            "must have a feature 'image' of 8-bit pixels and a feature 'label' with one class for each image",
        )
    names = tuple(label.names or map(str, range(label.num_classes)))
    if len(names) < 2:
        raise InputError.flag(
            "dataset", config.dataset, f"must have two classes or more to tell apart, not {len(names)}"
        )
    return names


def _line(error: BaseException) -> str:
    """Give the first line of an error's text, and no more than fits one."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
