"""Whether the user lets the code that a recording names be run again: all that is told without running any of it."""

from train_dynamics.config import InputError
from train_dynamics.data.imports import names_code
from train_dynamics.recording.reader import Recording


def made_in_python(recording: Recording) -> bool:
    """Tell whether the networks are of a task or a loss that a program handed over, which no flag can name."""
    return "task" in recording.code or recording.code.get("loss", {}).get("import") == recording.config.model


def needed(recording: Recording) -> dict[str, str]:
    """List the user's code that the networks of a recording cannot be run without.

    Returns:
        Its import paths, by flag; empty if all of it is ours, or if the networks were made in Python.

    Example:
        >>> needed(Recording("recordings/cnn"))
        {'model': 'configs/networks.py:cnn'}
    """
    if made_in_python(recording):
        return {}
    both = {"model": recording.config.model, "loss": recording.config.loss}
    return {name: spec for name, spec in both.items() if names_code(spec)}


def may_run(recording: Recording, model: str | None, loss: str | None) -> bool:
    """Tell whether the networks of a recording may be run again: whether all code that this needs is named.

    Where none of the user's is needed, nothing has to be named.

    Args:
        recording: The recording.
        model: What `--model` names, if anything.
        loss: What `--loss` names, if anything.

    Raises:
        InputError: If it was recorded with another model or loss than named, or only one of two is named.
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
    """Say what the user has to do so that the networks of a recording are run again."""
    if made_in_python(recording):
        return "the network was made in Python, and is run again only there (docs/NETWORKS.md says how)"
    if named := " ".join(f"--{name}={spec}" for name, spec in needed(recording).items()):
        return f"to have it run, name it: {named}"
    return "hand over its networks (docs/NETWORKS.md says how)"
