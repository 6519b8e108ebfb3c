"""Imports a user's own code, only if a flag names it."""

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from train_dynamics.config import InputError


def names_code(spec: str) -> bool:
    """Tell whether a flag's value has the form MODULE:NAME or FILE.py:NAME.

    Example:
        >>> names_code("nets.py:cnn"), names_code("mnist:3.0.1")
        (True, False)
    """
    where, colon, name = spec.rpartition(":")
    return bool(colon) and name.isidentifier() and bool(where)


def load_attribute(flag: str, spec: str) -> Any:
    """Import what a flag names, as MODULE:NAME or FILE.py:NAME.

    Args:
        flag: Name of the flag.
        spec: Its value.

    Raises:
        InputError: If there is no such thing, or if its module cannot be imported; the message includes the import's
            error.
    """
    if not names_code(spec):
        raise InputError.flag(flag, spec, "must be MODULE:NAME or FILE.py:NAME")
    where, _, name = spec.rpartition(":")
    is_file = where.endswith(".py")
    if is_file and not Path(where).is_file():
        raise InputError.flag(flag, spec, f"there is no file {where}")
    try:
        module = _module_of_file(Path(where).resolve()) if is_file else importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise InputError.flag(flag, spec, f"{where} cannot be imported: {told(error)}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        public = [known for known in vars(module) if not known.startswith("_")]
        raise InputError.flag(flag, spec, f"{where} has no {name}; it has {', '.join(public) or 'nothing'}") from None


@functools.cache
def _module_of_file(path: Path) -> ModuleType:
    """Run a file as a module, once. It can import files beside it."""
    name = f"user_code_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def told(error: BaseException) -> str:
    """Describe an error in one line of bounded length, with its type."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
