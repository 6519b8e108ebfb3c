"""Figures of groups of examples through training: curves of their measures, and classes against classes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from train_dynamics.plots.cones import COLORS
from train_dynamics.plots.style import BLUE, ORANGE, of_seeds, styled
from train_dynamics.study.groups import quartiles

LINES = ("-", "--", "-.", ":")


def panels(
    iterations: Int[np.ndarray, " t"],
    curves: Sequence[dict[str, Float[np.ndarray, "s t"]]],
    labels: Sequence[str],
    logarithmic: Sequence[bool],
    title: str,
) -> Figure:
    """Draw curves on panels above each other. Lines are means over seeds; bands are one standard deviation.

    On logarithmic panels they are the median and the quartiles, where a seed without a value counts as infinite.

    Args:
        iterations: Iterations of the records.
        curves: For each panel, its curves by their words in the legend, which are the same in all panels.
        labels: Labels of the y axes.
        logarithmic: Whether a panel has a logarithmic scale, if any values are positive.
        title: Title of the figure.
    """
    with styled():
        # A line and a letter of the legend in inches; what takes more rows than one makes the figure higher.
        columns = min(max(int(7.0 / (0.6 + 0.08 * max(map(len, curves[0])))), 1), 3)
        rows = -(-len(curves[0]) // columns)
        figure = Figure(figsize=(7.0, 1.0 + 2.5 * len(curves) + 0.2 * max(rows - 2, 0)))
        drawn = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for axes, of_panel, label, by_logarithm in zip(drawn, curves, labels, logarithmic, strict=True):
            for k, (words, curve) in enumerate(of_panel.items()):
                color, line = COLORS[k % len(COLORS)], LINES[k % len(LINES)]
                low, middle, high = (quartiles if by_logarithm else _deviations)(curve)
                axes.fill_between(iterations, low, high, color=color, alpha=0.2, linewidth=0)
                axes.plot(iterations, middle, color=color, linestyle=line, label=words, linewidth=1.3)
            axes.set(ylabel=label, xlim=(0, max(int(iterations[-1]), 1)))
            if by_logarithm and any((curve > 0).any() for curve in of_panel.values()):
                axes.set_yscale("log")
        drawn[-1].set_xlabel("iteration (updates)")
        num_seeds = len(next(iter(curves[0].values())))
        shown = "median and quartiles" if all(logarithmic) else "mean and standard deviation"
        drawn[0].set_title(f"{title}, {of_seeds(shown, num_seeds)}")
        figure.align_ylabels(drawn)
        if len(curves[0]) > 1:
            figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
        return figure


def _deviations(curve: Float[np.ndarray, "s t"]) -> tuple[Float[np.ndarray, " t"], ...]:
    mean, std = curve.mean(axis=0), curve.std(axis=0)
    return mean - std, mean, mean + std


def class_matrices(
    matrices: Sequence[Float[np.ndarray, "c c"]], titles: Sequence[str], class_names: Sequence[str], title: str
) -> Figure:
    """Draw matrices of cosines between classes side by side. NaN stays white."""
    with styled():
        figure = Figure(figsize=(0.6 + 3.2 * len(matrices), 3.6))
        figure.suptitle(title, x=0.008, ha="left", fontsize=11)
        drawn = figure.subplots(1, len(matrices), squeeze=False)[0]
        ticks = range(len(class_names))
        for axes, matrix, words in zip(drawn, matrices, titles, strict=True):
            shown = axes.imshow(np.ma.masked_invalid(matrix), cmap="RdBu", vmin=-1, vmax=1)
            axes.set_title(words, fontsize=10)
            axes.set_xticks(ticks, class_names, rotation=0 if max(map(len, class_names)) < 3 else 60, fontsize=8)
            axes.set_yticks(ticks, class_names, fontsize=8)
            axes.grid(False)
            axes.set_xlabel("label")
        drawn[0].set_ylabel("label")
        figure.colorbar(shown, ax=list(drawn), label="mean cosine", shrink=0.8)
        return figure


def opposing(
    iterations: Int[np.ndarray, " t"],
    curves: dict[str, Float[np.ndarray, "s t"]],
    size: int,
    at: int,
    marked: str,
    title: str,
    unit: str = "",
) -> Figure:
    """Draw how far the loss of both extremes and of all examples moves from record to record.

    Args:
        iterations: Iteration of the earlier record of each change.
        curves: Mean change of `risers`, `fallers` and `all`.
        size: Examples in a group.
        at: Iteration to mark.
        marked: What happens there.
        title: Title of the figure.
        unit: Unit of the loss, if it has one.
    """
    words = {"risers": f"the {size} that rise most", "fallers": f"the {size} that fall most", "all": "all examples"}
    with styled():
        figure = Figure()
        axes = figure.subplots()
        for name, color in {"risers": BLUE, "fallers": ORANGE, "all": "#444444"}.items():
            low, mean, high = _deviations(curves[name])
            axes.fill_between(iterations, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(iterations, mean, color=color, linewidth=1.2, label=words[name])
        axes.axvline(at, color="black", linewidth=0.9, linestyle=":", label=marked)
        axes.set(
            xlabel="iteration (updates)",
            ylabel=f"change of loss to the next record{unit}",
            xlim=(0, max(int(iterations[-1]), 1)),
            title=f"{title}, {of_seeds('mean and standard deviation', len(curves['all']))}",
        )
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure
