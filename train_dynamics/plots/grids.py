"""Grids of examples: of images, or else of short texts."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from train_dynamics.data.arrays import Dataset
from train_dynamics.data.showing import LINES, WIDTH, Shown, has_pictures
from train_dynamics.plots.style import styled

SIDE = 8
TEXTS = 4  # texts in a row
MOST_TEXTS = 24  # which take Matplotlib as long as hundreds of images
TEXT_HEIGHT = 0.085 * LINES + 0.06  # inches


def example_grid(examples: Shown, captions: Sequence[str], title: str) -> Figure:
    """Draw up to 64 images or 24 texts in reading order, each with a caption above it."""
    return (text_grid if isinstance(examples, list) else image_grid)(examples, captions, title)


def most_shown(dataset: Dataset) -> int:
    """Return how many examples a grid shows."""
    return SIDE**2 if has_pictures(dataset) else MOST_TEXTS


def text_grid(texts: Sequence[str], captions: Sequence[str], title: str) -> Figure:
    """Draw up to 24 texts in reading order, each in a box with a caption above it."""
    with styled():
        texts = texts[:MOST_TEXTS]
        rows = max(1, -(-len(texts) // TEXTS))
        figure = Figure(figsize=(7.0, 0.35 + (TEXT_HEIGHT + 0.18) * rows))
        figure.suptitle(title, x=0.012, ha="left", fontsize=11)
        draw_texts(figure.subplots(), texts, rows, TEXTS, captions)
        return figure


def draw_texts(axes: Axes, texts: Sequence[str], rows: int, columns: int, captions: Sequence[str] = ()) -> None:
    """Draw texts in boxes, in reading order, each below its caption if there are captions."""
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    top = 0.18 / (TEXT_HEIGHT + 0.18) if captions else 0.02
    written = [text.split("\n") for text in texts]
    longest, most = (
        max((len(line) for lines in written for line in lines), default=1),
        max(map(len, written), default=1),
    )
    larger = max(1.0, min(WIDTH / max(longest, 1), LINES / most, 2.2))  # where texts leave room
    small = {"fontsize": 5 * larger, "family": "monospace", "linespacing": 1.05, "va": "top", "color": "#111111"}
    for n, text in enumerate(texts):
        row, column = divmod(n, columns)
        box = Rectangle((column + 0.02, row + top), 0.96, 0.96 - top, facecolor="#f4f4f4", edgecolor="none")
        axes.add_patch(box)
        drawn = [axes.text(column + 0.04, row + top + 0.03, text, clip_on=True, **small)]
        if captions:
            drawn.append(axes.text(column + 0.02, row + 0.8 * top, captions[n], fontsize=7, color="#333333"))
        for one in drawn:
            one.set_parse_math(False)  # a dollar sign is one
            one.set_in_layout(False)  # which would measure each


def image_grid(images: UInt8[np.ndarray, "n h w channel"], captions: Sequence[str], title: str) -> Figure:
    """Draw up to 8 x 8 images in reading order, each with a caption above it."""
    with styled():
        rows = max(1, -(-min(len(images), SIDE**2) // SIDE))
        figure = Figure(figsize=(6.0, 0.35 + 0.745 * rows))
        figure.suptitle(title, x=0.012, ha="left", fontsize=11)
        axes = figure.subplots()
        axes.set_axis_off()
        axes.imshow(mosaic(images[: SIDE**2]), cmap="gray_r", vmin=0, vmax=255, extent=(0, SIDE, rows, 0))
        for n, caption in enumerate(captions[: SIDE**2]):
            row, column = divmod(n, SIDE)
            axes.text(column + 0.5, row + 0.16, caption, fontsize=8, ha="center", color="#333333")
        return figure


def mosaic(images: UInt8[np.ndarray, "n h w channel"]) -> UInt8[np.ndarray, "height width *rgb"]:
    """Put images into cells a quarter larger than they are, `SIDE` per row, each at the bottom middle of its cell.

    One combined picture draws in a tenth of the time of 64 pictures. Cells are white. Grey images have no last axis.
    """
    count, height, width, channels = images.shape
    rows, cell_height, cell_width = -(-count // SIDE), height + max(height // 4, 1), width + max(width // 4, 1)
    canvas = np.full((rows, SIDE, cell_height, cell_width, channels), 255 if channels == 3 else 0, np.uint8)
    left = (cell_width - width) // 2
    for n, image in enumerate(images):
        canvas[(*divmod(n, SIDE), slice(cell_height - height, None), slice(left, left + width))] = image
    joined = canvas.swapaxes(1, 2).reshape(rows * cell_height, SIDE * cell_width, channels)
    return joined if channels == 3 else joined[..., 0]
