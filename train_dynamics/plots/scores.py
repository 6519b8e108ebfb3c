"""Figures of scores: tables of numbers as colours, bars, and the images at both ends."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from train_dynamics.data.showing import Shown
from train_dynamics.plots.grids import SIDE, TEXT_HEIGHT, TEXTS, draw_texts, mosaic
from train_dynamics.plots.style import BLUE, GREEN, styled, wrapped

DPI = 150
PIXELS = 56  # about the side of an image in a grid of extremes
STRIP = 12  # images at either end in the overview
DIVERGING, RISING = "RdBu_r", "YlGnBu"


def number_map(
    values: Float[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    across: str = "",
    diverging: bool = False,
) -> Figure:
    """Draw a table of numbers up to 1 as colours, with each number in its cell. NaN is grey and empty.

    Args:
        values: The numbers.
        rows: Name of each row.
        columns: Name of each column. Numbers are written upright.
        title: Title of the figure.
        across: What the columns are, with unit.
        diverging: Whether the colours go from -1 to 1, rather than from 0 or the smallest value below it.
    """
    with styled():
        words = any(len(name) > 6 for name in columns)
        width, height = 2.4 + 0.36 * len(columns), 1.1 + 0.25 * len(rows) + (1.1 if words else 0)
        figure = Figure(figsize=(max(width, 6.0), height))
        axes = figure.subplots()
        axes.grid(False)
        axes.set_facecolor("#dddddd")  # of cells without a number
        low, colors = (-1, DIVERGING) if diverging else (min(0, np.nanmin(values, initial=0)), RISING)
        shown = axes.imshow(values, cmap=colors, vmin=low, vmax=1, aspect="auto")
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=90 if words else 0)
        axes.tick_params(length=0)
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                color = "w" if abs(value) > 0.65 else "k"
                text = "1" if value > 0.9999 else ">.99" if value >= 0.995 else f"{value:.2f}".replace("0.", ".", 1)
                number = axes.text(column, row, text, fontsize=6.5, ha="center", va="center", color=color)
                number.set_in_layout(False)  # it lies within the axes: measuring hundreds would take a second
        axes.set_xlabel(across)
        axes.set_title(title)
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.02, label="Spearman correlation")
        return figure


def noise_bars(
    names: Sequence[str],
    precision: Float[np.ndarray, " score"],
    auc: Float[np.ndarray, " score"],
    chance: float,
    title: str,
) -> Figure:
    """Draw how well each score finds wrong labels, the best first. Dotted lines are chance."""
    with styled():
        figure = Figure(figsize=(8.0, 1.2 + 0.22 * len(names)))
        order = np.argsort(-np.nan_to_num(auc, nan=-1), kind="stable")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, values, level, color, label in (
            (panels[0], auc, 0.5, BLUE, "AUC"),
            (panels[1], precision, chance, GREEN, "precision at the noise rate"),
        ):
            axes.barh(range(len(names)), np.nan_to_num(values[order]), color=color, height=0.7)
            axes.axvline(level, color="k", linestyle=":", linewidth=1)
            axes.set(xlim=(0, 1.09), xlabel=label)
            axes.grid(axis="y", visible=False)
            for place, value in enumerate(values[order]):
                if not np.isnan(value):
                    axes.text(value + 0.01, place, f"{value:.2f}", fontsize=7, va="center")
        panels[0].set_yticks(range(len(names)), [names[k] for k in order], fontsize=8)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        figure.suptitle(title, x=0.012, ha="left", fontsize=11)
        return figure


def extremes(
    easy: Shown,
    hard: Shown,
    labels: tuple[Sequence[str], Sequence[str]],
    titles: tuple[str, str],
    title: str,
) -> Figure:
    """Draw up to 64 images or 24 texts of either end side by side, the most extreme first, each below its label."""
    if isinstance(easy, list):
        return _extreme_texts((easy, hard), labels, titles, title)
    panels = [_labelled(images, of) for images, of in zip((easy, hard), labels, strict=True)]
    with styled():
        height, width = panels[0].shape[0] / DPI, panels[0].shape[1] / DPI
        lines = wrapped(title, 11, 2 * width + 0.1)
        above, below = 0.3 + 0.19 * len(lines), 0.08
        # Pixel for pixel, and laid out by hand: Matplotlib would take five times as long.
        figure = Figure(figsize=(2 * width + 0.3, below + height + above), dpi=DPI)
        figure.set_layout_engine("none")
        across, down = figure.get_size_inches()
        figure.text(0.1 / across, 1 - 0.08 / down, "\n".join(lines), va="top", fontsize=11)
        for k, (panel, words) in enumerate(zip(panels, titles, strict=True)):
            left = (0.1 + k * (width + 0.1)) / across
            axes = figure.add_axes((left, below / down, width / across, panel.shape[0] / DPI / down))
            axes.set_axis_off()
            axes.imshow(panel, cmap="gray", vmin=0, vmax=255, interpolation="none", aspect="auto")
            figure.text(left, (below + height + 0.05) / down, words, fontsize=9)
        return figure


def _extreme_texts(
    ends: tuple[list[str], list[str]], labels: tuple[Sequence[str], Sequence[str]], titles: Sequence[str], title: str
) -> Figure:
    with styled():
        rows = -(-max(1, *map(len, ends)) // TEXTS)
        figure = Figure(figsize=(14.0, 0.6 + (TEXT_HEIGHT + 0.18) * rows))
        figure.suptitle("\n".join(wrapped(title, 11, 13.8)), x=0.006, ha="left", fontsize=11)
        for axes, texts, captions, words in zip(figure.subplots(1, 2), ends, labels, titles, strict=True):
            draw_texts(axes, texts, rows, TEXTS, captions)
            axes.set_title(words, fontsize=9)
        return figure


def overview(
    ends: Sequence[tuple[UInt8[np.ndarray, "m h w channel"], UInt8[np.ndarray, "m h w channel"]]],
    names: Sequence[str],
    title: str,
) -> Figure:
    """Draw a row of images per score: the easiest on the left, the hardest on the right."""
    rows = [np.concatenate([_row(easy), _gap(easy), _row(hard[::-1])], axis=1) for easy, hard in ends]
    with styled():
        picture = np.concatenate(rows)
        figure = Figure(figsize=(10.4, 0.8 + 8.6 * picture.shape[0] / picture.shape[1]))
        axes = figure.subplots()
        axes.grid(False)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="none")
        height = picture.shape[0] / len(rows)
        axes.set_yticks(height * (np.arange(len(rows)) + 0.5), names, fontsize=8)
        axes.set_xticks([0.25 * picture.shape[1], 0.75 * picture.shape[1]], ["easiest first", "hardest last"])
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.suptitle(title, x=0.012, ha="left", fontsize=11)
        return figure


def _row(images: UInt8[np.ndarray, "m h w channel"]) -> UInt8[np.ndarray, "height width *rgb"]:
    """Set images side by side in cells a little larger."""
    _, height, width, channels = images.shape
    cells = np.full((len(images), height + 4, width + 4, channels), 255, np.uint8)
    cells[:, 2:-2, 2:-2] = images if channels == 3 else 255 - images
    joined = cells.swapaxes(0, 1).reshape(height + 4, -1, channels)
    return joined if channels == 3 else joined[..., 0]


def _gap(images: UInt8[np.ndarray, "m h w channel"]) -> UInt8[np.ndarray, "height width *rgb"]:
    _, height, width, channels = images.shape
    return np.full((height + 4, width // 2, *((3,) if channels == 3 else ())), 255, np.uint8)


def _labelled(
    images: UInt8[np.ndarray, "m h w channel"], labels: Sequence[str]
) -> UInt8[np.ndarray, "height width *rgb"]:
    """Put images of about equal size into a grid, with their labels drawn above them.

    A label is drawn once and then copied, because Matplotlib would take a second for 128 texts.
    """
    height, width = images.shape[1:3]
    times, step = max(1, round(PIXELS / max(height, width))), max(1, max(height, width) // PIXELS)
    sized = images[: SIDE**2, ::step, ::step].repeat(times, axis=1).repeat(times, axis=2)
    picture = mosaic(sized) if images.shape[-1] == 3 else 255 - mosaic(sized)
    band = max(sized.shape[1] // 4, 1)
    cell = np.array([sized.shape[1] + band, sized.shape[2] + max(sized.shape[2] // 4, 1)])
    for n, label in enumerate(labels[: SIDE**2]):
        stamp = _stamp(label, band, int(cell[1]))
        top, left = cell * divmod(n, SIDE)
        left += (cell[1] - stamp.shape[1]) // 2
        place = picture[top : top + stamp.shape[0], left : left + stamp.shape[1]]
        np.minimum(place, stamp if picture.ndim == 2 else stamp[..., None], out=place)
    return picture


@functools.lru_cache(maxsize=256)
def _stamp(label: str, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """Draw a label as large as its place allows."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    text = figure.text(0.5, 0.45, label, fontsize=0.62 * height, ha="center", va="center", color="#333333")
    if (wide := text.get_window_extent(canvas.get_renderer()).width) > width:
        text.set_fontsize(0.62 * height * width / wide)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., 0].copy()
