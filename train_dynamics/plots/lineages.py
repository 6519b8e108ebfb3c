"""Figures of lineages: what happens to the largest cones (an alluvial plot), and how long groups stay together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from train_dynamics.data.showing import Shown
from train_dynamics.plots.style import BLUE, ORANGE, styled

COLORS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#393b79", "#bcbd22", "#17becf"),
    *("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#9c9ede", "#dbdb8d", "#9edae5"),
)
"""Of the largest lineages, by number: Matplotlib's tab20, dark before light, with indigo for its greys. `colours.ts`
has the same."""
PICTURES = 4  # at either end of a lineage
THICKEST, TALL = 0.7, 0.66  # of a lane: the largest lineage, and pictures
LANE, WIDTH, SIDE = 0.49, 11.0, 0.2  # inches, and room beside the iterations as a share of their span


class Band(NamedTuple):
    """A lineage as it is drawn.

    Attributes:
        lineage: Its number, which decides the colour.
        words: Its description.
        steps: Indices of the covers at which it exists.
        sizes: Number of members at each of these.
        born: Some of its first members.
        gone: Some of its last members.
    """

    lineage: int
    words: str
    steps: Int[np.ndarray, " k"]
    sizes: Int[np.ndarray, " k"]
    born: Shown
    gone: Shown


class Flow(NamedTuple):
    """Members that go from one lineage to another, given by their lanes, from a cover to the next."""

    source: int
    target: int
    step: int
    shared: int


def color(lineage: int) -> str:
    """Return a lineage's colour, the same in all figures, films and in the explorer. Small ones are grey."""
    return COLORS[lineage] if lineage < len(COLORS) else "#999999"


def alluvial(iterations: Int[np.ndarray, " t"], bands: Sequence[Band], flows: Sequence[Flow], title: str) -> Figure:
    """Draw lineages in lanes above each other, as thick as they have members, with some members at either end.

    Args:
        iterations: Iterations of the covers.
        bands: The lineages, from top to bottom.
        flows: The flows between them, by lanes.
        title: Title of the figure.
    """
    with styled():
        figure = Figure(figsize=(WIDTH, 1.0 + LANE * len(bands)))
        axes = figure.subplots()
        span = max(int(iterations[-1] - iterations[0]), 1)
        largest = max(int(band.sizes.max()) for band in bands)
        scale = THICKEST / largest
        middles = np.arange(len(bands)) + 0.6
        for flow in flows:
            ends = middles[flow.source], middles[flow.target]
            shade = color(bands[flow.target].lineage)
            _flow(axes, iterations[flow.step : flow.step + 2], ends, scale * flow.shared, shade)
        for middle, band in zip(middles, bands, strict=True):
            _band(axes, iterations, band, middle, scale, span)
        axes.set(
            xlim=(iterations[0] - SIDE * span, iterations[-1] + SIDE * span),
            ylim=(len(bands) + 0.1, 0),
            yticks=[],
            xlabel="iteration (updates)",
            title=title,
        )
        axes.set_xticks([tick for tick in axes.get_xticks() if iterations[0] <= tick <= iterations[-1]])
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        _key(axes, scale, span, int(iterations[-1]), largest)
        return figure


