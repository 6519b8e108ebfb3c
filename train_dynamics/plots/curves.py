"""Curves over iterations. Lines are means over seeds; bands are one standard deviation over seeds to either side."""

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from train_dynamics.plots.style import BLUE, GREEN, ORANGE, SEQUENCE, of_seeds, styled, wrapped


def accuracy(iterations: Int[np.ndarray, " t"], curve: Float[np.ndarray, "s t"]) -> Figure:
    """Draw the training accuracy of all examples."""
    with styled():
        figure = Figure()
        axes = figure.subplots()
        _draw(axes, iterations, curve, color=BLUE)
        _frame(axes, iterations, "training accuracy", share=True)
        axes.set_title(f"Training accuracy, {_seeds(curve)}")
        return figure


def by_chunk(
    iterations: Int[np.ndarray, " t"], curves: Float[np.ndarray, "s t group"], label: str, title: str, share: bool
) -> Figure:
    """Draw one curve per chunk, from the most typical (dark) to the least typical (light).

    Args:
        iterations: Iterations of the records.
        curves: The chunks' curves, in order.
        label: Label of the y axis, with unit.
        title: Title of the figure.
        share: Whether the values are shares, drawn from 0 to 100 %.
    """
    with styled():
        figure = Figure()
        axes = figure.subplots()
        num_chunks = curves.shape[-1]
        for chunk in range(num_chunks):
            color = matplotlib.colormaps[SEQUENCE](0.92 * chunk / max(num_chunks - 1, 1))
            _draw(axes, iterations, curves[..., chunk], color=color, label=str(chunk), linewidth=1.2, band=0.08)
        _frame(axes, iterations, label, share)
        one_line = f"{title}, {_seeds(curves)}"
        fits = len(wrapped(one_line, 11, 6.2)) == 1
        axes.set_title(one_line if fits else "\n".join([*wrapped(f"{title},", 11, 6.2), _seeds(curves)]))
        figure.legend(
            *axes.get_legend_handles_labels(),
            title="chunk\n0 = most typical",
            loc="outside right center",
            alignment="left",
        )
        return figure


def learning(
    iterations: Int[np.ndarray, " t"],
    first_correct: Float[np.ndarray, "s t group"],
    accuracy: Float[np.ndarray, "s t group"],
    last_mistake: Float[np.ndarray, "s t group"],
    titles: list[str],
) -> Figure:
    """Draw first correct, accuracy and last mistake of several groups side by side, and shade the region between."""
    with styled():
        figure = Figure(figsize=(3.0 * len(titles), 3.6))
        panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        for g, (axes, title) in enumerate(zip(panels, titles, strict=True)):
            first, last = first_correct[..., g].mean(axis=0), last_mistake[..., g].mean(axis=0)
            axes.fill_between(iterations, last, first, color="#999999", alpha=0.3, linewidth=0)
            axes.plot(
                iterations, first, color=BLUE, linestyle="--", label="first correct: correct at least once so far"
            )
            axes.plot(iterations, accuracy[..., g].mean(axis=0), color=GREEN, label="accuracy")
            axes.plot(iterations, last, color=ORANGE, linestyle="-.", label="last mistake: never wrong from here on")
            _frame(axes, iterations, "share of examples" if g == 0 else "", share=True)
            axes.set_title(title)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure


def _draw(
    axes: Axes,
    iterations: Int[np.ndarray, " t"],
    curve: Float[np.ndarray, "s t"],
    color: object,
    band: float = 0.2,
    **style: object,
) -> None:
    mean, std = curve.mean(axis=0), curve.std(axis=0)
    axes.fill_between(iterations, mean - std, mean + std, color=color, alpha=band, linewidth=0)
    axes.plot(iterations, mean, color=color, **style)


def _frame(axes: Axes, iterations: Int[np.ndarray, " t"], label: str, share: bool) -> None:
    axes.set(xlabel="iteration (updates)", ylabel=label, xlim=(0, int(iterations[-1])))
    if share:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _seeds(curves: np.ndarray) -> str:
    return of_seeds("mean and standard deviation", len(curves))
