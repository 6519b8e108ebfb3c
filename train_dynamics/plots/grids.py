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
        figure = Figure(figsize=(6.0, 0.4 + 0.82 * rows))
        figure.suptitle(title, x=0.012, ha="left", fontsize=11)
        places = figure.subplots(rows, SIDE, squeeze=False).ravel()
        for axes in places:
            axes.set_axis_off()
        for axes, image, caption in zip(places, images, captions, strict=False):
            axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray_r", vmin=0, vmax=255)
            axes.set_title(caption, fontsize=8, pad=2, loc="center", color="#333333")
        return figure
