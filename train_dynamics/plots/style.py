"""The common look of all figures: colours that work for colour-blind readers and in grey, and how to save them."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.textpath import text_to_path

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
    """Describe what is drawn of the seeds. With one seed, only that.

    Example:
        >>> of_seeds("mean", 2), of_seeds("mean", 1)
        ('mean of 2 seeds', 'one seed')
    """
    return f"{words} of {count} seeds" if count > 1 else "one seed"


def wrapped(text: str, fontsize: int, width: float) -> list[str]:
    """Break a text into lines that are at most this many inches long when drawn, unless a word is longer."""
    font, lines = FontProperties(size=fontsize), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_to_path.get_text_width_height_descent(longer, font, ismath=False)[0] <= 72 * width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def cut_short(name: str, length: int) -> str:
    """Leave out the beginning of a name that is too long, because paths of parameters differ at their ends.

    Example:
        >>> cut_short("encoder/block1/attention/query/kernel", 20)
        '...tion/query/kernel'
    """
    return name if len(name) <= length else f"...{name[3 - length :]}"


def lacking(names: Iterable[str]) -> str:
    """List the letters of some names that the font of figures does not have, which draws boxes instead.

    Example:
        >>> lacking(["cat", "日本"])
        '日本'
    """
    letters = FT2Font(findfont(FontProperties())).get_charmap()
    return "".join(letter for letter in dict.fromkeys("".join(names)) if ord(letter) not in letters)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PATH.png and PATH.svg. The same figure gives the same bytes."""
    # Not by `savefig`, which draws everything once for nothing after the layout.
    dpi = figure.dpi
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # `lacking` says it once
        FigureCanvasAgg(figure).print_png(f"{path}.png", metadata={"Software": None})
        FigureCanvasSVG(figure).print_svg(f"{path}.svg", metadata={"Date": None})
    figure.dpi = dpi  # SVG has one of its own
