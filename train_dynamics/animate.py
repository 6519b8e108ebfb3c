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
    "Directory that was recorded into, which may be unfinished; or several, comma separated, which are read as one.",
)
OUTPUT = flags.DEFINE_string(
    "output",
    "scatter.mp4",
    "File to write: a film if it ends in .mp4 or .gif, and of one iteration a picture if it ends in .png or .svg.",
)
ITERATIONS = flags.DEFINE_string(
    "iterations",
    ":",
    "Iterations to show, one a frame, as Python slices: START:STOP or START:STOP:STRIDE, without STOP itself; each "
    "part may be left out, and a negative one counts from the end. ':' shows all, '0:120' the first 120, '::10' every "
    "tenth, '-100:' the last 100, and '40' that one.",
)
SEED = flags.DEFINE_string("seed", "0", "The seed to show, one of those recorded.")
LAYERS = flags.DEFINE_list(
    "layers", None, "Recorded layers to show side by side, comma separated; all of them if not given."
)
FPS = flags.DEFINE_string("fps", "30", "Frames a second: 1 to 120, in a .gif to 50.")
HISTORY = flags.DEFINE_string("history", "0", "Earlier frames whose points stay visible, faintly: 0 to 100.")
LINEAGES = flags.DEFINE_string(
    "lineages",
    None,
    "Directory of an analysis with the part 'lineages', such as RECORDING/analysis: members of the largest lineages of "
    "cones have their colours, those of its figure. For films that end in .mp4.",
)
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Whether to replace an output file that exists.")


def span(text: str, recorded: Int[np.ndarray, " t"]) -> Int[np.ndarray, " frame"]:
    """Parse the iterations to show, which Python's rules for slices choose, as far as there are records of them.

    Raises:
        InputError: If the text is no slice of ascending iterations, or none of them is there.

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
            "iterations", text, f"holds none of the recorded iterations, {len(recorded)} from 0 to {last}"
        )
    return found


def whole(name: str, text: str, least: int, most: int) -> int:
    """Parse a flag that is a whole number.

    Raises:
        InputError: If it is none, or out of bounds.
    """
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise InputError.flag(name, text, f"must be a whole number, {least} to {most}")
    return value


def check_output(path: Path, overwrite: bool) -> None:
    """Check, before any work is done, that a file may be written.

    Raises:
        InputError: If not.
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
            raise InputError.flag("output", path, "exists; choose another name, or say --overwrite")
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
    """Write the film, or the picture if there is but one iteration and the output is one.

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
    """Read the lineages that a film of some kind is coloured by, if it is.

    Raises:
        InputError: If there are none, or it is a film or picture that has no room for their colours.
    """
    if analysis is None:
        return None
    if kind != ".mp4":
        raise InputError.flag("lineages", analysis, f"colours films that end in .mp4, and no {kind}")
    found = read_lineages(recording, Path(analysis), "lineages")
    if found is None:
        raise InputError.flag("lineages", analysis, "has no lineages, which train_dynamics.analyze writes")
    return found


def stop(number: int, frame: object) -> None:
    """End the program in a way that leaves no half file."""
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
        right = "has targets and no classes, and the film shows which examples are classified correctly"
        raise InputError.flag("recording", recording.path, right)
    iterations = span(ITERATIONS.value, recording.iterations)
    if kind in STILLS and len(iterations) > 1:
        raise InputError.flag(
            "output",
            output,
            f"holds one iteration and not {len(iterations)}; say --iterations={iterations[-1]}, or name an .mp4",
        )
    lineages = lineages_of(recording, LINEAGES.value, kind)
    animate(recording, output, seed, iterations, LAYERS.value, fps, history, lineages)
    shown = f"{len(iterations)} frames, iterations {iterations[0]} to {iterations[-1]}"
    shown = f"iteration {iterations[0]}" if len(iterations) == 1 else shown
    print_line(f"Wrote {output}: {shown} of seed {seed}, {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run("animate", main)
