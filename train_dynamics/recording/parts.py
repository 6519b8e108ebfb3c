"""A recording written by several processes. Each writes its own part, with some of the seeds.

    RECORDING/
      parts.json            the configuration of the whole, and which seeds each process has
      seeds_0-3/            an ordinary recording of these seeds
      seeds_4-6/

Which process writes which part depends only on the configuration and the number of processes, so no process needs to
know about the others.
"""

import json
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.recording.format import RecordingError, sealed
from train_dynamics.recording.remote import AnyPath
from train_dynamics.recording.storage import read_whole

FORMAT = 1
NAME = "parts.json"


class Part(NamedTuple):
    """What one process records.

    Attributes:
        process: Number of the process.
        seeds: Its seeds.
    """

    process: int
    seeds: range

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"seeds_{self.seeds[0]}-{self.seeds[-1]}"


def divided(config: StudyConfig, num_processes: int) -> list[Part]:
    """Divide seeds among processes, in order and as evenly as possible. The last processes may get none.

    Example:
        >>> [list(part.seeds) for part in divided(StudyConfig(num_seeds=5), 2)]
        [[0, 1, 2], [3, 4]]
    """
    shares = np.array_split(np.arange(config.num_seeds), min(num_processes, config.num_seeds))
    return [Part(k, config.seeds[share[0] : share[-1] + 1]) for k, share in enumerate(shares)]


def begin(path: Path, config: StudyConfig, num_processes: int) -> list[Part]:
    """Write which parts a recording has, or check that it was already written the same way. Returns the parts.

    Raises:
        InputError: If the directory holds something else, or was begun with another configuration or number of
            processes.
        OSError: If it cannot be written.
    """
    parts = divided(config, num_processes)
    others = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(NAME)) if path.exists() else []
    if not (path / NAME).exists():
        if others:
            what = "a recording of one process" if "config.json" in others else "other files"
            raise InputError.flag(
                "recording", path, f"holds {what}; choose another directory to record with several processes"
            )
        path.mkdir(parents=True, exist_ok=True)
        header = {"format": FORMAT, "config": config.to_dict(), "num_processes": num_processes}
        _write_first(path / NAME, json.dumps(sealed(header), indent=2) + "\n")
    header = read(path)
    if differences := config.differences(StudyConfig.from_dict(header["config"])):
        raise InputError.flag(
            "recording", path, f"holds parts of another configuration ({'; '.join(differences)}); choose another"
        )
    if header["num_processes"] != num_processes:
        raise InputError.flag(
            "num_processes", num_processes, f"must be {header['num_processes']}, as {path} was begun with"
        )
    return parts


def _write_first(path: Path, text: str) -> None:
    """Write a file, unless another process has. All begin at the same time, so each writes a file of its own."""
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        own.write_text(text)
        try:
            path.hardlink_to(own)
        except FileExistsError:
            pass
        except OSError:  # some file systems have no links; there the last one stays
            own.replace(path)
    finally:
        own.unlink(missing_ok=True)


def read(path: AnyPath) -> dict[str, Any]:
    """Read and check `parts.json`.

    Raises:
        RecordingError: If it is damaged, or has another format.
    """
    try:
        header = json.loads(read_whole(path.resolve() / NAME))
        if header["format"] != FORMAT:
            raise ValueError(f"it has format {header['format']}, and this version reads format {FORMAT}")
        if header["checksum"] != sealed(header)["checksum"]:
            raise ValueError("it was changed after it was written: its checksum differs")
        StudyConfig.from_dict(header["config"])
        if not (type(header["num_processes"]) is int and header["num_processes"] > 0):
            raise ValueError("its number of processes is none")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RecordingError(f"{path / NAME} is damaged: {error}") from error
    return header


def directories(path: AnyPath) -> list[AnyPath]:
    """List the directories of all parts of a recording.

    Raises:
        RecordingError: If a part is missing.
    """
    header = read(path)
    found = []
    for part in divided(StudyConfig.from_dict(header["config"]), header["num_processes"]):
        found.append(path / part.name)
        if not (found[-1] / "config.json").exists():
            again = f"--num_processes={header['num_processes']} --process_id={part.process}"
            raise RecordingError(
                f"{found[-1]} is missing: it is the part of process {part.process} of {path}; train with the same "
                f"flags and {again} records it"
            )
    return found
