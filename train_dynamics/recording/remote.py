"""Recordings on remote storage: an object store, a web server or anything else that fsspec can read. Read-only."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from train_dynamics.config import InputError

HIDDEN = (403, 410)  # what a server may say of a file that is not there, besides that it is not
AHEAD = 2**23  # bytes that are asked for at once where one piece is read after the other
BETWEEN = 4096  # that may lie between these, and be nothing


class Url:
    """A remote file or directory, with the methods of `pathlib.Path` that reading needs.

    File names follow from the header of a recording, and are asked for directly. Only `iterdir` lists a directory.

    Args:
        text: The URL, checked by `located`.

    Example:
        >>> Url("s3://bucket/study") / "config.json"
        Url('s3://bucket/study/config.json')
    """

    def __init__(self, text: str) -> None:
        self._text = text.rstrip("/")

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Url({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and str(other) == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __truediv__(self, name: str | Path) -> "Url":
        return Url(f"{self._text}/{name}")

    def joinpath(self, *names: str) -> "Url":
        """Return a file or directory inside it."""
        return Url("/".join([self._text, *names]))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._text.rpartition("/")[2]

    def resolve(self) -> "Url":
        """Return the same URL: it means the same in every process and working directory."""
        return self

    absolute = resolve

    def read_bytes(self) -> bytes:
        """Read the file. Raises OSError if it cannot be read."""
        return self._asked(lambda files, path: files.cat_file(path))

    def read_range(self, begin: int, size: int) -> bytes:
        """Read a range of the file, or all of it if the server cannot do less. Raises as `read_bytes` does."""
        return self._asked(lambda files, path: files.cat_file(path, begin, begin + size))

    def read_ranges(self, begins: Sequence[int], size: int) -> list[bytes]:
        """Read several ranges of the file, at once if possible. Raises as `read_bytes` does."""
        ends = [begin + size for begin in begins]
        return self._asked(
            lambda files, path: files.cat_ranges([path] * len(ends), list(begins), ends, on_error="raise")
        )

    def exists(self) -> bool:
        """Tell whether it is a file, by reading it, because not every server knows directories. Raises likewise."""
        try:
            self.read_bytes()
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            return False
        return True

    is_file = exists

    def is_dir(self) -> bool:
        """Tell whether it can be listed and is not empty."""
        try:
            return next(self.iterdir(), None) is not None
        except OSError:
            return False

    def iterdir(self) -> Iterator["Url"]:
        """List the directory. Raises OSError if that is not possible."""
        listed = self._asked(lambda files, path: files.ls(path, detail=False))
        yield from (self / name.rstrip("/").rpartition("/")[2] for name in listed)

    def _asked(self, ask: Callable[[Any, str], Any]) -> Any:
        """Call the URL's file system, and turn the errors of every kind of store into OSError."""
        import fsspec

        try:
            # Listings are not kept: a recording may grow.
            return ask(*fsspec.core.url_to_fs(self._text, use_listings_cache=False))
        except OSError:
            raise
        except Exception as error:
            if getattr(error, "status", None) in HIDDEN:
                raise PermissionError(f"{self} is not to be had: {error}") from error
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise OSError(f"{type(error).__name__}: {reason}") from error


AnyPath = Path | Url
"""Where something is: on this machine, or elsewhere."""


class RemoteFile:
    """The opened file of a remote array.

    Args:
        file: The file.
    """

    def __init__(self, file: Url) -> None:
        self._file = file
        self._whole: bytes | None = None  # from a server that gives no less, which is then asked once
        self._begin, self._ahead = 0, b""  # what was read last

    def read(self, begin: int, size: int) -> UInt8[np.ndarray, " {size}"]:
        """Read this many bytes.

        Raises:
            OSError: If they cannot be read.
            ValueError: If there are fewer.
        """
        found = self._cut(begin, size)
        if len(found) < size and not self._whole:
            follows = self._ahead and 0 <= begin - self._begin - len(self._ahead) < BETWEEN
            asked = max(size, AHEAD) if follows or found else size
            self._begin, self._ahead = begin, self._file.read_range(begin, asked)
            if len(self._ahead) > asked:
                self._whole = self._ahead
            found = self._cut(begin, size)
        if len(found) < size:
            raise ValueError(f"the file ends at byte {begin + len(found)}, before it should")
        return np.frombuffer(bytearray(found), np.uint8)

    def fill(self, stretches: Shaped[np.ndarray, "k ..."], begins: Sequence[int]) -> None:
        """Fill each of some arrays with bytes from the file. Raises as `read` does."""
        size = stretches[0].nbytes
        flat = stretches.reshape(len(begins), -1).view(np.uint8)
        flat[0] = self.read(begins[0], size)
        rest = begins[1:]
        found = [self._cut(begin, size) for begin in rest] if self._whole else self._file.read_ranges(rest, size)
        for k, (begin, stretch) in enumerate(zip(rest, found, strict=True), start=1):
            if len(stretch) != size:
                raise ValueError(f"the file ends at byte {begin + len(stretch)}, before it should")
            flat[k] = np.frombuffer(stretch, np.uint8)

    def _cut(self, begin: int, size: int) -> bytes:
        """Return the bytes that were already read."""
        first = begin if self._whole else begin - self._begin
        return (self._whole or self._ahead)[first : first + size] if first >= 0 else b""


def located(path: Any) -> AnyPath:
    """Turn the user's text into a path: a `Url` if it is a URL that fsspec reads, otherwise a local path.

    Raises:
        InputError: If it is a URL that cannot be read, because a package is missing or the protocol is unknown.

    Example:
        >>> located("recordings/mini_mnist"), located("memory://bucket/study")
        (PosixPath('recordings/mini_mnist'), Url('memory://bucket/study'))
    """
    if isinstance(path, Url):
        return path
    if not isinstance(path, str) or "://" not in path:
        return Path(path)
    protocol = path.partition("://")[0]
    if importlib.util.find_spec("fsspec") is None:
        raise InputError(f"{path}: a URL needs the package fsspec, which is not installed: pip install fsspec")
    import fsspec

    if "::" in path:
        raise InputError(f"{path}: is a chain of URLs; name one alone, for example s3://bucket/study")
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        known = "s3://, gs:// and https://"
        raise InputError(f"{path}: fsspec does not know {protocol}://; it knows for example {known}") from error
    except ImportError as error:
        raise InputError(f"{path}: {protocol}:// needs a package that is not installed: {error}") from error
    return Url(path)


def check_local(path: Any, flag: str = "recording") -> None:
    """Check that a path to write to is local, even if `Path` turned a URL's two slashes into one.

    Raises:
        InputError: If it is not.
    """
    first, *rest = str(path).split("/")
    of_url = rest and first.endswith(":") and first[:-1].isalnum() and not Path(first).exists()
    if of_url or "gs:" in rest:  # Orbax takes this for a URL wherever it stands
        raise InputError.flag(
            flag,
            path,
            "is a URL, and URLs can only be read; write to a local disk and copy the result there, for "
            "example with rclone copy, aws s3 cp --recursive or fsspec's put(..., recursive=True)",
        )


def leading(count: int, is_there: Callable[[int], bool]) -> int:
    """Count how many of things made in order exist, by asking for only a few of them, first for the last."""
    if not count or is_there(count - 1):
        return count
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if is_there(middle) else (low, middle)
    return low
