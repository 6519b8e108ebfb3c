"""Analyse a recording: rank its examples, and follow how they are learned.

python -m train_dynamics.analyze --recording=recordings/mini_mnist
"""

import json
import sys
from pathlib import Path

from absl import app, flags

from train_dynamics import __version__
from train_dynamics.claims import claims
from train_dynamics.config import InputError
from train_dynamics.recording import Recording
from train_dynamics.results import compute
from train_dynamics.tables import write_curves, write_scores

RECORDING = flags.DEFINE_string(
    "recording", "recordings/mini_mnist", "Directory that train_dynamics.train recorded into."
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Directory for the results, new, empty or of an earlier analysis; 'analysis' inside the recording if empty.",
)


def analyze(recording: Recording, output: Path) -> None:
    """Write tables, claims, figures and report of a finished recording, replacing those of an earlier analysis.

    Raises:
        InputError: If the recording is unfinished, damaged or too small to be ranked, or if the output holds other
            files or cannot be written.
    """
    try:
        if output.exists() and any(output.iterdir()) and not (output / "analysis.json").is_file():
            raise InputError.flag(
                "output", output, "holds other files and no earlier analysis; choose another directory"
            )
        results = compute(recording)
        # A second to import, for nothing if the recording will not do.
        from train_dynamics.plots import figures, style
        from train_dynamics.report.page import Picture, page

        (output / "figures").mkdir(parents=True, exist_ok=True)
        about = {"recording": str(recording.path), "version": __version__, "config": recording.config.to_dict()}
        (output / "analysis.json").write_text(json.dumps(about, indent=2) + "\n")
        write_scores(recording, results, output / "scores.csv")
        write_curves(results, output / "curves.csv")
        found = claims(results, recording.config.layers, len(recording.class_names))
        (output / "claims.json").write_text(json.dumps([claim.to_dict() for claim in found], indent=2) + "\n")
        pictures = []
        for drawing in figures.drawings(recording, results):
            style.save(drawing.figure, output / "figures" / drawing.name)
            width, height = drawing.figure.get_size_inches()
            file = output / "figures" / f"{drawing.name}.png"
            pictures.append(Picture(drawing.title, drawing.caption, file, square=bool(height > 0.8 * width)))
        (output / "report.html").write_text(page(recording, results, found, pictures))
    except OSError as error:
        raise InputError.flag("output", output, f"cannot be written: {error}") from error


def main(argv: list[str]) -> None:
    """Run the command."""
    try:
        if len(argv) > 1:
            raise InputError(f"{argv[1]!r} is no flag; flags look like --recording=DIR")
        if not RECORDING.value:
            raise InputError.flag("recording", None, "must name a directory")
        recording = Recording(RECORDING.value)
        output = Path(OUTPUT.value) if OUTPUT.value else recording.path / "analysis"
        analyze(recording, output)
        print(f"Results of {recording.path} are in {output}; open {output / 'report.html'} in a browser")
    except InputError as error:
        sys.exit(f"analyze: {error}")


if __name__ == "__main__":
    app.run(main)
