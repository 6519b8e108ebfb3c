"""Figures of contention: the two groups of a pair, what happens to them, and which labels fight which."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from train_dynamics.data.showing import Shown
from train_dynamics.plots.cones import grid_panel
from train_dynamics.plots.style import BLUE, ORANGE, styled
from train_dynamics.study.motion import Frame


def fight(
    frames: Sequence[Frame],
    loss: Float[np.ndarray, "t n"],
    groups: tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]],
    examples: tuple[Shown, Shown],
    words: tuple[str, str],
    found_at: int,
    title: str,
) -> Figure:
    """Draw both groups of a pair: some examples, and their alignment, loss and accuracy around the discovery.

    Args:
        frames: Consecutive iterations, in one layer.
        loss: Loss of all examples at these iterations.
        groups: Members of either group.
        examples: The examples of either group, as they are shown.
        words: Description of either group.
        found_at: Iteration of the discovery.
        title: Title of the figure.
    """
    with styled():
        figure = Figure(figsize=(9.0, 7.6))
        figure.suptitle(title, x=0.008, ha="left", fontsize=11)
        iterations = [frame.iteration for frame in frames]
        curves = (
            ("cosine to the\nmean gradient", [frame.cosine[0] for frame in frames]),
            ("mean loss\n(nats)" if (with_accuracy := frames[0].of_classes) else "mean loss", loss),
            ("accuracy", [frame.correct for frame in frames]),
        )
        curves = curves if with_accuracy else curves[:2]
        grid = figure.add_gridspec(len(curves) + 1, 2, height_ratios=(1.45, *(1 for _ in curves)))
        drawn = [figure.add_subplot(grid[row + 1, :]) for row in range(len(curves))]
        for side, (color, line) in enumerate(((BLUE, "-"), (ORANGE, "--"))):
            grid_panel(figure.add_subplot(grid[0, side]), examples[side], words[side], color)
            for axes, (_, values) in zip(drawn, curves, strict=True):
                mean = [value[groups[side]].mean() for value in values]
                axes.plot(iterations, mean, color=color, linestyle=line, linewidth=1.3, label=words[side])
        for axes, (label, _) in zip(drawn, curves, strict=True):
            axes.axvline(found_at, color="black", linewidth=0.9, linestyle=":", label="where the pair was found")
            axes.set(ylabel=label, xlim=(iterations[0], max(iterations[-1], iterations[0] + 1)))
        for axes in drawn[:-1]:
            axes.tick_params(labelbottom=False)
        figure.align_ylabels(drawn)
        drawn[-1].set_xlabel("iteration (updates)")
        if with_accuracy:
            drawn[-1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure


def label_matrix(share: Float[np.ndarray, "c c"], class_names: Sequence[str], title: str) -> Figure:
    """Draw how much each label fights each other one: the share of pairs of their examples that are opposed."""
    with styled():
        figure = Figure(figsize=(6.4, 5.4))
        axes = figure.subplots()
        top = max(float(share.max()), 1e-12)
        # Few labels have most of the pairs: linear colours would leave all others alike.
        colors = PowerNorm(0.4, vmin=0, vmax=top)
        shown = axes.imshow(share, cmap="cividis", norm=colors)
        ticks = range(len(class_names))
        axes.set(xlabel="label", ylabel="label", title=title)
        axes.set_xticks(ticks, class_names, rotation=0 if max(map(len, class_names)) < 3 else 60)
        axes.set_yticks(ticks, class_names)
        axes.grid(False)
        if len(class_names) <= 12:
            for row, column in np.ndindex(share.shape):
                value = 100 * share[row, column]
                words = "0" if value == 0 else "<0.01" if value < 0.005 else f"{value:.2f}"
                light = colors(share[row, column]) < 0.6
                axes.text(column, row, words, ha="center", va="center", fontsize=7, color="white" if light else "black")
        if share.any():
            figure.colorbar(
                shown, label="pairs of examples opposed", format=PercentFormatter(1, decimals=2), shrink=0.9
            )
        return figure
