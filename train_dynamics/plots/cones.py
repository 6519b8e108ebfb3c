"""Figures of cones: what is in them, where they lie, and what happens to them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from train_dynamics.data.showing import Shown
from train_dynamics.plots.grids import SIDE, draw_texts, mosaic
from train_dynamics.plots.style import BLUE, styled
from train_dynamics.study.motion import Frame

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito (2008)
MARKERS = ("o", "s", "^", "D", "v", "X")
PANEL_ROWS = 3
PANEL_TEXTS = 3  # texts in each of them


def grid_panel(axes: Axes, examples: Shown, title: str, color: str) -> None:
    """Draw up to three rows of examples, evenly picked from a group, below a title with a coloured mark."""
    in_row = PANEL_TEXTS if isinstance(examples, list) else SIDE
    picked = np.unique(np.linspace(0, len(examples) - 1, min(len(examples), PANEL_ROWS * in_row)).astype(int))
    if isinstance(examples, list):
        draw_texts(axes, [examples[n] for n in picked], PANEL_ROWS, PANEL_TEXTS)
    else:
        canvas = mosaic(examples[picked])
        axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=255, extent=(0, SIDE, -(-len(picked) // SIDE), 0))
        axes.set(xlim=(0, SIDE), ylim=(PANEL_ROWS, 0), xticks=[], yticks=[])
    axes.set_title(f"     {title}", fontsize=9)
    axes.annotate("\N{BLACK SQUARE}", (0, 1), (0, 5), "axes fraction", "offset points", color=color, fontsize=11)
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)


def cone_grids(groups: Sequence[Shown], titles: Sequence[str], title: str) -> Figure:
    """Draw some examples of up to six cones, one panel each."""
    with styled():
        rows = max(1, -(-len(groups) // 2))
        figure = Figure(figsize=(8.0, 0.5 + 1.85 * rows))
        figure.suptitle(title, x=0.012, ha="left", fontsize=11)
        for axes in (panels := figure.subplots(rows, 2, squeeze=False).ravel())[len(groups) :]:
            axes.set_axis_off()
        for axes, examples, words, color in zip(panels, groups, titles, COLORS, strict=False):
            grid_panel(axes, examples, words, color)
        return figure


def cone_scatter(frame: Frame, groups: Sequence[Int[np.ndarray, " _"]], reach: float, title: str) -> Figure:
    """Draw where up to six cones lie among all examples, by gradient norm and alignment.

    Args:
        frame: All examples, in one layer.
        groups: Members of the cones.
        reach: Norm at the right edge. Examples beyond it are drawn on the edge, as arrowheads.
        title: Title of the figure.
    """
    with styled():
        figure = Figure(figsize=(7.0, 4.6))
        axes = figure.subplots()
        norm, cosine = np.minimum(frame.norm[0], reach), frame.cosine[0]
        grey = {"color": "#bbbbbb", "linewidths": 0, "rasterized": True}
        axes.scatter(norm, cosine, s=5, label="all examples", **grey)
        beyond = frame.norm[0] > reach
        if beyond.any():
            axes.scatter(norm[beyond], cosine[beyond], s=20, marker=">", label="beyond the edge", **grey)
        for k, (group, color, marker) in enumerate(zip(groups, COLORS, MARKERS, strict=False)):
            axes.scatter(
                norm[group],
                cosine[group],
                s=14,
                color=color,
                marker=marker,
                linewidths=0,
                alpha=0.8,
                rasterized=True,
                label=f"cone {k}",
            )
        axes.set(
            xlim=(0, 1.02 * reach),
            xlabel=f"L2 norm of the gradient ({frame.gradient_unit})",
            ylabel="cosine to the mean gradient",
            title=title,
        )
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", markerscale=1.8)
        return figure


def cone_tracks(frames: Sequence[Frame], group: Int[np.ndarray, " m"], found_at: int, title: str) -> Figure:
    """Draw gradient norm, alignment and accuracy of a cone's examples over the run, beside those of all examples."""
    with styled():
        figure = Figure(figsize=(9.0, 3.4))
        figure.suptitle(title, x=0.008, ha="left", fontsize=11)
        iterations = [frame.iteration for frame in frames]
        panels = (
            (f"L2 norm ({frames[0].gradient_unit})", [frame.norm[0] for frame in frames]),
            ("cosine to the mean gradient", [frame.cosine[0] for frame in frames]),
            ("accuracy", [frame.correct.astype(float) for frame in frames]),
        )
        panels = panels[: 3 if frames[0].of_classes else 2]  # of a regression there is no accuracy
        for axes, (label, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            of_group = np.stack([value[group] for value in values])
            if label != "accuracy":
                band = np.quantile(of_group, (0.1, 0.9), axis=1)
                axes.fill_between(iterations, *band, color=BLUE, alpha=0.2, linewidth=0)
            axes.plot(iterations, [value.mean() for value in values], color="#777777", linestyle="--", label="all")
            words = "the cone: mean, and where 80 % of its examples lie"
            axes.plot(iterations, of_group.mean(axis=1), color=BLUE, label=words)
            axes.axvline(found_at, color="black", linewidth=0.8, linestyle=":", label="where it was found")
            axes.set(xlabel="iteration (updates)", xlim=(iterations[0], max(iterations[-1], 1)))
            axes.set_title(label, fontsize=9)
            if label == "accuracy":
                axes.set_ylim(0, 1.02)
                axes.yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure
