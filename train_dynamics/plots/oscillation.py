"""Figures of oscillation: in how many pairs each step of the explanation holds, and how two groups take turns."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from train_dynamics.dynamics.oscillation import Course
from train_dynamics.plots.style import BLUE, ORANGE, styled
from train_dynamics.study.oscillation import Verdict

PALE = 0.3


def steps(verdicts: Sequence[Verdict], title: str) -> Figure:
    """Draw in which share of the pairs each step is true, and in which it is more so than in matched pairs."""
    with styled():
        figure = Figure(figsize=(9.0, 0.55 + 0.5 * len(verdicts)))
        figure.suptitle(title, x=0.008, ha="left", fontsize=11)
        axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(1, 0.62))
        gap = sum(verdict.explained for verdict in verdicts)
        rows = [k + 0.9 * (not verdict.explained) for k, verdict in enumerate(verdicts)]
        for row, verdict in zip(rows, verdicts, strict=True):
            color = BLUE if verdict.explained else ORANGE
            if verdict.pairs:
                axes.barh(row, verdict.true / verdict.pairs, 0.62, color=color, alpha=PALE)
            if verdict.share is not None:
                axes.barh(row, verdict.share, 0.3, color=color)
            held = "" if verdict.share is None else f"{verdict.holds:,} of {verdict.compared:,}"
            beside.text(0, row, held, va="center", fontsize=9)
            words = "" if verdict.median is None else _short(verdict.median)
            matched = "" if verdict.matched is None else f" ({_short(verdict.matched)})"
            beside.text(0.5, row, words + matched, va="center", fontsize=9)
        for place, words in ((0, "more than\nmatched"), (0.5, "median pair\n(matched)")):
            beside.text(place, -1.0, words, va="center", fontsize=9, style="italic")
        if gap < len(verdicts):
            axes.text(0.0, gap - 0.05, "what else is so", va="center", fontsize=9, style="italic")
        axes.set(xlim=(0, 1), ylim=(rows[-1] + 0.6, -1.3), xlabel="share of the pairs")
        axes.set_yticks(rows, [verdict.sentence.rstrip(".") for verdict in verdicts])
        axes.tick_params(axis="y", length=0)
        beside.set_axis_off()
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        handles = [
            Patch(color="black", alpha=PALE, label="true of the pair"),
            Patch(color="black", label="and more so than of matched pairs"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        return figure


def turns(
    iterations: Int[np.ndarray, " t"], course: Course, words: tuple[str, str], title: str, nats: str = " (nats)"
) -> Figure:
    """Draw the course of a pair. The background has the colour of the group that leads.

    Args:
        iterations: Iterations of the course.
        course: Course of one pair.
        words: Description of either group.
        title: Title of the figure.
        nats: Unit of the loss, in brackets; or an empty text.
    """
    with styled():
        figure = Figure(figsize=(9.0, 7.0))
        figure.suptitle(title, x=0.008, ha="left", fontsize=11)
        curves = [
            ("part of the mean\ngradient (length)", course.norm),
            (f"mean loss\n{nats.strip()}".strip(), course.loss),
            ("accuracy", course.accuracy),
        ]
        curves = [(label, values) for label, values in curves if not np.isnan(values).any()]
        panels = figure.subplots(len(curves) + 1, sharex=True)
        for axes, (label, values) in zip(panels, curves, strict=False):
            for value, color, line, name in zip(values, (BLUE, ORANGE), ("-", "--"), words, strict=True):
                axes.plot(iterations, value, color=color, linestyle=line, linewidth=1.3, label=name)
            axes.set_ylabel(label)
        for axes in panels:
            _shade(axes, iterations, course.lead > 0)
        panels[-1].axhline(0, color="black", linewidth=0.8)
        panels[-1].plot(iterations, course.lead, color="black", linewidth=1.0, label="mean gradient of all examples")
        panels[-1].plot(iterations, course.own, color="black", linewidth=1.0, linestyle=":", label="these two alone")
        panels[-1].set(ylabel="along\ntheir axis", xlabel="iteration (updates)", xlim=(iterations[0], iterations[-1]))
        if len(curves) == 3:
            panels[2].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.align_ylabels(panels)
        shown = [axes.get_legend_handles_labels() for axes in (panels[0], panels[-1])]
        handles, labels = ([one for part in parts for one in part] for parts in zip(*shown, strict=True))
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        return figure


def _shade(axes: Axes, iterations: Int[np.ndarray, " t"], left: Bool[np.ndarray, " t"]) -> None:
    """Fill the background with the colour of the leading group, from record to record."""
    starts = np.flatnonzero(np.diff(left, prepend=~left[:1]))
    edges = iterations[[*starts, -1]]
    for leads, color in ((True, BLUE), (False, ORANGE)):
        spans = [(a, b - a) for a, b, s in zip(edges[:-1], edges[1:], starts, strict=True) if left[s] == leads]
        axes.broken_barh(
            spans, (0, 1), color=color, alpha=0.15, linewidth=0, zorder=0, transform=axes.get_xaxis_transform()
        )


def _short(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}"
