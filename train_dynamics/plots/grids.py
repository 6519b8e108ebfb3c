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
        figure = Figure(figsize=(6.0, 0.35 + 0.82 * rows))
        figure.suptitle(title, x=0.012, ha="left", fontsize=11)
        axes = figure.subplots()  # one for all images: sixty-four take a second to lay out
        axes.set_axis_off()
        for n, (image, caption) in enumerate(zip(images[: SIDE**2], captions, strict=False)):
            row, column = divmod(n, SIDE)
            place = (column + 0.1, column + 0.9, row + 1, row + 0.2)
            shown = image if image.shape[-1] == 3 else image[..., 0]
            axes.imshow(shown, extent=place, cmap="gray_r", vmin=0, vmax=255)
            axes.text(column + 0.5, row + 0.16, caption, fontsize=8, ha="center", color="#333333")
        axes.set(xlim=(0, SIDE), ylim=(rows, 0), aspect="equal")
        return figure
