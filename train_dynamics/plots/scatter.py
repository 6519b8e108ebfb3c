"""Draws every example as a point, by gradient norm and alignment: as one figure, or as frames of a film.

The horizontal scale is the square root of the norm. Norms begin near 1 and end between 0 and 40. On a linear scale, the
beginning is a sliver at the left edge. On a logarithmic scale, examples that ask for almost nothing take most of the
width, and those with a zero gradient have no place.

Matplotlib draws a figure point by point. For a film it draws one picture without points, and NumPy stamps the points of
each frame into it, which is many times as fast.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, StrMethodFormatter
from matplotlib.transforms import Affine2D

from train_dynamics.plots.lineages import COLORS
from train_dynamics.plots.style import GREEN, ORANGE, cut_short, styled, wrapped
from train_dynamics.study.motion import Frame

ALPHA = 0.5
FAINT = 0.25  # ink of the others where lineages have colours
TRAIL = 0.2  # opacity of the youngest trace of a trail, of that of a point
DPI = 120.0
TURNS = 16
PHASES = 4  # stamps for as many positions between two pixels, each way
LEVELS = 128  # of ink, from none to as good as opaque
OPAQUE = 4.5  # ink that lets 1 % of the light through
POINTS, ROWS = 512, 32  # worked on at once: large temporary arrays cost more than what is done with them
SHORT_NAME, LONGEST_NAME = 14, 26  # letters that have room beside the norm's words, and beside fewer words
HEIGHT, TOP, BOTTOM, LEFT, RIGHT, GAP = 5.4, 0.98, 0.56, 0.72, 0.22, 0.3  # inches


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """What all frames of a film have in common.

    Attributes:
        layers: Names of the layers, one for each panel.
        reach: Norm at the right edge of each panel. Examples beyond it are drawn at the edge, as arrowheads.
        about: A line that describes what is shown, above the legend.
    """

    layers: tuple[str, ...]
    reach: Float[np.ndarray, " layer"]
    about: str


@dataclasses.dataclass(frozen=True)
class Mark:
    """How a kind of example is drawn. Kinds differ in shape, so that colour is not needed to tell them apart.

    Attributes:
        label: What it means.
        path: Its outline, of any scale.
        color: Its colour.
        filled: Whether the outline is filled rather than stroked.
        size: Width and height, in points.
    """

    label: str
    path: Path
    color: str
    filled: bool
    size: float

    @property
    def line_width(self) -> float:
        """Width of the stroke in points."""
        return 0.0 if self.filled else 1.1


TRIANGLE = Path([(-0.5, -1), (1, 0), (-0.5, 1), (-0.5, -1)], closed=True)
CHEVRON = Path([(-0.5, -1), (1, 0), (-0.5, 1)])
CROSS = Path([(-1, -1), (1, 1), (-1, 1), (1, -1)], [Path.MOVETO, Path.LINETO, Path.MOVETO, Path.LINETO])
CORRECT = Mark("correct", Path.unit_circle(), GREEN, True, 3.4)
WRONG = Mark("wrong", CROSS, ORANGE, False, 3.6)
CORRECT_BEYOND = Mark("correct, off the scale", TRIANGLE, GREEN, True, 7.0)
WRONG_BEYOND = Mark("wrong, off the scale", CHEVRON, ORANGE, False, 7.0)
MARKS = (CORRECT, CORRECT_BEYOND, WRONG, WRONG_BEYOND)  # those painted later lie on top


@dataclasses.dataclass(frozen=True, eq=False)
class Scaffold:
    """A figure without the things that change between frames.

    Attributes:
        figure: The figure.
        panels: One for each layer.
        numbers: Empty texts for the iteration, the accuracy, and each layer's mean gradient norm.
    """

    figure: Figure
    panels: list[Axes]
    numbers: list[Text]


def scatter(view: View, frame: Frame, trail: Sequence[Frame] = ()) -> Figure:
    """Draw one frame as a figure. Points are pixels, in an SVG too.

    Args:
        view: What is common to all frames.
        frame: The frame.
        trail: Earlier frames, oldest first, drawn faintly below.
    """
    with styled():
        scaffold = _scaffold(view)
        for weight, one in zip([*_fading(len(trail)), 1.0], [*trail, frame], strict=True):
            for k, axes in enumerate(scaffold.panels):
                _draw(axes, one, k, view.reach[k], weight)
        for text, number in zip(scaffold.numbers, _numbers(frame), strict=True):
            text.set_text(number)
        return scaffold.figure


def key_frames(view: View, frames: Sequence[Frame]) -> Figure:
    """Draw several frames as one figure, one per row; with a single layer, two per row."""
    with styled():
        columns = len(view.layers) if len(view.layers) > 1 else min(2, len(frames))
        rows = -(-len(frames) * len(view.layers) // columns)
        figure = Figure(figsize=(4.2 * columns, 2.6 * rows + 0.6))
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(frames) * len(view.layers) :]:
            axes.remove()
        for n, axes in enumerate(panels[: len(frames) * len(view.layers)]):
            frame, k = frames[n // len(view.layers)], n % len(view.layers)
            _dress(axes, view.reach[k])
            _draw(axes, frame, k, view.reach[k], 1.0, scale=0.6)  # as much smaller as the panels are
            words = f"{cut_short(view.layers[k], 40)}: norm of the mean gradient"
            if len(wrapped(f"{words} 0.0000", 11, 3.7)) > 1:  # alike in all rows
                words = words.replace(": ", ":\n")
            norm = f"{frame.mean_norm[k]:#.3g}"
            axes.set_title(f"iteration {frame.iteration:,}, accuracy {_percent(frame)}\n{words} {norm}")
            axes.label_outer()
        figure.legend(handles=_handles(), loc="outside lower center", ncols=4, fontsize=9)
        return figure


class Painter:
    """Paints the frames of a film, all on the same axes.

    Args:
        view: What is common to all frames.
        history: Number of earlier frames whose points stay faintly visible.
        width: Width of the pictures in pixels, by default 120 per inch. Width and height are rounded to even numbers,
            as video requires.
        lineages: Function that returns the lineage of each example at an iteration in a layer, -1 for none. Members of
            the largest lineages get its colour instead of that of right or wrong, and other examples are faint.

    Attributes:
        shape: Height and width of the pictures, in pixels.
    """

    def __init__(
        self,
        view: View,
        history: int = 0,
        width: int | None = None,
        lineages: Callable[[int, str], Int[np.ndarray, " n"]] | None = None,
    ) -> None:
        self.view, self._lineages = view, lineages
        with styled():
            self._scaffold = _scaffold(view)
            figure = self._scaffold.figure
            dpi = width / figure.get_size_inches()[0] if width else DPI
            size = [2 * round(inches * dpi / 2) for inches in figure.get_size_inches()]
            figure.set(dpi=dpi, size_inches=[pixels / dpi for pixels in size])
            self._canvas = FigureCanvasAgg(figure)
            self._canvas.draw()
            self._empty = self._pixels().copy()
            self._letters = [_Letters(text, self._canvas) for text in self._scaffold.numbers]
        self.shape = self._empty.shape[:2]
        self._stamps = {mark: _stamps(mark, dpi) for mark in MARKS}
        margin = max(stamps.shape[-1] for stamps in self._stamps.values()) // 2 + 1
        boxes = [axes.bbox.extents for axes in self._scaffold.panels]
        left, right = int(boxes[0][0]) - margin, int(boxes[-1][2]) + margin
        top, bottom = self.shape[0] - int(boxes[0][3]) - margin, self.shape[0] - int(boxes[0][1]) + margin
        self._box = (slice(max(top, 0), bottom), slice(max(left, 0), right))
        self._dyes, self._ground = _dyes(self._empty[self._box])
        self._inked = np.empty((2, *self._ground.shape), np.float32)
        self._past = collections.deque(maxlen=history)

    def paint(self, frame: Frame) -> UInt8[np.ndarray, "height width rgba"]:
        """Paint the next frame.

        Example:
            >>> view = View(("fc2",), np.array([4.0]), "two examples")
            >>> frame = Frame(3, np.array([[1.0, 2.0]]), np.array([[0.5, 0.0]]), np.ones(1), np.array([True, False]))
            >>> Painter(view, width=800).paint(frame).shape
            (540, 800, 4)
        """
        picture = self._empty.copy()
        for letters, number in zip(self._letters, _numbers(frame), strict=True):
            letters.write(picture, number)
        lineage = self._coloured(frame)
        ink = now = self._ink(frame, lineage)
        if self._lineages:
            now *= np.float32(FAINT)  # or the many would hide the few
        for weight, past in zip(_fading(len(self._past)), self._past, strict=True):
            ink = ink + np.float32(weight) * past
        if self._past.maxlen:
            self._past.append(now.copy())
        box = picture.view(np.uint32)[..., 0][self._box]
        for start in range(0, len(box), ROWS):
            rows = slice(start, start + ROWS)
            if ink[:, rows].any():
                correct, wrong = np.minimum(ink[:, rows], LEVELS - 1).astype(np.int32)
                box[rows] = self._dyes[self._ground[rows] + LEVELS * correct + wrong]
        if self._lineages:
            self._blend(picture[self._box][..., :3], frame, lineage)
        return picture

    def _coloured(self, frame: Frame) -> Int[np.ndarray, "layer n"]:
        """Return the lineage of each example that has a colour of its own; -1 for others."""
        if not self._lineages:
            return np.full(frame.norm.shape, -1)
        found = np.stack([self._lineages(frame.iteration, layer) for layer in self.view.layers])
        return np.where(found < len(COLORS), found, -1)

    def _blend(self, box: UInt8[np.ndarray, "h w 3"], frame: Frame, lineage: Int[np.ndarray, "layer n"]) -> None:
        """Paint the members of lineages over the others, in their own colours."""
        shades = np.array([(1.0, *to_rgb(color)) for color in COLORS])
        light = np.zeros((4, *box.shape[:2]), np.float32)  # ink, and its red, green and blue
        for k in range(len(self.view.layers)):
            for mark, here in _kinds(frame, k, self.view.reach[k], lineage[k] >= 0).items():
                places, shade = self._pixels_of(frame, k, here), shades[lineage[k, here]]
                for channel, weight in zip(light, shade.T, strict=True):
                    _stamp(channel, self._stamps[mark], *places, weight)
        ink = light[0]
        covering = -np.expm1(-ink * (OPAQUE / LEVELS))
        for channel, of_channel in enumerate(light[1:]):
            shade = 255 * of_channel / np.maximum(ink, 1e-6)
            box[..., channel] = np.rint(box[..., channel] + covering * (shade - box[..., channel]))

    def _pixels(self) -> UInt8[np.ndarray, "height width rgba"]:
        return np.asarray(self._canvas.buffer_rgba())

    def _pixels_of(self, frame: Frame, k: int, here: Bool[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Find where some examples are in the box around the panels: pixels down and across."""
        down, across = self._box
        places = np.minimum(frame.norm[k, here], self.view.reach[k]), frame.cosine[k, here]
        right, up = self._scaffold.panels[k].transData.transform(np.column_stack(places)).T
        return self.shape[0] - up - down.start, right - across.start

    def _ink(self, frame: Frame, lineage: Int[np.ndarray, "layer n"]) -> Float[np.ndarray, "2 h w"]:
        """Add up the ink of the correct and of the wrong examples on each pixel of the box around the panels.

        Members of lineages are left out, because they have colours of their own.

        Ink is -log of the share of light that passes through, so it adds up where points overlap. The array is reused
        at each call.
        """
        self._inked.fill(0)
        for k in range(len(self.view.layers)):
            for mark, here in _kinds(frame, k, self.view.reach[k], lineage[k] < 0).items():
                ink = self._inked[MARKS.index(mark) // 2]
                _stamp(ink, self._stamps[mark], *self._pixels_of(frame, k, here))
        return self._inked


def _scaffold(view: View) -> Scaffold:
    """Draw axes, labels and legend, and reserve places for the texts."""
    count = len(view.layers)
    width = {1: 8.0, 2: 11.0}.get(count, 4.6 * count)
    figure = Figure(figsize=(width, HEIGHT), layout="none")
    figure.subplots_adjust(
        LEFT / width,
        BOTTOM / HEIGHT,
        1 - RIGHT / width,
        1 - TOP / HEIGHT,
        wspace=GAP * count / (width - LEFT - RIGHT - GAP * (count - 1)),
    )
    panels = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    for axes, edge in zip(panels, view.reach, strict=True):
        _dress(axes, edge)
    for axes in panels[1:]:
        axes.set_ylabel("")
    left = LEFT / width

    def texts(x: float, words: str) -> Text:
        """Put words at the top of the figure, and below them an empty text, larger, for a number."""
        figure.text(x, 1 - 0.2 / HEIGHT, words, fontsize=9, color="#555555", va="center")
        return figure.text(x, 1 - 0.46 / HEIGHT, "", fontsize=16, fontweight="bold", va="center")

    numbers = [texts(left, "iteration"), texts(left + 1.15 / width, "accuracy")]
    words = "norm of the mean gradient" if max(map(len, view.layers)) <= SHORT_NAME else "mean gradient"
    for axes, layer in zip(panels, view.layers, strict=True):
        axes.set_title(cut_short(layer, LONGEST_NAME), fontweight="bold")
        beside = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
        axes.annotate(words, (1, 1), (-44, 6), ha="right", **beside)
        numbers.append(axes.annotate("", (1, 1), (-40, 6), ha="left", **beside))
    figure.legend(
        handles=_handles(),
        title=view.about,
        title_fontsize=9,
        alignment="left",
        loc="upper right",
        bbox_to_anchor=(1 - RIGHT / width, 1 - 0.08 / HEIGHT),
        ncols=2,
        fontsize=9,
        borderpad=0,
        borderaxespad=0,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    return Scaffold(figure, panels, numbers)


def _dress(axes: Axes, edge: float) -> None:
    """Give a panel its scales, ticks and labels."""
    axes.set_xscale("function", functions=(_root, np.square))
    axes.set(xlim=(0, edge), ylim=(-1, 1), xlabel="gradient norm (nats per unit of weight, √ scale)")
    axes.set_ylabel("cosine to the mean gradient")
    axes.xaxis.set_major_locator(FixedLocator(_ticks(edge)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_locator(FixedLocator([-1, -0.5, 0, 0.5, 1]))
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=0.5)


def _root(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.sqrt(np.maximum(x, 0))


def _ticks(edge: float) -> list[float]:
    """Choose round numbers from 0 to the edge whose labels have room on a square root scale."""
    power = 10.0 ** np.floor(np.log10(edge))
    found = [0.0]
    for x in np.outer([1, 0.1, 0.01], [5, 2, 1]).ravel() * power:
        if x <= edge and np.diff(np.sqrt(sorted([*found, float(x)]) / np.float64(edge))).min() >= 0.1:
            found.append(float(x))
    return sorted(found)


def _handles() -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=MarkerStyle(mark.path),
            markersize=max(mark.size, 6.0),
            markerfacecolor=mark.color if mark.filled else "none",
            markeredgecolor=mark.color,
            markeredgewidth=mark.line_width * 1.4,
            label=mark.label,
        )
        for mark in MARKS
    ]


def _numbers(frame: Frame) -> list[str]:
    """Write the numbers of a frame, in the order of `Scaffold.numbers`."""
    return [f"{frame.iteration:,}", _percent(frame), *(f"{norm:#.3g}" for norm in frame.mean_norm)]


def _percent(frame: Frame) -> str:
    return f"{100 * frame.accuracy:.1f} %"


def _places(frame: Frame, k: int, edge: float) -> dict[Mark, tuple[np.ndarray, np.ndarray]]:
    """Sort the examples by how they are drawn in panel `k`, with their coordinates."""
    norm, cosine = frame.norm[k], frame.cosine[k]
    everyone = np.ones(len(norm), bool)
    return {mark: (np.minimum(norm[of], edge), cosine[of]) for mark, of in _kinds(frame, k, edge, everyone).items()}


def _kinds(frame: Frame, k: int, edge: float, among: Bool[np.ndarray, " n"]) -> dict[Mark, Bool[np.ndarray, " n"]]:
    """Tell which examples are drawn as which mark in panel `k`."""
    right, beyond = frame.correct, frame.norm[k] > edge
    chosen = (right & ~beyond, right & beyond, ~right & ~beyond, ~right & beyond)
    return {mark: of & among for mark, of in zip(MARKS, chosen, strict=True)}


def _draw(axes: Axes, frame: Frame, k: int, edge: float, weight: float, scale: float = 1.0) -> None:
    """Draw the points of panel `k` with Matplotlib, alternating between kinds, so that no kind hides another."""
    for turn, (mark, (x, y)) in itertools.product(range(TURNS), _places(frame, k, edge).items()):
        axes.scatter(
            x[turn::TURNS],
            y[turn::TURNS],
            s=(scale * mark.size) ** 2,
            marker=MarkerStyle(mark.path),
            facecolors=mark.color if mark.filled else "none",
            edgecolors="none" if mark.filled else mark.color,
            linewidths=scale * mark.line_width,
            alpha=ALPHA * weight,
            clip_on=False,
            zorder=2,
            rasterized=True,
        )


def _fading(count: int) -> list[float]:
    """Opacity of each frame of a trail, oldest first, as a share of that of a point."""
    return [TRAIL * (n + 1) / count for n in range(count)]


class _Letters:
    """The characters of a number, drawn once and then put together, because Matplotlib takes milliseconds per text."""

    def __init__(self, text: Text, canvas: FigureCanvasAgg) -> None:
        self._pictures: dict[str, UInt8[np.ndarray, "h w 4"]] = {}
        around, figure = text.get_window_extent, canvas.figure
        empty = canvas.copy_from_bbox(figure.bbox)
        text.set_text("0,%")
        box = around().padded(2)
        height = np.asarray(canvas.buffer_rgba()).shape[0]
        self._top, self._left = int(height - box.y1), int(box.x0)
        rows = slice(self._top, int(height - box.y0) + 1)
        for character in "0123456789.,% e+-":
            widths = []
            for words in (f"0{character}0", "00"):
                text.set_text(words)
                widths.append(around().width)
            text.set_text(character)
            canvas.restore_region(empty)
            figure.draw_artist(text)
            right = self._left + 2 + round(widths[0] - widths[1])
            self._pictures[character] = np.asarray(canvas.buffer_rgba())[rows, self._left : right].copy()
        text.set_text("")
        canvas.restore_region(empty)

    def write(self, picture: UInt8[np.ndarray, "h w 4"], number: str) -> None:
        """Write a number into a picture, in its place."""
        left = self._left
        for character in number:
            letter = self._pictures[character]
            height, width = letter.shape[:2]
            place = picture[self._top : self._top + height, left : left + width]
            np.minimum(place, letter, out=place)  # what is darker wins: the background is white
            left += width - 2


def _stamps(mark: Mark, dpi: float) -> Float[np.ndarray, "phase phase side side"]:
    """Have Matplotlib draw a mark in the middle of a small square, at each position between pixels, down and across.

    The values are ink, in levels.
    """
    side = 2 * int(np.ceil((mark.size + mark.line_width) * dpi / 144)) + 1
    marker = MarkerStyle(mark.path)
    scale = marker.get_transform() + Affine2D().scale(mark.size * dpi / 72)
    share = np.empty((PHASES, PHASES, side, side))
    for phases in np.ndindex(PHASES, PHASES):
        down, across = (side // 2 + (phase + 0.5) / PHASES for phase in phases)
        renderer = RendererAgg(side, side, dpi)
        pen = renderer.new_gc()
        pen.set_snap(False)
        pen.set_linewidth(mark.line_width)
        placed = scale + Affine2D().translate(across, side - down)
        renderer.draw_path(pen, marker.get_path(), placed, (0.0, 0.0, 0.0) if mark.filled else None)
        share[phases] = np.asarray(renderer.buffer_rgba())[..., 3] / 255
    return (-np.log1p(-ALPHA * share) * (LEVELS / OPAQUE)).astype(np.float32)


def _stamp(
    ink: Float[np.ndarray, "h w"],
    stamps: Float[np.ndarray, "phase phase side side"],
    down: Float[np.ndarray, " m"],
    across: Float[np.ndarray, " m"],
    weight: Float[np.ndarray, " m"] | None = None,
) -> None:
    """Add a share of a stamp's ink at each position, in pixels from the top left corner of the picture."""
    middle = stamps.shape[-1] // 2
    row, column = np.nonzero(stamps.any(axis=(0, 1)))
    square = (row - middle) * ink.shape[1] + column - middle
    values = stamps[:, :, row, column]
    flat = ink.reshape(-1)
    for start in range(0, len(down), POINTS):
        y, x = down[start : start + POINTS], across[start : start + POINTS]
        top, left = np.floor(y).astype(int), np.floor(x).astype(int)
        where = (top * ink.shape[1] + left)[:, None] + square
        inks = values[_phase(y - top), _phase(x - left)]
        if weight is not None:
            inks = inks * weight[start : start + POINTS, None].astype(np.float32)
        np.add.at(flat, where.ravel(), inks.ravel())


def _phase(share: Float[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    return np.minimum((share * PHASES).astype(int), PHASES - 1)


def _dyes(picture: UInt8[np.ndarray, "h w 4"]) -> tuple[Shaped[np.ndarray, " dye"], Int[np.ndarray, "h w"]]:
    """List what each level of green ink, mixed with each level of orange ink, makes of each colour of a picture.

    The inks are mixed rather than drawn above each other, which would hide correct examples below wrong ones, or the
    reverse.

    Returns:
        The colours, each as one number, for green `g`, orange `o` and the colour of a pixel at
        `LEVELS * g + o + ground[pixel]`; and that ground.
    """
    colors, which = np.unique(picture.copy().view(np.uint32)[..., 0], return_inverse=True)
    found = np.repeat(colors.view(np.uint8).reshape(-1, 1, 1, 4).astype(np.float32), LEVELS, 1).repeat(LEVELS, 2)
    green, orange = np.mgrid[:LEVELS, :LEVELS, :1].astype(np.float32)[:2]
    ink = green + orange
    dye = 255 * (green * np.array(to_rgb(GREEN)) + orange * np.array(to_rgb(ORANGE))) / np.maximum(ink, 1)
    found[..., :3] = dye + (found[..., :3] - dye) * np.exp(-ink * (OPAQUE / LEVELS))
    ground = which.reshape(picture.shape[:2]).astype(np.int32) * LEVELS**2
    return np.rint(found).astype(np.uint8).view(np.uint32).ravel(), ground
