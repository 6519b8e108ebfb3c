"""A block of a recording, read from disk on demand; and the blocks of several recordings read as one."""

import contextlib
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int, Shaped

from train_dynamics.recording.format import damaged, read_array
from train_dynamics.recording.remote import AnyPath
from train_dynamics.recording.storage import StoredArray


class Block:
    """Consecutive records, read from disk on demand.

    Attributes:
        path: Directory of the block.
        iterations: The iterations whose records it holds, ascending.
        names: Names of its arrays, for example `loss`, `cotangent.fc2` and `parameters.fc1.kernel`.
    """

    def __init__(
        self, path: AnyPath, iterations: Int[np.ndarray, " t"], names: Sequence[str], num_seeds: int, place: str
    ) -> None:
        self.path = path
        self.iterations = iterations
        self.names = names
        self._num_seeds = num_seeds
        self._place = place

    def read(self, name: str, t: SupportsIndex | None = None) -> Shaped[np.ndarray, "..."]:
        """Read an array `[s, t, ...]`; or `[s, ...]` at one iteration `t`.

        Args:
            name: One of `names`.
            t: Iteration, in updates. None reads the whole block.

        Raises:
            KeyError: If there is no such array.
            IndexError: If the block has no record of iteration `t`.
            RecordingError: If the array is damaged or missing.
        """
        with self._array(name) as array:
            return array.read() if t is None else array.row(row_of(self.iterations, t))

    def each(
        self, name: str, iterations: Int[np.ndarray, " some"] | None = None
    ) -> Iterator[Shaped[np.ndarray, "s ..."]]:
        """Yield an array one iteration after the other, `[s, ...]`. Nothing is read from disk twice.

        Args:
            name: One of `names`.
            iterations: Some of the block's iterations, as for `take`. Default: all.

        Raises:
            KeyError: If there is no such array.
            RecordingError: If the array is damaged or missing.
        """
        if iterations is not None:
            yield from self.take(name, iterations)
            return
        with self._array(name) as array:
            yield from array

    def take(self, name: str, iterations: Int[np.ndarray, " some"]) -> Iterator[Shaped[np.ndarray, "s ..."]]:
        """Yield an array at some iterations, ascending, each `[s, ...]`. As little else as possible is read.

        Raises:
            KeyError: If there is no such array.
            IndexError: If the block has no record of one of the iterations.
            RecordingError: If the array is damaged or missing.
        """
        with self._array(name) as array:
            yield from array.take([row_of(self.iterations, t) for t in iterations])

    def columns(self, name: str, start: int, stop: int) -> Shaped[np.ndarray, "s t _ ..."]:
        """Read an array for consecutive examples only. Checksums cover all examples, so they are not compared.

        Raises:
            KeyError: If there is no such array.
            RecordingError: If the array is missing.
        """
        with self._array(name, direct=False) as array:
            return array.columns(start, stop)

    def described(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape `[s, t, ...]` and type of an array without reading it. Raises the same errors as `each`."""
        with self._array(name) as array:
            return array.shape, array.dtype

    def state(self, name: str) -> Shaped[np.ndarray, "s ..."]:
        """Read an array of the state after the block's last update, for example `parameters.fc1.kernel`.

        Raises:
            RecordingError: If the array is damaged or missing.
        """
        return read_array(self.path, f"state.{name}", self._place)

    @contextlib.contextmanager
    def _array(self, name: str, direct: bool = True) -> Iterator[StoredArray]:
        if name not in self.names:
            raise KeyError(f"there is no array {name!r}; there are: {', '.join(self.names)}")
        name = f"record.{name}"
        with damaged(self.path / name):
            array = StoredArray(self.path / name, f"{self._place}/{name}", direct)
            if array.shape[:2] != (expected := (self._num_seeds, len(self.iterations))):
                raise ValueError(f"it holds {array.shape[:2]} seeds and iterations and not {expected}")
            yield array


class JoinedBlock(Block):
    """A block over the seeds of several recordings, whose own blocks may begin and end elsewhere.

    Attributes:
        iterations: The iterations whose records it holds, ascending.
        names: Names of its arrays.
    """

    def __init__(
        self, iterations: Int[np.ndarray, " t"], names: Sequence[str], of_parts: Sequence[Sequence[Block]]
    ) -> None:
        self.iterations = iterations
        self.names = names
        first, last = iterations[[0, -1]]
        self._parts = [
            [block for block in blocks if block.iterations[0] <= last and block.iterations[-1] >= first]
            for blocks in of_parts
        ]

    def read(self, name: str, t: SupportsIndex | None = None) -> Shaped[np.ndarray, "..."]:
        """Read an array `[s, t, ...]`, or `[s, ...]` at one iteration `t`, like `Block.read`."""
        if t is None:
            return np.stack(list(self.each(name)), axis=1)
        of_seeds = [
            next((block for block in blocks if t <= block.iterations[-1]), blocks[-1]) for blocks in self._parts
        ]
        return np.concatenate([block.read(name, t) for block in of_seeds])

    def each(
        self, name: str, iterations: Int[np.ndarray, " some"] | None = None
    ) -> Iterator[Shaped[np.ndarray, "s ..."]]:
        """Yield an array one iteration after the other, `[s, ...]`, like `Block.each`."""
        if iterations is not None:
            yield from self.take(name, iterations)
            return
        for rows in zip(*(self._rows(blocks, name) for blocks in self._parts), strict=True):
            yield np.concatenate(rows)

    def take(self, name: str, iterations: Int[np.ndarray, " some"]) -> Iterator[Shaped[np.ndarray, "s ..."]]:
        """Yield an array at some iterations, ascending, like `Block.take`."""
        for rows in zip(*(_taken(blocks, name, iterations) for blocks in self._parts), strict=True):
            yield np.concatenate(rows)

    def described(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape `[s, t, ...]` and type of an array without reading it, like `Block.described`."""
        described = [blocks[0].described(name) for blocks in self._parts]
        (_, _, *rest), dtype = described[0]
        return (sum(shape[0] for shape, _ in described), len(self.iterations), *rest), dtype

    def _rows(self, blocks: Sequence[Block], name: str) -> Iterator[Shaped[np.ndarray, "s ..."]]:
        skipped = int(np.searchsorted(blocks[0].iterations, self.iterations[0]))
        rows = itertools.chain.from_iterable(block.each(name) for block in blocks)
        return itertools.islice(rows, skipped, skipped + len(self.iterations))


def _taken(
    blocks: Sequence[Block], name: str, iterations: Int[np.ndarray, " some"]
) -> Iterator[Shaped[np.ndarray, "s ..."]]:
    for block in blocks:
        if len(here := np.intersect1d(iterations, block.iterations)):
            yield from block.take(name, here)


def row_of(iterations: Int[np.ndarray, " t"], t: SupportsIndex) -> int:
    """Return the position of an iteration among others."""
    index = operator.index(t)
    row = int(np.searchsorted(iterations, index))
    if row == len(iterations) or iterations[row] != index:
        raise IndexError(f"iteration {index} is not among the {len(iterations)} records")
    return row
