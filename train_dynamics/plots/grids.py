"""Grids of images."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from train_dynamics.plots.style import styled

SIDE = 8


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
    """Set images into cells a quarter larger than they are, `SIDE` a row, each at the bottom middle of its cell.

    One picture of all draws in a tenth of the time of 64 pictures. Cells are white; grey images have no last axis.
    """
    count, height, width, channels = images.shape
    rows, cell_height, cell_width = -(-count // SIDE), height + max(height // 4, 1), width + max(width // 4, 1)
    canvas = np.full((rows, SIDE, cell_height, cell_width, channels), 255 if channels == 3 else 0, np.uint8)
    left = (cell_width - width) // 2
    for n, image in enumerate(images):
        canvas[(*divmod(n, SIDE), slice(cell_height - height, None), slice(left, left + width))] = image
    joined = canvas.swapaxes(1, 2).reshape(rows * cell_height, SIDE * cell_width, channels)
    return joined if channels == 3 else joined[..., 0]
