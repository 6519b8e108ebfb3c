"""Record and analyse the gradient of every training example at every iteration.

    Task, sweep          what is trained, and training it from several seeds while recording
    StudyConfig          how: optimizer, batches, seeds, what is recorded
    Dataset              examples, as arrays
    load_dataset         those that a configuration names
    Recorder             the same for a training loop of your own
    record_checkpoints   the same where only checkpoints are left
    Recording            what was recorded, for reading
    Explorer             a page on which to look around in it, in a notebook
    InputError           what is raised where the caller's values will not do, in one line

Names are imported when they are used: JAX with `sweep`, and not with `Recording`.
"""

import importlib
from typing import Any

PUBLIC = {
    "Dataset": "data.arrays",
    "Explorer": "explorer.notebook",
    "InputError": "config",
    "Recorder": "training.recorder",
    "Recording": "recording.reader",
    "RecordingError": "recording.format",
    "StudyConfig": "config",
    "Task": "task.task",
    "load_dataset": "data.datasets",
    "record_checkpoints": "training.checkpoints",
    "sweep": "training.sweep",
}

__all__ = sorted(PUBLIC)


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        found = getattr(importlib.import_module(f"train_dynamics.{PUBLIC[name]}"), name)
    elif name == "__version__":
        from importlib import metadata

        try:
            found = metadata.version("train-dynamics")
        except metadata.PackageNotFoundError:  # run from a source tree that was never installed
            found = "0+unknown"
    else:
        raise AttributeError(f"module 'train_dynamics' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC, "__version__"})
