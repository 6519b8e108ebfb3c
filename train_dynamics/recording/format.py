"""The files of a recording: header, checksums and blocks. Each file is written completely or not at all."""

import contextlib
import io
import json
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Int, Shaped

from train_dynamics import __version__
from train_dynamics.config import InputError, StudyConfig, pluralise
from train_dynamics.recording.contents import Contents, mlp_contents
from train_dynamics.recording.examples import check_example_header
from train_dynamics.recording.remote import AnyPath, Url, leading
from train_dynamics.recording.storage import StoredArray, read_whole

FORMAT = 6
READABLE = (4, 5, 6)  # recordings of format 4 have the default network and do not say what they hold
SIZES = ("num_examples", "num_iterations", "block_length")
OF_LOOP = ("num_examples",)  # what is known before a loop of the user's own
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


class RecordingError(InputError):
    """Raised if a directory is not a valid recording."""


def read_header(path: AnyPath) -> dict[str, Any]:
    """Read and check `config.json`.

    Raises:
        RecordingError: If it does not exist, cannot be read, or has a newer format.
    """
    if isinstance(path, Path) and not path.is_dir():
        raise RecordingError(f"{path} is not a directory")
    try:
        header = json.loads(read_whole(path.resolve() / "config.json"))
        if not isinstance(header["format"], int):
            raise ValueError("its format is not a number")
        if header["format"] not in READABLE:
            other = "a newer version" if header["format"] > FORMAT else "the version that wrote it"
            known = ", ".join(map(str, READABLE[:-1])) + f" and {READABLE[-1]}"
            raise RecordingError(
                f"{path} has format {header['format']}, and this version reads formats {known}: use {other}"
            )
        if header["checksum"] != sealed(header)["checksum"]:
            raise ValueError("it was changed after it was written: its checksum differs")
        StudyConfig.from_dict(header["config"])
        contents_of(header)
        sizes = OF_LOOP if "loop" in header else SIZES
        whole = all(isinstance(header[name], int) and header[name] > 0 for name in sizes)
        if "loop" in header and not all(isinstance(seed, int) for seed in header["loop"]["seeds"]):
            raise ValueError("its seeds are malformed")
        kinds = {"class_names": list, "versions": dict, "dataset": dict}
        if not whole or not all(isinstance(header[name], kind) for name, kind in kinds.items()):
            raise ValueError("sizes, class names, versions or checksums are malformed")
        check_example_header(header)
    except RecordingError:
        raise
    except FileNotFoundError:
        raise RecordingError(f"{path} is not a recording: it has no config.json") from None
    except KeyError as error:
        raise RecordingError(f"{path / 'config.json'} does not belong to a recording: it has no {error}") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RecordingError(f"{path / 'config.json'} does not belong to a recording: {error}") from error
    return header


def contents_of(header: dict[str, Any]) -> Contents:
    """Return which arrays a recording holds."""
    if header["format"] > 4:
        return Contents.from_json(header["contents"])
    config = StudyConfig.from_dict(header["config"])
    return mlp_contents(config, [0, *config.hidden_sizes, len(header["class_names"])])  # the inputs' size plays no part


def place_of(header: dict[str, Any], start: int | str) -> str:
    """Make the name that ties a block's arrays to their place, so that they cannot be read as another's."""
    return f"{header['checksum']}/{start}"


def sealed(header: dict[str, Any]) -> dict[str, Any]:
    """Add a checksum of everything else in a header to it."""
    rest = {name: value for name, value in header.items() if name != "checksum"}
    return {**rest, "checksum": checksum_of(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())}


def checksum_of(content: bytes) -> str:
    """Compute the CRC-32C of a file's content, as headers store it."""
    return f"{google_crc32c.value(content):08x}"


