"""Films of all examples in motion, as MP4 or GIF, and single frames of them as figures."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from train_dynamics.plots import scatter
from train_dynamics.plots.lineages import COLORS
from train_dynamics.plots.style import GREEN, ORANGE, styled
from train_dynamics.progress import Progress
from train_dynamics.recording.format import written_whole
from train_dynamics.recording.reader import Recording
from train_dynamics.study.motion import frames, reach
from train_dynamics.study.stored_lineages import StoredLineages

SAMPLES = 24  # iterations from which the axes are found
AHEAD = 4  # items that are prepared while one is used
# At this quality a sixth larger than with the preset "veryfast", in a third of its time.
X264 = {"preset": "ultrafast", "crf": "28"}
Item = TypeVar("Item")


def film(
    recording: Recording,
    path: Path,
    seed: int,
    iterations: Sequence[int] | Int[np.ndarray, " t"],
    layers: Sequence[str] | None = None,
    fps: int = 30,
    history: int = 0,
    width: int | None = None,
    lineages: StoredLineages | None = None,
) -> None:
    """Write a film of one seed: where every example is after each of the iterations.

    The axes are the same in all frames. They are chosen from iterations evenly spread over the film.

    Args:
        recording: The recording, finished or not.
        path: File to write, `.mp4` (H.264, which any browser plays) or `.gif`. It appears only when it is complete.
            Until then there is a file with the same name and `.incomplete`, which is removed after an error.
        seed: One of `recording.seeds`.
        iterations: The iterations, one per frame. At least one.
        layers: Recorded layers, one panel each. Default: all.
        fps: Frames per second.
        history: Number of earlier frames whose points stay faintly visible.
        width: Width in pixels. Default: 120 per inch of the figure.
        lineages: Lineages of cones. The largest have colours of their own. For `.mp4` only.

    Raises:
        InputError: If the seed or a layer was not recorded, or the recording is damaged.
        OSError: If the file cannot be written.

    Example:
        >>> film(Recording("recordings/mini_mnist"), Path("first.mp4"), seed=0, iterations=range(120))
    """
    shown, lineage_at = view(recording, seed, iterations, layers), None
    if lineages is not None:
        about = f"seed {seed}; strong colours: its {len(COLORS)} largest lineages"
        shown, lineage_at = dataclasses.replace(shown, about=about), lambda t, layer: lineages.at(seed, layer, t)
    painter = scatter.Painter(shown, history, width, lineage_at)
    before = _before(recording, iterations, history)
    found = _ahead(frames(recording, seed, itertools.chain(before, iterations), layers))
    for _, frame in zip(before, found, strict=False):
        painter.paint(frame)
    # `leave=None` removes it at the end if it stands below the bar of an analysis.
    bar = Progress("Drawing the film", len(iterations), "frames", iterable=found, leave=None)
    encode((painter.paint(frame) for frame in bar), path, fps)


def still(
    recording: Recording,
    seed: int,
    iteration: int,
    layers: Sequence[str] | None = None,
    history: int = 0,
    span: Sequence[int] | Int[np.ndarray, " t"] | None = None,
) -> Figure:
    """Draw one iteration of one seed as a figure. Its axes are those of a film of `span`; by default, of itself.

    Raises:
        InputError: If the seed or a layer was not recorded, or the recording is damaged.
    """
    one = [iteration]
    *trail, frame = frames(recording, seed, [*_before(recording, one, history), iteration], layers)
    return scatter.scatter(view(recording, seed, span or one, layers), frame, trail)


def view(
    recording: Recording,
    seed: int,
    iterations: Sequence[int] | Int[np.ndarray, " t"],
    layers: Sequence[str] | None = None,
) -> scatter.View:
    """Choose axes that suit a range of iterations, from some that are evenly spread over it.

    Raises:
        InputError: If the seed or a layer was not recorded, or the recording is damaged.
    """
    places = np.unique(np.linspace(0, len(iterations) - 1, SAMPLES).round().astype(int))
    edges = reach(frames(recording, seed, [iterations[int(n)] for n in places], layers))
    about = f"each point is one of {len(recording.labels):,} training examples, seed {seed}"
    return scatter.View(tuple(layers or recording.layers), edges, about)


def encode(pictures: Iterable[UInt8[np.ndarray, "height width rgba"]], path: Path, fps: int) -> None:
    """Encode pictures of one even size as an MP4 or GIF, while the next ones are being made.

    Raises:
        OSError: If the file cannot be written.
    """
    encoder = _gif if path.suffix.lower() == ".gif" else _mp4
    with _whole(path) as new:
        encoder(_ahead(pictures), new, fps)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, depending on the path's ending. The same figure gives the same bytes.

    Raises:
        OSError: If the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    with styled(), _whole(path) as new:
        figure.savefig(new, format=kind, metadata={"Software" if kind == "png" else "Date": None})


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Do the same as `written_whole`, and also turn the encoder's errors into `OSError`."""
    try:
        with written_whole(path) as new:
            yield new
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def _mp4(pictures: Iterable[UInt8[np.ndarray, "height width rgba"]], path: Path, fps: int) -> None:
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options=X264)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        container.mux(stream.encode(None))


def _gif(pictures: Iterable[UInt8[np.ndarray, "height width rgba"]], path: Path, fps: int) -> None:
    colors = _palette()
    nearest = _nearest(colors)
    with av.open(path, "w", format="gif") as container:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("gif", rate=fps)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "pal8"
            red, green, blue = (picture[..., channel].astype(np.int32) >> 3 for channel in range(3))
            found = nearest[red << 10 | green << 5 | blue]
            container.mux(stream.encode(av.VideoFrame.from_ndarray((found, colors), format="pal8")))
        container.mux(stream.encode(None))


def _palette() -> UInt8[np.ndarray, "256 4"]:
    """Choose the 256 colours of a GIF: greys, and what green below orange makes of white. Alpha comes first."""
    share = np.linspace(0, 1, 15)[:, None]
    green, orange = (255 * np.array(to_rgb(color)) for color in (GREEN, ORANGE))
    mixed = (255 + (green - 255) * share)[:, None]
    mixed = (mixed + (orange - mixed) * share).reshape(-1, 3)
    greys = np.repeat(np.linspace(0, 255, 256 - len(mixed))[:, None], 3, axis=1)
    colors = np.rint(np.concatenate([mixed, greys])).astype(np.uint8)
    return np.concatenate([np.full((256, 1), 255, np.uint8), colors], axis=1)


def _nearest(colors: UInt8[np.ndarray, "256 4"]) -> UInt8[np.ndarray, "32768"]:
    """Find the nearest of the colours for each colour with five bits per channel."""
    bits = np.arange(32)
    every = np.stack(np.meshgrid(bits, bits, bits, indexing="ij"), axis=-1).reshape(-1, 3) * (255 / 31)
    palette = colors[:, 1:].astype(np.float32)
    squares = (palette**2).sum(axis=1) - 2 * every.astype(np.float32) @ palette.T
    return squares.argmin(axis=1).astype(np.uint8)


def _before(
    recording: Recording, iterations: Sequence[int] | Int[np.ndarray, " t"], history: int
) -> Int[np.ndarray, " earlier"]:
    """List the iterations of the first frame's trail, if there are any, with the stride of the frames."""
    first, second, *_ = *iterations, iterations[0] + 1
    there = recording.iterations[recording.iterations < first]
    there = there[(first - there) % (second - first) == 0]
    return there[max(len(there) - history, 0) :]


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Take items out of an iterable in a thread, a few ahead of the caller."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, source, end) for _ in range(AHEAD))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, source, end))
            yield item
