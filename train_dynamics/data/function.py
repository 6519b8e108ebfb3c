"""Data sets from a user's own function."""

from typing import Any

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.imports import load_attribute, told
from train_dynamics.data.source import Source, of_arrays
from train_dynamics.data.trees import DataError

KEYS = ("inputs", "labels", "ids", "class_names", "feature_names", "vocabulary")


def function_source(config: StudyConfig) -> Source:
    """Call MODULE:FUNCTION or FILE.py:FUNCTION, without arguments, to get the examples.

    Raises:
        InputError: If it cannot be imported, raises an error, or returns something that `as_dataset` cannot take.
    """
    function = load_attribute("dataset", config.dataset)
    try:
        given = function() if callable(function) else function
    except InputError:
        raise
    except Exception as error:
        raise DataError(f"raised {told(error)}") from error
    return of_arrays(as_dataset(given))


def as_dataset(given: Any) -> Dataset:
    """Make a data set from what a function returned: a `Dataset`, a pair of inputs and labels, or a dict.

    Raises:
        DataError: If it returned something else, or if the parts do not fit each other.
    """
    if isinstance(given, Dataset):
        return given
    if type(given) is tuple and len(given) == 2:
        return Dataset(*given)
    if isinstance(given, dict) and {"inputs", "labels"} <= set(given) <= set(KEYS):
        return Dataset(**given)
    what = f"a dict of {', '.join(map(str, given)) or 'nothing'}" if isinstance(given, dict) else type(given).__name__
    raise DataError(
        f"must return a Dataset, a pair (inputs, labels), or a dict with inputs, labels and optionally "
        f"{', '.join(KEYS[2:])}; it returned {what}"
    )
