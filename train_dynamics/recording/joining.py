"""Several recordings of the same examples, each of other seeds, read as one."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
from jaxtyping import Int, Shaped

from train_dynamics.recording.format import RecordingError

if TYPE_CHECKING:
    from train_dynamics.recording.reader import Block, Recording


class JoinedBlock:
    """What a block is, over the seeds of several recordings, whose own blocks may begin and end elsewhere.

    Attributes:
        iterations: The iterations it holds the records of, ascending.
        names: The arrays it has.
    """

    def __init__(
        self, iterations: Int[np.ndarray, " t"], names: Sequence[str], of_parts: Sequence[Sequence["Block"]]
    ) -> None:
        self.iterations = iterations
        self.names = names
        first, last = iterations[[0, -1]]
        self._parts = [
            [block for block in blocks if block.iterations[0] <= last and block.iterations[-1] >= first]
            for blocks in of_parts
        ]

    def read(self, name: str, t: SupportsIndex | None = None) -> Shaped[np.ndarray, "..."]:
        """Read an array, `[s, t, ...]`, or `[s, ...]` at one iteration `t`; as a block does."""
        if t is None:
            return np.stack(list(self.each(name)), axis=1)
        of_seeds = [
            next((block for block in blocks if t <= block.iterations[-1]), blocks[-1]) for blocks in self._parts
        ]
        return np.concatenate([block.read(name, t) for block in of_seeds])

    def each(self, name: str) -> Iterator[Shaped[np.ndarray, "s ..."]]:
        """Read an array one iteration after the other, `[s, ...]`; as a block does."""
        for rows in zip(*(self._rows(blocks, name) for blocks in self._parts), strict=True):
            yield np.concatenate(rows)

    def _rows(self, blocks: Sequence["Block"], name: str) -> Iterator[Shaped[np.ndarray, "s ..."]]:
        skipped = int(np.searchsorted(blocks[0].iterations, self.iterations[0]))
        rows = itertools.chain.from_iterable(block.each(name) for block in blocks)
        return itertools.islice(rows, skipped, skipped + len(self.iterations))


def check_alike(parts: Sequence["Recording"]) -> None:
    """See whether recordings can be read as one.

    Raises:
        RecordingError: If not; it names the difference.
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
    """Say in what two recordings differ, besides seeds; nothing if in nothing."""
    if one.of_loop != other.of_loop:
        return "one was written by train_dynamics.train, the other in a loop"
    configs = [dataclasses.replace(of.config, first_seed=0, num_seeds=1) for of in (one, other)]
    if differences := configs[0].differences(configs[1]):
        return "; ".join(differences)
    arrays, others = one.example_checksums, other.example_checksums
    if changed := sorted(name for name in {*arrays, *others} if arrays.get(name) != others.get(name)):
        return f"their examples differ in {', '.join(changed)}"
    if one.class_names != other.class_names:
        return f"their classes are {', '.join(one.class_names)} and {', '.join(other.class_names)}"
    if one.contents != other.contents:
        return f"they hold {', '.join(one.contents.arrays)} and {', '.join(other.contents.arrays)}"
    if not np.array_equal(one.iterations, other.iterations):
        ends = " and ".join(f"{len(of.iterations)} to iteration {of.num_iterations}" for of in (one, other))
        return f"their records are of other iterations: {ends}"
    return ""