def whole_blocks(path: AnyPath, header: dict[str, Any]) -> dict[int, Int[np.ndarray, " t"]]:
    """List the complete blocks in order: the first iteration of each, with all of its iterations.

    On remote storage, where directories cannot always be listed, blocks are asked for by name.

    Raises:
        RecordingError: If a block before the last is missing, or if there is one that does not belong there.
    """
    blocks = path / "blocks"
    if "loop" in header:
        return _blocks_of_loop(path, header, sorted(_listed(blocks)))
    iterations = StudyConfig.from_dict(header["config"]).iterations(header["num_examples"])
    length = header["block_length"]
    possible = iterations[::length].tolist()
    found = set(possible[: _first_blocks(blocks, possible)]) if isinstance(blocks, Url) else _listed(blocks)
    if odd := found - set(possible):
        raise RecordingError(f"{path} is damaged: {blocks / str(min(odd))} does not belong to it; move it elsewhere")
    expected = possible[: len(found)]
    if missing := set(expected) - found:
        raise RecordingError(
            f"{path} is damaged: {blocks / str(min(missing))} is missing; restore it from a copy, "
            "or record again into another directory"
        )
    return {start: iterations[k * length : (k + 1) * length] for k, start in enumerate(expected)}


def _listed(blocks: AnyPath) -> set[int]:
    """List the first iteration of each block."""
    try:
        if isinstance(blocks, Path) and not blocks.is_dir():
            return set()
        return {int(entry.name) for entry in blocks.iterdir() if entry.name.isdigit()}
    except OSError as error:
        raise RecordingError(f"{blocks} cannot be listed: {error.strerror or error}") from error


def _first_blocks(blocks: Url, possible: list[int]) -> int:
    """Count the blocks that exist."""
    try:
        return leading(len(possible), lambda k: (blocks / f"{possible[k]}/record.loss/zarr.json").exists())
    except OSError as error:
        raise RecordingError(f"{blocks} cannot be read: {error}") from error


def _blocks_of_loop(path: AnyPath, header: dict[str, Any], starts: list[int]) -> dict[int, Int[np.ndarray, " t"]]:
    """List the blocks of a user's own loop, where each block itself says which iterations it has."""
    found, records = {}, 0
    for start in starts:
        block = path.resolve() / "blocks" / str(start)
        iterations, earlier = (
            read_array(block, f"state.{name}", place_of(header, start)) for name in ("iterations", "earlier")
        )
        if earlier.tolist() != [records]:
            raise RecordingError(
                f"{path} is damaged: {pluralise(int(earlier[0]), 'record')} should come before {block}, and "
                f"there are {records}; restore the blocks from a copy"
            )
        found[start] = iterations
        records += len(iterations)
    return found


def read_array(block: AnyPath, name: str, place: str) -> Shaped[np.ndarray, "..."]:
    """Read an array of a block.

    Raises:
        RecordingError: If it is damaged or missing.
    """
    with damaged(block / name):
        return StoredArray(block / name, f"{place}/{name}").read()


@contextlib.contextmanager
def damaged(path: AnyPath) -> Iterator[None]:
    """Turn errors of reading an array into a clear message that names the array."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise RecordingError(f"{path} is damaged or missing: {error}; restore it from a copy") from error


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write a file or directory to, and rename it when it is complete."""
    new = path.with_name(path.name + ".incomplete")
    try:
        yield new
        new.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):  # a directory stays until `save_arrays` removes it
            new.unlink()
        raise


def versions() -> dict[str, str]:
    """List the versions of all software that a recording is made with."""
    return {
        "train-dynamics": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def npy(array: np.ndarray) -> bytes:
    """Return the bytes of a NumPy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def save_arrays(path: Path, files: dict[str, bytes]) -> None:
    """Write the bytes of NumPy files, by name, into a new directory."""
    if path.is_dir():
        shutil.rmtree(path)  # left by a run that was killed or failed, and never more than that
    path.mkdir()
    for name, content in files.items():
        (path / f"{name}.npy").write_bytes(content)
