"""Writes a recording while training goes on. Only this file imports Orbax; reading does not need it."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.arrays import Dataset
from train_dynamics.recording.contents import Contents
from train_dynamics.recording.examples import example_arrays, example_header
from train_dynamics.recording.format import (
    FORMAT,
    RecordingError,
    checksum_of,
    npy,
    place_of,
    read_header,
    save_arrays,
    sealed,
    versions,
    whole_blocks,
    written_whole,
)
from train_dynamics.recording.locks import PATIENCE, busy, check_writable, lock
from train_dynamics.recording.reader import Block
from train_dynamics.recording.storage import write_array

PIECE_BYTES = 64 * 1024
KNOWN = (  # of Orbax: it does without what is not used here, and what it logs of an error is raised too
    "ArrayMetadata persistence is disabled",
    "Skipping merge of OCDBT checkpoints",
    "_SignalingThread.run() raised an exception",
    "Metadata file does not exist",
    "Failed to get item metadata from directory",
)
logging.getLogger("absl").addFilter(lambda told: not any(text in str(told.msg) for text in KNOWN))


class Writer:
    """Writes a recording, a block at a time, in the background.

    No other process can write to the same directory until this writer is closed or its process has ended, in whatever
    way.

    Args:
        path: Directory of the recording. It is made if it does not exist. It must be empty or hold the beginning of
            this same recording, as `is_begun` checks.
        config: The configuration.
        dataset: The examples. They are written once.
        contents: What each record holds.
        block_length: Number of records in a block. None for a user's own loop, whose blocks say themselves which
            iterations they hold.
        num_blocks: Number of blocks that already exist.
        code: The user's code that it is made with, as `code_of` returns it.
        loop: For a user's own training loop: what is known about it. None if `train_dynamics.train` does the training.

    Raises:
        InputError: If the directory cannot be written, or if another process writes to it.
    """

    def __init__(
        self,
        path: Path,
        config: StudyConfig,
        dataset: Dataset,
        contents: Contents,
        block_length: int | None,
        num_blocks: int = 0,
        code: dict[str, dict[str, str]] | None = None,
        loop: dict[str, Any] | None = None,
    ) -> None:
        self.path = path.absolute()
        self._pending: Path | None = None
        self._last: Path | None = None
        self._closed = False
        num_examples = len(dataset.labels)
        files = {name: npy(array) for name, array in example_arrays(dataset).items()}
        self._again = (
            "the same command continues from there" if loop is None else "Recorder(..., resume=True) continues"
        )
        sizes = {"num_iterations": config.num_iterations(num_examples), "block_length": block_length}
        header = {
            "format": FORMAT,
            "config": config.to_dict(),
            "num_examples": num_examples,
            **(sizes if loop is None else {"loop": loop}),
            **example_header(dataset),
            "contents": contents.to_json(),
            "code": code or {},
            "dataset": {name: checksum_of(content) for name, content in files.items()},
            "versions": versions(),
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path, patience=PATIENCE)
            try:
                self._begin(sealed(header), files, num_blocks)
            except BaseException:
                os.close(self._lock)
                raise
        except BlockingIOError:
            raise busy(path) from None
        except OSError as error:
            raise InputError.flag("recording", path, f"cannot be written: {error.strerror}") from error
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(
                use_ocdbt=False,
                use_zarr3=True,
                type_handler_registry=ocp.type_handlers.create_type_handler_registry(
                    (np.ndarray, _ArrayHandler(self._header))
                ),
            ),
            # Made beside the rest, a directory that cannot be made would leave threads that wait for it for minutes.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
            # The other store has a thread of its own, which a failed save leaves waiting for work: Orbax then raises
            # before it ends that thread.
            checkpoint_metadata_store=ocp.metadata.metadata_store(enable_write=True, blocking_write=True),
        )

    def _begin(self, header: dict[str, Any], files: dict[str, bytes], num_blocks: int) -> None:
        """Write what comes before the first block, unless it already exists."""
        if not (self.path / "config.json").exists():
            with written_whole(self.path / "config.json") as new:
                new.write_text(json.dumps(header, indent=2) + "\n")
        found = read_header(self.path)
        same = StudyConfig.from_dict(found["config"]) == StudyConfig.from_dict(header["config"])
        if not same or any(found.get(name) != header.get(name) for name in ("block_length", "loop")):
            raise InputError.flag(
                "recording", self.path, "was begun by another run meanwhile; choose another directory"
            )
        if found["dataset"] != header["dataset"]:
            raise InputError.flag("recording", self.path, "was begun with other examples; choose another directory")
        if len(whole_blocks(self.path, found)) != num_blocks:
            raise InputError.flag("recording", self.path, "was written to by another run meanwhile; try again")
        if not (self.path / "dataset").exists():
            with written_whole(self.path / "dataset") as new:
                save_arrays(new, files)
        (self.path / "blocks").mkdir(exist_ok=True)
        check_writable(self.path / "blocks")
        self._header = found

    def save(self, start: int, record: dict[str, Any], state: Any) -> None:
        """Start to save a block of `[s, t, ...]` NumPy arrays, after waiting for the one before.

        No copy is made. The caller may reuse the arrays' memory only after the next call, which waits for this one to
        end.
        """
        self.wait()
        self._check_there()
        self._pending = self.path / "blocks" / str(start)
        with self._failing_clearly(self._pending):
            self._checkpointer.save(self._pending, args=ocp.args.PyTreeSave({"record": record, "state": state}))

    def wait(self) -> None:
        """Wait until the block being saved is complete.

        Raises:
            RecordingError: If it could not be saved.
        """
        block, self._pending = self._pending, None
        if block is None:
            return
        with self._failing_clearly(block):
            self._checkpointer.wait_until_finished()
            there = os.listdir(block.parent)
        self._check_there()
        if block.name not in there:
            raise RuntimeError(f"{block} was not written although saving it raised no error")
        self._last = block

    def _check_there(self) -> None:
        """Check that the directory is still the one that was begun, with all blocks; Orbax would make a new one."""
        there = (self.path / "config.json").exists() and (self._last is None or self._last.is_dir())
        if there and os.path.samestat(os.stat(self.path), os.fstat(self._lock)):
            return
        raise RecordingError(
            f"{self.path}, or a part of it, was moved or removed during recording; bring it back, in place of what "
            "is left there, and run the same command again, or choose another directory"
        )

    @contextlib.contextmanager
    def _failing_clearly(self, block: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._pending = None
            self._check_there()
            raise RecordingError(
                f"{block} could not be written: {error.strerror or error}; what was recorded before iteration "
                f"{block.name} stays, and {self._again}"
            ) from error

    def restore_state(self, start: int, like: Any) -> Any:
        """Read the state after the last update of the block that begins at `start`, in the shape of `like`."""
        restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        block = self.path / "blocks" / str(start)
        whole = Block(block, np.arange(0), (), 0, place_of(self._header, start))
        for path in block.glob("state.*"):
            whole.state(path.name.removeprefix("state."))  # which checks it
        arguments = ocp.args.PyTreeRestore(item={"state": like}, restore_args={"state": restore}, partial_restore=True)
        try:
            return self._checkpointer.restore(block, args=arguments)["state"]
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise RecordingError(
                f"{block}: the state to continue from is damaged or missing: {reason}; restore it from a copy, or move "
                f"{block} elsewhere and run the same command again"
            ) from error

    def close(self) -> None:
        """Wait for the block being saved, end the threads, and release the directory. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as last:
            last.callback(os.close, self._lock)
            last.callback(self._checkpointer.close)
            self.wait()


class _ArrayHandler(ocp.type_handlers.NumpyHandler):
    """The part of Orbax that stores arrays. Only the way they are written is ours."""

    def __init__(self, header: dict[str, Any]) -> None:
        super().__init__()
        self._header = header

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
        async def write() -> None:
            calls = []
            for array, info in zip(values, infos, strict=True):
                await info.await_path_creation()
                start = info.parent_dir.name.partition(".")[0]  # "98.orbax-checkpoint-tmp" until it is whole
                place = f"{place_of(self._header, start)}/{info.name}"
                rows = _rows(array) if info.name.startswith("record.") else None
                calls.append(asyncio.to_thread(write_array, Path(info.path), array, rows, place))
            # None is left writing when the first error is raised.
            done = await asyncio.gather(*calls, return_exceptions=True)
            for error in filter(None, done):
                raise error

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="arrays")]


def _rows(array: np.ndarray) -> int | None:
    """Store each iteration as a piece that can be read alone, unless the pieces would be tiny."""
    return 1 if array.ndim > 2 and array[:, 0].nbytes >= PIECE_BYTES else None
