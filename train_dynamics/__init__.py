"""Record and analyse the gradient of every training example at every iteration.

    Task                 the network to train: its initial weights and its loss
    sweep                trains a task from several seeds and records every example's gradients
    StudyConfig          the settings: optimizer, batches, seeds, and what is recorded
    Dataset              examples as arrays
    load_dataset         reads the examples that a configuration names
    Recorder             records from inside your own training loop
    record_checkpoints   records a finished run from its checkpoints
    Recording            opens a recording for reading
    Explorer             shows a recording in a notebook
    InputError           raised when the caller's values are wrong; its message is one line
    RecordingError       raised when a directory is not a valid recording, or cannot be written

Each name is imported when it is first used, so `Recording` does not import JAX.
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
