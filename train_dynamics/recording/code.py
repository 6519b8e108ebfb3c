"""Decides whether the user allows a recording's own code to be run again. Nothing of that code is run here."""

from train_dynamics.config import InputError
from train_dynamics.data.imports import names_code
from train_dynamics.recording.reader import Recording


def made_in_python(recording: Recording) -> bool:
    """Tell whether the networks were made from a task or loss in a Python program, which no flag can name."""
    return "task" in recording.code or recording.code.get("loss", {}).get("import") == recording.config.model


def needed(recording: Recording) -> dict[str, str]:
    """List the user's own code that a recording's networks need to run.

    Returns:
        Its import paths, by flag. Empty if the networks need none, or if they were made in Python.

    Example:
        >>> needed(Recording("recordings/cnn"))
        {'model': 'configs/networks.py:cnn'}
    """
    if made_in_python(recording):
        return {}
    both = {"model": recording.config.model, "loss": recording.config.loss}
    return {name: spec for name, spec in both.items() if names_code(spec)}


def may_run(recording: Recording, model: str | None, loss: str | None) -> bool:
    """Tell whether a recording's networks may be run again: the flags must name all user code they need.

    If they need no user code, no flag is needed.

    Args:
        recording: The recording.
        model: Value of `--model`, if given.
        loss: Value of `--loss`, if given.

    Raises:
        InputError: If the flags name another model or loss than the recorded one, or only one of the two.
    """
    given = {name: spec for name, spec in (("model", model), ("loss", loss)) if spec is not None}
    for name, spec in given.items():
        if spec != (recorded := getattr(recording.config, name)):
            right = f"--{name}={recorded}" if recorded else f"the default {name}"
            raise InputError.flag(name, spec, f"the recording was made with {right}")
    if made_in_python(recording):
        if given:
            raise InputError.flag("model", model or "", how_to_run(recording))
        return False
    missing = [name for name in needed(recording) if name not in given]
    if missing and given:
        raise InputError.flag(missing[0], None, f"must be named too: {how_to_run(recording)}")
    return not missing


def how_to_run(recording: Recording) -> str:
    """Explain what the user must do so that a recording's networks can be run again."""
    if made_in_python(recording):
        return "the network was made in Python, and is run again only there (docs/NETWORKS.md says how)"
    if named := " ".join(f"--{name}={spec}" for name, spec in needed(recording).items()):
        return f"to have it run, name it: {named}"
    return "hand over its networks (docs/NETWORKS.md says how)"
