"""Curves over iterations."""

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from train_dynamics.plots.style import BLUE, SEQUENCE, styled


def accuracy(mean: Float[np.ndarray, " t"], std: Float[np.ndarray, " t"], num_seeds: int) -> Figure:
    """Draw training accuracy, mean and standard deviation over seeds."""
    with styled():
        figure = Figure()
        axes = figure.subplots()
        iterations = np.arange(len(mean))
        axes.fill_between(iterations, mean - std, mean + std, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(iterations, mean, color=BLUE)
        _percent(axes, iterations, "training accuracy")
        axes.set_title(f"Training accuracy: mean of {num_seeds} seeds, band of one standard deviation")
        return figure


def chunk_accuracy(mean: Float[np.ndarray, "t group"], num_seeds: int) -> Figure:
    """Draw the accuracy of each chunk, from the most typical, dark, to the least, light."""
    with styled():
        figure = Figure()
        axes = figure.subplots()
        iterations = np.arange(len(mean))
        last = mean.shape[1] - 1
        for chunk, curve in enumerate(mean.T):
            color = matplotlib.colormaps[SEQUENCE](0.92 * chunk / last)
            axes.plot(iterations, curve, color=color, label=str(chunk), linewidth=1.3)
        _percent(axes, iterations, "accuracy of the chunk")
        axes.set_title(f"Accuracy of each tenth of the examples, mean of {num_seeds} seeds")
        figure.legend(
            *axes.get_legend_handles_labels(),
            title="chunk\n0 = most typical",
            loc="outside right center",
            alignment="left",
        )
        return figure


def _percent(axes: Axes, iterations: np.ndarray, label: str) -> None:
    axes.set(xlabel="iteration (updates)", ylabel=label, xlim=(0, max(iterations[-1], 1)), ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
