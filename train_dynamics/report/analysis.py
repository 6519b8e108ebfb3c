"""A whole analysis of a recording: everything is computed, and then written into one directory."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from train_dynamics import __version__
from train_dynamics.config import InputError, counted
from train_dynamics.data.showing import has_pictures
from train_dynamics.processes import Helpers
from train_dynamics.recording.format import written_whole
from train_dynamics.recording.locks import locked
from train_dynamics.recording.reader import Recording
from train_dynamics.study import tables
from train_dynamics.study.claims import Claim, claims
from train_dynamics.study.cones import ConeOptions, check_options, find_cones, half_learned, shown_seed
from train_dynamics.study.contention import Contention, ContentionOptions, find_contention
from train_dynamics.study.results import Results, check_finished, compute
from train_dynamics.study.scores import ScoreOptions
from train_dynamics.study.tables import PARTS

if TYPE_CHECKING:
    from train_dynamics.plots.figures import Drawing

KINDS = (".png", ".svg")
COMPARING = ("groups", "cones", "contention")
OF_CLASSES = ("scores", "motion")
STUDY = ("scores.csv", "scores.parquet", "curves.csv", "claims.json", "report.html")  # of every analysis
FILM_FRAMES, FILM_FPS, MOST_PANELS = 120, 24, 3


def analyze(
    recording: Recording,
    output: Path,
    cone_options: ConeOptions = ConeOptions(),
    contention_options: ContentionOptions = ContentionOptions(),
    score_options: ScoreOptions = ScoreOptions(),
    parts: Collection[str] = tuple(PARTS),
    say: Callable[[str], None] = print,
) -> None:
    """Write tables, claims, figures and report of a finished recording, replacing those of an earlier analysis.

    Args:
        recording: The recording.
        output: Directory for the results, new, empty or of an earlier analysis.
        cone_options: Which cones to look for, and which seed to show.
        contention_options: Which pairs in contention to look for.
        score_options: How to compute scores.
        parts: Which of `PARTS` to look at beside the study itself; what an earlier analysis has of others is removed.
        say: Takes the lines to show the user.

    Raises:
        InputError: If a part is unknown, if the recording is unfinished or damaged, if the options ask for what it does
            not have, or if the output holds other files, cannot be written or is being written by another analysis.
    """
    unknown = ", ".join(part for part in parts if part not in PARTS)
    if unknown:
        raise InputError.flag("parts", unknown, f"must be some of {','.join(PARTS)}, or empty for none of them")
    for needed, there, why in (
        (
            COMPARING,
            bool(recording.gradient_layers),
            "compares gradients, and only measures were recorded",
        ),
        (
            OF_CLASSES,
            recording.contents.classes,
            "is about classes, and the labels are targets",
        ),
    ):
        for part in () if there else [part for part in needed if part in parts]:
            say(f"Left out: {part}, which {why}")
            parts = [other for other in parts if other != part]
    try:
        if output.exists() and any(output.iterdir()) and not (output / "analysis.json").is_file():
            raise InputError.flag(
                "output", output, "holds other files and no earlier analysis; choose another directory"
            )
        about = {
            "recording": str(recording.path),
            "version": __version__,
            "config": recording.config.to_dict(),
            "cones": dataclasses.asdict(cone_options),
            "contention": dataclasses.asdict(contention_options),
            "scores": dataclasses.asdict(score_options),
            "parts": [part for part in PARTS if part in parts],
            "files": [*STUDY, *tables.files_of_parts(recording, parts)],
        }
        check_finished(recording)
        check_options(recording, cone_options)
        records, seeds = counted(recording.num_records, "record"), counted(len(recording.seeds), "seed")
        say(f"Reading {records} of {seeds} in {recording.path}")
        with Helpers() as helpers, contextlib.ExitStack() as writing:
            # It needs nothing of what is computed here, and takes as long.
            fighting = helpers.submit(_contention, recording, contention_options) if "contention" in parts else None
            with tqdm(total=recording.num_records, unit="it", disable=None, dynamic_ncols=True) as bar:
                results = compute(
                    recording, score_options if "scores" in parts else None, "groups" in parts, bar.update
                )
            if dead := np.count_nonzero(results.indifferent):
                say(f"Dead networks, which at the end give every example the same probabilities: {dead} of {seeds}")
            # Seconds to import, for nothing if the recording will not do or scores are not asked for.
            score_study = None
            if results.scores:
                from train_dynamics.plots import score_figures
                from train_dynamics.report.score_section import scores_section
                from train_dynamics.study.score_agreement import study_scores

                score_study = study_scores(results.scores, recording.noisy)
            cones = find_cones(recording, cone_options, results.progress) if "cones" in parts else []
            from train_dynamics.plots import figures, style
            from train_dynamics.plots.film import film
            from train_dynamics.plots.group_drawings import group_drawings
            from train_dynamics.report import sections
            from train_dynamics.report.page import page

            (output / "figures").mkdir(parents=True, exist_ok=True)
            taken = InputError.flag(
                "output", output, "is being written by another analysis; wait for it, or choose another directory"
            )
            writing.enter_context(locked(output, taken))
            say(f"Writing figures and tables into {output}")
            _remove_earlier(output, about["files"], say)
            _write_json(about, output / "analysis.json")

            saving: list[Future] = []

            def pictures(drawings: Iterable[figures.Drawing]) -> list[sections.Picture]:
                shown = []
                for drawing in drawings:
                    about["files"] += [f"figures/{drawing.name}{kind}" for kind in KINDS]
                    _write_json(about, output / "analysis.json")
                    saving.append(helpers.submit(style.save, drawing.figure, output / "figures" / drawing.name))
                    width, height = drawing.figure.get_size_inches()
                    file = output / "figures" / f"{drawing.name}.png"
                    shown.append(sections.Picture(drawing.title, drawing.caption, file, square=bool(height > width)))
                return shown

            laid_out = [
                sections.Section("What was seen", pictures=pictures(figures.study_drawings(recording, results)))
            ]
            found = _write_study(recording, results, output)
            if score_study:
                tables.write_correlations(results, score_study, output / "score_correlations.csv")
                tables.write_stability(results, score_study, output / "score_stability.csv")
                if "label_noise.csv" in about["files"]:
                    tables.write_label_noise(results, score_study, output / "label_noise.csv")
                shown = pictures(score_figures.score_drawings(recording, results, score_study))
                laid_out.append(scores_section(results, score_study, shown, has_pictures(recording.data)))
                pictures(score_figures.extreme_drawings(recording, results))  # too large for the page
            if "groups" in parts:
                tables.write_group_dynamics(recording, results, output / "group_dynamics.csv")
                tables.write_opposing_signals(recording, results, output / "opposing_signals.csv")
                shown = pictures(group_drawings(recording, results))
                laid_out.append(sections.groups_section(recording, results, shown))
            if "motion" in parts:
                seed = shown_seed(recording, cone_options)
                progress = results.progress[list(recording.seeds).index(seed)]
                half = int(recording.iterations[half_learned(progress, len(recording.class_names))])
                iterations = first_frames(half, recording.iterations)
                shown = pictures(figures.motion_drawings(recording, seed, half))
                motion = sections.Film.of(output / "scatter.mp4", seed, iterations)
                laid_out.append(sections.motion_section([motion], shown))
            if cones:
                tables.write_cones(recording, cones, output / "cones.csv")
                tables.write_cone_members(recording, cones, output / "cone_members.csv")
                shown = pictures(figures.cone_drawings(recording, cones))
                laid_out.append(sections.cones_section(recording, cone_options, cones, shown))
            if "motion" in parts:
                # Last, and not in another process, which would leave half a film behind when it is ended.
                layers = recording.layers[-MOST_PANELS:]
                width = 900 if len(layers) == 1 else 1120  # pixels, so that the page can be mailed
                film(recording, output / "scatter.mp4", seed, iterations, layers, fps=FILM_FPS, width=width)
            if fighting:
                if not fighting.done():
                    say("Still looking for pairs in contention")
                contention, fights = fighting.result()
                laid_out.append(sections.contention_section(recording, contention, pictures(fights)))
                tables.write_contention(recording, contention, output / "contention.csv")
                tables.write_contention_members(recording, contention, output / "contention_members.csv")
                tables.write_label_opposition(recording, contention, output / "label_opposition.csv")
            for saved in saving:
                saved.result()
            options = (cone_options, contention_options, score_options)
            with written_whole(output / "report.html") as new:
                new.write_text(page(recording, results, found, laid_out, options, about["parts"]))
    except OSError as error:
        raise InputError.flag("output", output, f"cannot be written: {error.strerror or error}") from error


def _write_study(recording: Recording, results: Results, output: Path) -> list[Claim]:
    """Write the tables that every analysis has, and measure its claims."""
    tables.write_scores(recording, results, output / "scores.csv")
    tables.write_scores_parquet(recording, results, output / "scores.parquet")
    tables.write_curves(results, output / "curves.csv")
    found = claims(results, recording.layers, len(recording.classes[1]))
    _write_json([claim.to_dict() for claim in found], output / "claims.json")
    return found


def _contention(recording: Recording, options: ContentionOptions) -> tuple[Contention, list["Drawing"]]:
    """Look for contention and draw what is found."""
    from train_dynamics.plots.figures import contention_drawings

    found = find_contention(recording, options)
    return found, list(contention_drawings(recording, found))


def first_frames(half: int, iterations: Int[np.ndarray, " t"]) -> Int[np.ndarray, " frame"]:
    """Choose the iterations of the film in the report: up to four times that at which half of the examples are learned.

    Example:
        >>> first_frames(half=30, iterations=np.arange(1411))[[0, 1, -1]]
        array([  0,   2, 120])
    """
    shown = iterations[iterations <= 4 * max(half, 1)]
    return shown[:: (len(shown) - 1) // FILM_FRAMES + 1]


def _remove_earlier(output: Path, new: Collection[str], say: Callable[[str], None]) -> None:
    """Remove the files of an earlier analysis, or an interrupted one would leave some of them by new ones."""
    earlier = _files_of(output)
    for name in earlier:
        (output / name).unlink(missing_ok=True)
    if gone := [name for name in earlier if name not in new and Path(name).suffix not in KINDS]:
        say(f"Removed of the earlier analysis in {output}: {', '.join(gone)}")


def _files_of(output: Path) -> list[str]:
    """List the files of an earlier analysis."""
    known = {*STUDY, *(name for names in PARTS.values() for name in names)}
    try:
        names = json.loads((output / "analysis.json").read_text())["files"]
        return [
            name
            for name in names
            if name in known or (Path(name).parent == Path("figures") and Path(name).suffix in KINDS)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _write_json(value: object, path: Path) -> None:
    with written_whole(path) as new:
        new.write_text(json.dumps(value, indent=2) + "\n")
