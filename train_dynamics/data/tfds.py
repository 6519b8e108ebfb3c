"""Data sets by TFDS name. Reading a prepared one does not need TensorFlow."""

import contextlib
import io
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.images import silent_libraries, stacked
from train_dynamics.data.source import Parts, Source
from train_dynamics.data.tfrecord import read_tfrecords
from train_dynamics.data.trees import DataError

EMBEDDED = Path(__file__).parent
PROBE_SECONDS = 5.0


def is_embedded(name: str) -> bool:
    """Tell whether a data set comes with the package."""
    name = name.split(":")[0]
    return name.isidentifier() and not name.startswith("_") and (EMBEDDED / name).is_dir()


def tfds_source(config: StudyConfig) -> Source:
    """Find a data set, and let TFDS download it if necessary.

    The network sees the feature `image` and learns `label`, unless `--inputs` and `--labels` name others. Examples are
    named by their feature `id`, if there is one, or else by their index in the split.

    Raises:
        InputError: If there is no such data set, or it has no such features.
    """
    builder = _builder(config)
    inputs, labels = (_feature(config, builder, *names) for names in (("inputs", "image"), ("labels", "label")))

    def read(parts: Parts) -> Dataset:
        rows = [row for split, indices in parts for row in _rows(builder, split, indices)]
        several = len({split for split, _ in parts}) > 1
        names = [(split, n) for split, indices in parts for n in indices.tolist()]
        if "id" in builder.info.features:
            names = [(split, _text(row["id"])) for (split, _), row in zip(names, rows, strict=True)]
        ids = np.array([f"{split}:{name}" if several else name for split, name in names])
        class_names = _class_names(builder.info.features[labels])
        return Dataset(_inputs(config, builder, inputs, rows), _labels(labels, rows), ids, class_names)

    return Source({name: split.num_examples for name, split in builder.info.splits.items()}, read)


def _feature(config: StudyConfig, builder: Any, flag: str, default: str) -> str:
    """Choose a feature: the one that a flag names, or else the one with the usual name."""
    given = getattr(config, flag)
    features = builder.info.features
    if (given or default) in features:
        return given or default
    listed = f"{config.dataset} has the features {', '.join(sorted(features))}"
    if given:
        raise InputError.flag(flag, given, f"{listed}; choose one of these")
    raise InputError.flag(flag, None, f"there is no feature {default}: {listed}; choose one with --{flag}=NAME")


def _rows(builder: Any, split: str, indices: Int[np.ndarray, " k"]) -> Sequence[dict[str, Any]]:
    """Read examples of a split."""
    stored = builder.info.file_format.value if builder.info.file_format else "an unknown format"
    try:
        with silent_libraries():
            if stored == "tfrecord":
                info = builder.info.splits[split]
                records = read_tfrecords(info.filepaths, info.shard_lengths, indices)
                return [builder.info.features.deserialize_example_np(record) for record in records]
            return builder.as_data_source(split=split).__getitems__(indices.tolist())
    except NotImplementedError as error:
        raise DataError(
            f"is prepared in {builder.data_dir} as {stored}, a format not supported here; convert it once, where "
            f"TensorFlow is installed, with `tfds convert_format --dataset_version_dir={builder.data_dir} "
            f"--out_file_format=array_record --out_dir=DIR/{builder.info.full_name}`, and give --data_dir=DIR"
        ) from error
    except Exception as error:
        # OpenCV returns None for an image that it cannot decode, and TFDS then uses an attribute of it; or it raises.
        damaged = "'NoneType' object has no attribute" in str(error) or type(error).__module__ == "cv2"
        why = "an image in it is damaged" if damaged else _line(error)
        raise DataError(f"cannot be read in {builder.data_dir}: {why}") from error


def _inputs(
    config: StudyConfig, builder: Any, name: str, rows: Sequence[dict[str, Any]]
) -> Shaped[np.ndarray, "n ..."]:
    import tensorflow_datasets as tfds

    values = [row[name] for row in rows]
    if isinstance(builder.info.features[name], tfds.features.Image):
        return stacked(values, config)
    if isinstance(values[0], bytes | str):
        raise InputError.flag(
            "inputs", name, "holds text, but networks take numbers; give token ids and a vocabulary, by MODULE:FUNCTION"
        )
    try:
        return np.stack([np.asarray(value) for value in values])
    except ValueError as error:
        raise InputError.flag("inputs", name, f"must have the same shape in all examples: {_line(error)}") from error


def _labels(name: str, rows: Sequence[dict[str, Any]]) -> Shaped[np.ndarray, " n"]:
    values = [_text(row[name]) for row in rows]
    if any(np.ndim(value) for value in values):
        raise InputError.flag("labels", name, "must be one class or one number per example, not a list")
    return np.array(values)


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Return the class names of a feature. None if it does not know them."""
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.ClassLabel):
        return None
    return tuple(feature.names or map(str, range(feature.num_classes)))


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _builder(config: StudyConfig) -> Any:
    """Find the data set where it is already prepared, or have TFDS prepare it."""
    import tensorflow_datasets as tfds  # seconds to import, and needed by nothing else here

    directory = config.data_dir
    if is_embedded(config.dataset):
        directory = EMBEDDED
    elif directory is not None and not os.path.isdir(directory):
        raise InputError.flag("data_dir", directory, "must be a directory of prepared TFDS data sets")
    where = directory or tfds.core.constants.DATA_DIR
    kinds = "a file (.npz, .csv, .parquet), a directory of images, MODULE:FUNCTION, or a TFDS name such as mnist"
    try:
        return tfds.core.read_only_builder.builder_from_files(config.dataset, data_dir=directory)
    except tfds.core.registered.DatasetNotFoundError:
        pass
    except ValueError as error:
        if "arsing builder name" not in str(error):
            raise DataError(f"cannot be read in {where}: {_line(error)}") from error
        raise DataError(f"is none of {kinds}; there is no such file or directory") from error
    except Exception as error:
        raise DataError(f"cannot be read in {where}: {_line(error)}") from error
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # TFDS prints a banner where TensorFlow is missing
            builder = tfds.builder(config.dataset, data_dir=directory, file_format="array_record")
        _probe(builder)
        builder.download_and_prepare()
    except tfds.core.registered.DatasetNotFoundError as error:
        old = Path(where, config.dataset.split(":")[0])
        if old.is_dir():
            raise DataError(
                f"is in {old}, but in an old format without features.json; prepare it again, with "
                "`tfds build --file_format=array_record`"
            ) from error
        raise DataError(
            f"is neither prepared in {where} nor known to TFDS; give mini_mnist, {kinds}, or the --data_dir that has it"
        ) from error
    except Exception as error:
        raise DataError(
            f"is not prepared in {where}, and could not be prepared ({_line(error)}); "
            f"prepare it on a machine with a network and TensorFlow, with `tfds build {config.dataset} "
            f"--file_format=array_record`, and give its --data_dir"
        ) from error
    return builder


def _probe(builder: Any) -> None:
    """Fail within seconds if there is no network, where TFDS would silently retry for minutes."""
    import requests

    hosts = {urllib.parse.urlsplit(url)[:2]: url for url in builder.url_infos if url.startswith("http")}
    for (_, host), url in hosts.items():
        try:
            requests.head(url, timeout=PROBE_SECONDS)
        except requests.RequestException as error:
            raise ConnectionError(f"{host} cannot be reached") from error


def _line(error: BaseException) -> str:
    """Return the first line of an error's text, cut to a readable length."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
