"""Time our film painter against matplotlib.animation redrawing the same scatter, interleaved in one run.

    python benchmarks/animation.py [--recording=recordings/mini_mnist] [--frames=30] [--rounds=3]

Both make the same frames, which are in memory beforehand, into the same kind of MP4: painting and encoding count;
reading the recording, imports and the first drawing of the axes do not. Matplotlib's side is a FuncAnimation that moves
the points of four scatter collections and changes the same texts. Its writer is kinder than Matplotlib's own: it takes
the frame that was drawn, and does not draw it again. Both hand their frames to the same encoder in a thread of its own,
so that neither waits for it. "Painting" is the same without the encoder.
"""

import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from matplotlib.animation import AbstractMovieWriter, FuncAnimation
from matplotlib.backends.backend_agg import FigureCanvasAgg

from train_dynamics.plots import film, scatter
from train_dynamics.plots.style import styled
from train_dynamics.recording.reader import Recording
from train_dynamics.study.motion import Frame, frames

RECORDING = flags.DEFINE_string("recording", "recordings/mini_mnist", "A recording.")
FRAMES = flags.DEFINE_integer("frames", 30, "Frames, evenly spread over the recording.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Times that all take turns.", lower_bound=1)


class Writer(AbstractMovieWriter):
    """Gives frames away as they were drawn; Matplotlib's own writers draw each a second time."""

    def __init__(self, take: Callable[[np.ndarray], None]) -> None:
        super().__init__(fps=30, metadata={})
        self.take = take

    def setup(self, fig, outfile, dpi=None) -> None:
        self.fig, self.outfile, self.dpi = fig, outfile, dpi or fig.dpi

    def grab_frame(self, **arguments) -> None:
        self.take(np.asarray(self.fig.canvas.buffer_rgba()).copy())  # FuncAnimation has just drawn it

    def finish(self) -> None:
        pass


class Redrawn:
    """The scatter as a user of Matplotlib would animate it."""

    def __init__(self, view: scatter.View) -> None:
        self.view = view
        self.scaffold = scatter._scaffold(view)
        figure = self.scaffold.figure
        figure.set_dpi(scatter.DPI)
        FigureCanvasAgg(figure)
        for axes in self.scaffold.panels:
            for mark, marker in zip(scatter.MARKS, "o>x>", strict=True):  # Matplotlib is fastest with its own markers
                style = {"s": mark.size**2, "color": mark.color, "linewidths": mark.line_width, "alpha": scatter.ALPHA}
                axes.scatter([], [], marker=marker, clip_on=False, **style)
        figure.canvas.draw()

    def move(self, frame: Frame) -> None:
        for k, axes in enumerate(self.scaffold.panels):
            places = scatter._places(frame, k, self.view.reach[k]).values()
            for collection, place in zip(axes.collections, places, strict=True):
                collection.set_offsets(np.column_stack(place))
        for text, number in zip(self.scaffold.numbers, scatter._numbers(frame), strict=True):
            text.set_text(number)

    def save(self, found: list[Frame], take: Callable[[np.ndarray], None]) -> None:
        animation = FuncAnimation(
            self.scaffold.figure, self.move, found, init_func=lambda: None, cache_frame_data=False, repeat=False
        )
        animation.save("unused", Writer(take), dpi=scatter.DPI)


def encode_pushed(push: Callable[[Callable[[np.ndarray], None]], None], path: Path) -> None:
    """Encode, in a thread, what a function hands over picture by picture."""
    pictures = queue.Queue(film.AHEAD)

    def taken() -> Iterator[np.ndarray]:
        while (picture := pictures.get()) is not None:
            yield picture

    encoder = threading.Thread(target=film.encode, args=(taken(), path, 30), daemon=True)
    encoder.start()
    push(pictures.put)
    pictures.put(None)
    encoder.join()


def main(_) -> None:
    recording = Recording(RECORDING.value)
    iterations = recording.iterations[
        np.linspace(0, recording.num_records - 1, FRAMES.value).round().astype(int)
    ].tolist()
    seed = int(recording.seeds[0])
    found = list(frames(recording, seed, iterations))
    view = film.view(recording, seed, recording.iterations)
    painter = scatter.Painter(view)
    seconds: dict[str, list[float]] = {}
    with styled(), tempfile.TemporaryDirectory() as directory:
        redrawn = Redrawn(view)
        ours, theirs = Path(directory) / "ours.mp4", Path(directory) / "theirs.mp4"
        ways = {
            "ours": lambda: film.encode(map(painter.paint, found), ours, 30),
            "matplotlib": lambda: encode_pushed(lambda take: redrawn.save(found, take), theirs),
            "ours, painting": lambda: [painter.paint(frame) for frame in found],
            "matplotlib, painting": lambda: redrawn.save(found, lambda picture: None),
        }
        logging.set_verbosity(logging.ERROR)  # FuncAnimation notes every save
        for round in range(ROUNDS.value + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                if round:  # the first is a warm-up
                    seconds.setdefault(name, []).append(time.perf_counter() - began)
        sizes = {"ours": ours.stat().st_size, "matplotlib": theirs.stat().st_size}
    print(
        f"{RECORDING.value}: {len(found)} frames of {len(recording.labels):,} points in {len(view.layers)} panel(s), "
        f"{painter.shape[1]} x {painter.shape[0]}, {ROUNDS.value} rounds"
    )
    print(f"{'frames a second':24} {'median':>8} {'min':>8} {'max':>8} {'MB':>8}")
    for name, of in seconds.items():
        rates = [len(found) / one for one in of]
        size = f"{sizes[name] / 1e6:8.1f}" if name in sizes else ""
        print(f"{name:24} {statistics.median(rates):8.1f} {min(rates):8.1f} {max(rates):8.1f} {size}")
    for words, ending in (("painting and encoding", ""), ("painting", ", painting")):
        pairs = zip(seconds[f"matplotlib{ending}"], seconds[f"ours{ending}"], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        target = "   (target: at least 5)" if not ending else ""
        print(f"{words + ', ours / matplotlib':40} {ratio:8.1f}{target}")


if __name__ == "__main__":
    app.run(main)
