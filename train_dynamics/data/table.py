"""Data sets that are a CSV or Parquet table. A row is an example; a column is a feature or the label."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.imports import told
from train_dynamics.data.source import Source, of_arrays
from train_dynamics.data.trees import DataError

if TYPE_CHECKING:
    import pyarrow as pa

MOST_WORDS = 100  # a column of more different words is text, not a category
LISTED = 20


def table_source(config: StudyConfig) -> Source:
    """Read a table. `--labels` names the label column, `--inputs` the features (default: all other columns).

    Numbers are taken as they are, true and false become 1 and 0, and a column of words becomes one column of 1 and 0
    for each word, named COLUMN=WORD. A column `id` names the examples, unless a flag uses it otherwise.

    Raises:
        InputError: If it cannot be read, lacks a column, or has columns that are neither numbers nor words.
    """
    table = _read(Path(config.dataset))
    names = table.column_names
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    there = f"of {config.dataset}, which has {listed}"
    if config.labels not in names:
        raise InputError.flag("labels", config.labels or None, f"must be a column {there}")
    ids = _labels(table, "id") if "id" in names and "id" not in (config.labels, *config.inputs.split(",")) else None
    chosen = config.inputs.split(",") if config.inputs else [n for n in names if n not in (config.labels, "id")]
    for name in chosen:
        if name not in names or name == config.labels:
            raise InputError.flag("inputs", config.inputs, f"must be columns {there}, other than the labels")
    if not chosen:
        raise DataError(f"must have a column other than the labels, but has {listed}")
    features: dict[str, Float[np.ndarray, " n"]] = {}
    for name in chosen:
        features |= _features(table, name)
    inputs = np.stack(list(features.values()), axis=1)
    return of_arrays(Dataset(inputs, _labels(table, config.labels), ids, feature_names=tuple(features)))


def _read(path: Path) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        table = csv.read_csv(path) if path.suffix.lower() == ".csv" else parquet.read_table(path)
        names = table.column_names
    except UnicodeDecodeError as error:
        raise DataError(f"is not text in UTF-8: {error}; save it so") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read: {told(error)}") from error
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"has more than one column {min(twice)!r}")
    if not table.num_rows:
        raise DataError("has no examples in it, only the names of columns")
    return table


def _features(table: "pa.Table", name: str) -> dict[str, Float[np.ndarray, " n"]]:
    """Turn a column into one column of numbers, or into several of 1 and 0, each with its name."""
    import pyarrow as pa

    column = _plain(table, name)
    kind = column.type
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    if any(is_kind(kind) for is_kind in numbers):
        number = pa.uint8() if pa.types.is_boolean(kind) else kind  # truth values do not become float64 at once
        return {name: column.cast(number).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)}
    right = "leave it out: --inputs=COLUMN,COLUMN,... lists those to use"
    if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        raise DataError(f"column {name} has {kind}, neither numbers nor words; {right}")
    _refuse_gaps(column, name)
    words = np.array(column.to_pylist(), str)
    distinct = np.unique(words)
    if len(distinct) > MOST_WORDS:
        raise DataError(
            f"column {name} has {len(distinct):,} different words, for example {str(distinct[0])!r}; more than "
            f"{MOST_WORDS} are no categories; {right}"
        )
    return {f"{name}={word}": np.float64(words == word) for word in distinct.tolist()}


def _labels(table: "pa.Table", name: str) -> Shaped[np.ndarray, " n"]:
    import pyarrow as pa

    column = _plain(table, name)
    _refuse_gaps(column, name)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    return np.array(column.to_pylist())


def _plain(table: "pa.Table", name: str) -> "pa.ChunkedArray":
    """Return a column without dictionary encoding."""
    import pyarrow as pa

    column = table[name]
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _refuse_gaps(column: "pa.ChunkedArray", name: str) -> None:
    gaps = [value is None or value == "" for value in column.to_pylist()]
    if any(gaps):
        row = gaps.index(True)
        raise DataError(f"column {name} is empty in row {row}; leave such rows out, or fill in the values")
