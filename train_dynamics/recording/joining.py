"""Reads several recordings of the same examples, with different seeds, as one."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from train_dynamics.recording.format import RecordingError

if TYPE_CHECKING:
    from train_dynamics.recording.reader import Recording


def check_alike(parts: Sequence["Recording"]) -> None:
    """Check that recordings can be read as one.

    Raises:
        RecordingError: If they cannot. The message names the difference.
    """
    if not parts:
        raise RecordingError("no recording was named")
    first, seen = parts[0], {}
    for part in parts:
        for seed in part.seeds.tolist():
            if seed in seen:
                raise RecordingError(
                    f"{seen[seed]} and {part.path} cannot be read as one: seed {seed} is in both; give each run its own"
                )
            seen[seed] = part.path
    for part in parts[1:]:
        if difference := _difference(first, part):
            raise RecordingError(f"{first.path} and {part.path} cannot be read as one: {difference}")


def _difference(one: "Recording", other: "Recording") -> str:
    """Describe how two recordings differ, apart from their seeds. Empty if they do not."""
    if one.of_loop != other.of_loop:
        return "one was written by train_dynamics.train, the other in a loop"
    same = {"first_seed": 0, "num_seeds": 1}
    if one.of_loop:
        same["model"] = one.config.model  # the name of the loss, which is `__main__:loss` in a script; its text counts
    configs = [dataclasses.replace(of.config, **same) for of in (one, other)]
    if differences := configs[0].differences(configs[1]):
        return "; ".join(differences)
    codes, others = ({name: code["sha256"] for name, code in of.code.items()} for of in (one, other))
    if changed := sorted(name for name in {*codes, *others} if codes.get(name) != others.get(name)):
        return f"they were made with other code of the {' and the '.join(changed)}"
    arrays, others = one.example_checksums, other.example_checksums
    if changed := sorted(name for name in {*arrays, *others} if arrays.get(name) != others.get(name)):
        return f"their examples differ in {', '.join(changed)}"
    if one.class_names != other.class_names:
        return f"their classes are {', '.join(one.class_names)} and {', '.join(other.class_names)}"
    if one.contents != other.contents:
        return f"they hold {', '.join(one.contents.arrays)} and {', '.join(other.contents.arrays)}"
    some = None if one.of_loop else min(one.num_records, other.num_records)  # a run that is behind will come to them
    if not np.array_equal(one.iterations[:some], other.iterations[:some]):
        ends = " and ".join(f"{len(of.iterations)} to iteration {of.num_iterations}" for of in (one, other))
        return f"their records are of other iterations: {ends}"
    return ""
