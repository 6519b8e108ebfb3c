"""Data sets that a function of the user's gives."""

from typing import Any

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.imports import load_attribute, told
from train_dynamics.data.source import Source, of_arrays
from train_dynamics.data.trees import DataError

KEYS = ("inputs", "labels", "ids", "class_names", "feature_names", "vocabulary")


def function_source(config: StudyConfig) -> Source:
    """Call MODULE:FUNCTION or FILE.py:FUNCTION, without arguments, for the examples.

    Raises:
        InputError: If it does not import, raises, or gives something else than `as_dataset` takes.
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
    """Make a data set of what a function gave: one, a pair of inputs and labels, or a dict of them.

    Raises:
        DataError: If it is neither, or its parts do not fit each other.
    """
    if isinstance(given, Dataset):
        return given
    if type(given) is tuple and len(given) == 2:
        return Dataset(*given)
    if isinstance(given, dict) and {"inputs", "labels"} <= set(given) <= set(KEYS):
        return Dataset(**given)
    what = f"a dict of {', '.join(map(str, given)) or 'nothing'}" if isinstance(given, dict) else type(given).__name__
    raise DataError(
        f"must give a Dataset, a pair (inputs, labels), or a dict of inputs and labels and, if there are, "
        f"{', '.join(KEYS[2:])}; it gave {what}"
    )