def _band(axes: Axes, iterations: Int[np.ndarray, " t"], band: Band, middle: float, scale: float, span: int) -> None:
    """Draw one lineage; paler where it is missing from covers."""
    times, half = iterations[band.steps].astype(float), scale * band.sizes / 2
    shade = {"color": color(band.lineage), "linewidth": 0}
    ends = np.array([times[0], times[-1]])
    axes.fill_between(times, middle - half, middle + half, alpha=0.3, **shade)
    for run in np.split(np.arange(len(times)), np.flatnonzero(np.diff(band.steps) > 1) + 1):
        x, up = times[run], half[run]
        if len(run) == 1:  # seen at one cover, which has no length: so long as can be seen
            x, up = x + 0.003 * span * np.array([-1, 1]), np.repeat(up, 2)
            ends = np.array([min(ends[0], x[0]), max(ends[1], x[1])])
        axes.fill_between(x, middle - up, middle + up, **shade)
    gap = 0.004 * span
    _ends(axes, band.born, (ends[0] - gap, -1), middle, span)
    _ends(axes, band.gone, (ends[1] + gap, 1), middle, span)
    above = middle - half[: max(3, len(half) // 8)].max() - 0.03
    axes.text(ends[0], above, band.words, fontsize=7.5, color="#222222", va="bottom")


def _ends(axes: Axes, examples: Shown, place: tuple[float, int], middle: float, span: int) -> None:
    """Draw members beside an end of a lineage: to the left of a place (-1), or to its right (1)."""
    x, side = place
    if isinstance(examples, list):
        words = {"fontsize": 5.5, "family": "monospace", "va": "center", "color": "#111111", "linespacing": 1.0}
        text = axes.text(x, middle, examples[0], ha="right" if side < 0 else "left", **words)
        text.set_parse_math(False)
        return
    count, height, width, channels = examples.shape
    gap = max(width // 8, 1)
    blank = np.full((count, height, gap, channels), 255 if channels == 3 else 0, np.uint8)
    strip = np.concatenate([examples, blank], axis=2).swapaxes(0, 1).reshape(height, -1, channels)[:, :-gap]
    inches = TALL * LANE * strip.shape[1] / height
    wide = min(inches / (WIDTH - 0.4) * (1 + 2 * SIDE), 0.95 * SIDE) * span
    edges = sorted((x, x + side * wide))
    axes.imshow(
        strip if channels == 3 else strip[..., 0],
        cmap="gray_r",
        vmin=0,
        vmax=255,
        extent=(*edges, middle + TALL / 2, middle - TALL / 2),
        aspect="auto",
        interpolation="antialiased",
        zorder=3,
    )


def _flow(axes: Axes, times: Int[np.ndarray, "2"], middles: tuple[float, float], width: float, shade: str) -> None:
    """Draw members on their way from one lane to another."""
    share = np.linspace(0, 1, 30)
    smooth = middles[0] + (middles[1] - middles[0]) * share**2 * (3 - 2 * share)
    x = times[0] + (times[1] - times[0]) * share
    axes.fill_between(x, smooth - width / 2, smooth + width / 2, color=shade, alpha=0.45, linewidth=0.3, zorder=0.8)


def _key(axes: Axes, scale: float, span: int, last: int, largest: int) -> None:
    """Show how thick a round number of examples is."""
    count = max(n * 10**power for power in range(7) for n in (1, 2, 5) if n * 10**power <= max(largest, 1))
    x, y = last + 0.06 * span, -0.3
    axes.plot([x, x], [y - scale * count / 2, y + scale * count / 2], color="black", linewidth=2.5, clip_on=False)
    axes.text(x + 0.01 * span, y, f"{count} examples", va="center", fontsize=8, clip_on=False)


def persistence(
    lag: tuple[str, Int[np.ndarray, " lag"], Sequence[tuple[np.ndarray, np.ndarray]]],
    iterations: Int[np.ndarray, " step"],
    continued: Sequence[tuple[Float[np.ndarray, " step"], Float[np.ndarray, "2 step"]]],
    alike: str,
    title: str,
) -> Figure:
    """Draw how far cones are together later, and which share of the cones the next cover continues.

    Args:
        lag: Name of the left panel's axis, its values, and the curves with their intervals: for cones, and for groups
            drawn at random.
        iterations: Iterations of the covers, except the last.
        continued: The same curves for the right panel.
        alike: What groups drawn at random have in common with the cones.
        title: Title of the figure.
    """
    with styled():
        figure = Figure(figsize=(9.0, 3.8))
        figure.suptitle(title, x=0.008, ha="left", fontsize=11)
        label, lags, together = lag
        panels = (
            (lags, together, label, "members of a cone that are in one cone later"),
            (iterations, continued, "iteration (updates)", "cones that the next cover continues"),
        )
        kinds = (("cones", BLUE, "-"), (f"groups of the same {alike}, drawn at random", ORANGE, "--"))
        for axes, (x, curves, below, above) in zip(figure.subplots(1, 2), panels, strict=True):
            for (mean, ends), (words, shade, line) in zip(curves, kinds, strict=True):
                axes.fill_between(x, *ends, color=shade, alpha=0.2, linewidth=0)
                axes.plot(x, mean, color=shade, linestyle=line, label=words)
            axes.set(xlabel=below, ylim=(0, 1.02), xlim=(x[0], max(x[-1], x[0] + 1)))
            axes.set_title(above, fontsize=9)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure
