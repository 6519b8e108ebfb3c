"""Analyse a recording: rank its examples, and follow how they are learned.

python -m train_dynamics.analyze --recording=recordings/mini_mnist
"""

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from absl import app, flags

from train_dynamics import __version__, tables
from train_dynamics.claims import claims
from train_dynamics.cone_study import ConeOptions, find_cones
from train_dynamics.config import InputError
from train_dynamics.contention_study import ContentionOptions, find_contention
from train_dynamics.recording import Recording
from train_dynamics.results import compute

RECORDING = flags.DEFINE_string(
    "recording", "recordings/mini_mnist", "Directory that train_dynamics.train recorded into."
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Directory for the results, new, empty or of an earlier analysis; 'analysis' inside the recording if empty.",
)
CONE_COSINE = flags.DEFINE_float(
    "cone_cosine", 0.95, "How near the gradients of a cone are to each other, and how opposed those in contention."
)
CONE_COVER = flags.DEFINE_string(
    "cone_cover", "clique", "clique: every two members of a cone are that near; star: each to the one in the middle."
)
CONE_SEED = flags.DEFINE_integer("cone_seed", None, "Seed whose cones are shown; the first one if not given.")
CONE_ITERATION = flags.DEFINE_integer(
    "cone_iteration",
    None,
    "Iteration whose cones are shown; if not given, the first at which that seed classifies half of the examples "
    "correctly: at the start all gradients are alike, at the end most have nearly vanished.",
)
OPPOSED_TO = flags.DEFINE_string(
    "opposed_to", "centre", "A group in contention with a cone opposes its centre, or every one of its members."
)
SMALLEST_GROUP = flags.DEFINE_integer("smallest_group", 10, "Fewest examples on either side of a contention.")
CONTENTION_LOOKS = flags.DEFINE_integer(
    "contention_looks",
    20,
    "At how many iterations of every seed to look for contention, more of them early; 0 for none.",
)


def analyze(
    recording: Recording,
    output: Path,
    cone_options: ConeOptions = ConeOptions(),
    contention_options: ContentionOptions = ContentionOptions(),
) -> None:
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
        cones = find_cones(recording, cone_options, results.curves["accuracy"][..., 0])
        contention = find_contention(recording, contention_options)
        # A second to import, for nothing if the recording will not do.
        from train_dynamics.plots import figures, style
        from train_dynamics.report import sections
        from train_dynamics.report.page import page

        (output / "figures").mkdir(parents=True, exist_ok=True)
        about = {"recording": str(recording.path), "version": __version__, "config": recording.config.to_dict()}
        about |= {"cones": dataclasses.asdict(cone_options), "contention": dataclasses.asdict(contention_options)}
        (output / "analysis.json").write_text(json.dumps(about, indent=2) + "\n")
        tables.write_scores(recording, results, output / "scores.csv")
        tables.write_curves(results, output / "curves.csv")
        tables.write_cones(recording, cones, output / "cones.csv")
        tables.write_cone_members(recording, cones, output / "cone_members.csv")
        tables.write_contention(recording, contention, output / "contention.csv")
        tables.write_contention_members(recording, contention, output / "contention_members.csv")
        found = claims(results, recording.config.layers, len(recording.class_names))
        (output / "claims.json").write_text(json.dumps([claim.to_dict() for claim in found], indent=2) + "\n")

        def pictures(drawings: Iterable[figures.Drawing]) -> list[sections.Picture]:
            saved = []
            for drawing in drawings:
                style.save(drawing.figure, output / "figures" / drawing.name)
                width, height = drawing.figure.get_size_inches()
                file = output / "figures" / f"{drawing.name}.png"
                saved.append(sections.Picture(drawing.title, drawing.caption, file, square=bool(height > 0.8 * width)))
            return saved

        parts = [
            sections.Section("What was seen", pictures=pictures(figures.study_drawings(recording, results))),
            sections.cones_section(recording, cone_options, cones, pictures(figures.cone_drawings(recording, cones))),
            sections.contention_section(
                recording, contention, pictures(figures.contention_drawings(recording, contention))
            ),
        ]
        (output / "report.html").write_text(page(recording, results, found, parts))
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
        analyze(
            recording,
            output,
            ConeOptions(CONE_COSINE.value, CONE_COVER.value, CONE_SEED.value, CONE_ITERATION.value),
            ContentionOptions(
                CONE_COSINE.value, CONE_COVER.value, OPPOSED_TO.value, SMALLEST_GROUP.value, CONTENTION_LOOKS.value
            ),
        )
        print(f"Results of {recording.path} are in {output}; open {output / 'report.html'} in a browser")
    except InputError as error:
        sys.exit(f"analyze: {error}")


if __name__ == "__main__":
    app.run(main)
