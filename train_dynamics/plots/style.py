"""One look for all figures: colours told apart by colour-blind readers and in grey, and how a figure is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

matplotlib.use("agg")

BLUE, GREEN, ORANGE = "#0072B2", "#009E73", "#D55E00"  # Okabe and Ito (2008)
SEQUENCE = "viridis"
RC = {
    "figure.figsize": (7.0, 4.2),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "train_dynamics",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the project's style."""
    with matplotlib.rc_context(RC):
        yield


def of_seeds(words: str, count: int) -> str:
    """Say what of the seeds is drawn; of one there is nothing to say.

    Example:
        >>> of_seeds("mean", 2), of_seeds("mean", 1)
        ('mean of 2 seeds', 'one seed')
    """
    return f"{words} of {count} seeds" if count > 1 else "one seed"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PATH.png and PATH.svg; the same figure gives the same bytes."""
    # Not by `savefig`, which draws everything once for nothing after the layout.
    dpi = figure.dpi
    with styled():
        FigureCanvasAgg(figure).print_png(f"{path}.png", metadata={"Software": None})
        FigureCanvasSVG(figure).print_svg(f"{path}.svg", metadata={"Date": None})
    figure.dpi = dpi  # SVG has one of its own
