"""Code of the user, named on the command line: the only code besides ours that is ever run."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from train_dynamics.config import InputError


def load_attribute(flag: str, spec: str) -> Any:
    """Import what `module:attribute` or `file.py:attribute` names.

    Args:
        flag: The flag that names it, for errors.
        spec: The name.

    Raises:
        InputError: If it has no colon, or cannot be imported; the error that importing raised is in the text.

    Example:
        >>> load_attribute("loss", "math:hypot")(3, 4)
        5.0
    """
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        raise InputError.flag(flag, spec, "must be module:attribute or file.py:attribute")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        return getattr(module, attribute)
    except Exception as error:  # whatever the user's own code raises
        text = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError.flag(flag, spec, f"cannot be imported: {type(error).__name__}: {text}") from error


def _from_file(path: Path) -> Any:
    name = f"train_dynamics_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
