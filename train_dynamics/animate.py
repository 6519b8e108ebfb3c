"""Show all examples in motion: how large each one's gradient is and where it points, iteration after iteration.

python -m train_dynamics.animate --recording=recordings/mini_mnist --output=scatter.mp4
"""

import signal
import sys
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Int

from train_dynamics.commands import print_line, run
from train_dynamics.config import InputError
from train_dynamics.recording.reader import Recording, opened
from train_dynamics.study.stored_lineages import StoredLineages, read_lineages

FILMS, STILLS = (".mp4", ".gif"), (".png", ".svg")
FASTEST = {".mp4": 120, ".gif": 50}  # frames a second; browsers play a faster GIF slowly

RECORDING = flags.DEFINE_string(
    "recording",
    "recordings/mini_mnist",
    "Directory of the recording, finished or not; or several, comma separated, which are read as one.",
)
OUTPUT = flags.DEFINE_string(
    "output",
    "scatter.mp4",
    "File to write. .mp4 and .gif give a film; .png and .svg give a picture of a single iteration.",
)
ITERATIONS = flags.DEFINE_string(
    "iterations",
    ":",
    "Iterations to show, one per frame, written as a Python slice: START:STOP or START:STOP:STRIDE, without STOP "
    "itself. Each part may be left out, and a negative number counts from the end. ':' shows all, '0:120' the "
    "first 120, '::10' every tenth, '-100:' the last 100, and '40' only iteration 40.",
)
SEED = flags.DEFINE_string("seed", "0", "Seed to show, one of the recorded ones.")
LAYERS = flags.DEFINE_list("layers", None, "Recorded layers to show side by side, comma separated. Default: all.")
FPS = flags.DEFINE_string("fps", "30", "Frames per second: 1 to 120, or 1 to 50 for a .gif.")
HISTORY = flags.DEFINE_string("history", "0", "Number of earlier frames whose points stay faintly visible: 0 to 100.")
LINEAGES = flags.DEFINE_string(
    "lineages",
    None,
    "Directory of an analysis with the part 'lineages', such as RECORDING/analysis. Members of the largest "
    "lineages of cones get the same colours as in the figure of that analysis. Works for .mp4 films only.",
)
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace the output file if it exists.")


def span(text: str, recorded: Int[np.ndarray, " t"]) -> Int[np.ndarray, " frame"]:
    """Parse which iterations to show, by Python's rules for slices, and keep those that were recorded.

    Raises:
        InputError: If the text is not a slice of ascending iterations, or if it selects no recorded iteration.

    Example:
        >>> span("::500", recorded=np.arange(1411))
        array([   0,  500, 1000])
    """
    try:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        parts = []
    stride = parts[2] if len(parts) == 3 else None
    if not 1 <= len(parts) <= 3 or parts == [None] or (stride is not None and stride < 1):
        raise InputError.flag("iterations", text, "must look like 0:120, ::10 or 40, with a stride of 1 or more")
    if len(parts) == 1:  # -1 is the last, for which no slice's stop can be written
        parts.append(parts[0] + 1 or None)
    last = int(recorded[-1])
    found = recorded[np.isin(recorded, np.arange(last + 1)[slice(*parts)])]
    if not len(found):
        raise InputError.flag(
            "iterations", text, f"selects none of the {len(recorded)} recorded iterations, which go from 0 to {last}"
        )
    return found


def whole(name: str, text: str, least: int, most: int) -> int:
    """Parse a flag that is a whole number.

    Raises:
        InputError: If it is not a whole number, or is out of bounds.
    """
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise InputError.flag(name, text, f"must be a whole number, {least} to {most}")
    return value


def check_output(path: Path, overwrite: bool) -> None:
    """Check that a file may be written, before any work is done.

    Raises:
        InputError: If it may not be written.
    """
    known = (*FILMS, *STILLS)
    if path.suffix.lower() not in known:
        raise InputError.flag("output", path, f"must end in one of {', '.join(known)}")
    try:
        if path.is_dir():
            raise InputError.flag("output", path, "is a directory; name a file")
        if not path.parent.is_dir():
            raise InputError.flag("output", path, f"there is no directory {path.parent} to write into")
        if path.exists() and not overwrite:
            raise InputError.flag("output", path, "exists; choose another name, or add --overwrite")
    except OSError as error:
        raise InputError.flag("output", path, f"cannot be written: {error.strerror}") from error


def animate(
    recording: Recording,
    output: Path,
    seed: int,
    iterations: Int[np.ndarray, " t"],
    layers: list[str] | None,
    fps: int,
    history: int,
    lineages: StoredLineages | None = None,
) -> None:
    """Write the film; or the picture, if there is one iteration and the output is a picture file.

    Raises:
        InputError: If the seed or a layer was not recorded, the recording is damaged or the output cannot be written.
    """
    from train_dynamics.plots import film  # a second to import, which a typing error should not take

    kind = output.suffix.lower()
    try:
        if kind in FILMS:
            film.film(recording, output, seed, iterations, layers, fps, history, lineages=lineages)
        else:
            film.save(film.still(recording, seed, int(iterations[0]), layers, history), output)
    except OSError as error:
        raise InputError.flag("output", output, f"cannot be written: {error.strerror}") from error


def lineages_of(recording: Recording, analysis: str | None, kind: str) -> StoredLineages | None:
    """Read the lineages that colour the film, if any are asked for.

    Raises:
        InputError: If there are none, or if the output is not an .mp4, the only kind with room for their colours.
    """
    if analysis is None:
        return None
    if kind != ".mp4":
        raise InputError.flag("lineages", analysis, f"colours films that end in .mp4 only, not {kind}")
    found = read_lineages(recording, Path(analysis), "lineages")
    if found is None:
        raise InputError.flag("lineages", analysis, "has no lineages, which train_dynamics.analyze writes")
    return found


def stop(number: int, frame: object) -> None:
    """End the program without leaving an incomplete file."""
    print("animate: interrupted; nothing was written", file=sys.stderr)
    sys.exit(128 + number)


def main() -> None:
    """Run the command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    output = Path(OUTPUT.value)
    check_output(output, OVERWRITE.value)
    kind = output.suffix.lower()
    seed = whole("seed", SEED.value, 0, 2**31 - 1)
    fps = whole("fps", FPS.value, 1, FASTEST.get(kind, 120))
    history = whole("history", HISTORY.value, 0, 100)
    recording = opened(RECORDING.value)
    if not recording.num_records:
        raise InputError.flag("recording", recording.path, "has no records yet")
    if not recording.contents.classes:
        right = "is of a regression, and the film shows which examples are classified correctly"
        raise InputError.flag("recording", recording.path, right)
    iterations = span(ITERATIONS.value, recording.iterations)
    if kind in STILLS and len(iterations) > 1:
        raise InputError.flag(
            "output",
            output,
            f"shows one iteration and not {len(iterations)}; use --iterations={iterations[-1]}, or name an .mp4",
        )
    lineages = lineages_of(recording, LINEAGES.value, kind)
    animate(recording, output, seed, iterations, LAYERS.value, fps, history, lineages)
    shown = f"{len(iterations)} frames, iterations {iterations[0]} to {iterations[-1]}"
    shown = f"iteration {iterations[0]}" if len(iterations) == 1 else shown
    print_line(f"Wrote {output}: {shown} of seed {seed}, {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run("animate", main)
