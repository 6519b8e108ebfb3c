"""Writes an analysis: its tables and figures, and the page that shows them."""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from train_dynamics.data.showing import has_pictures
from train_dynamics.plots import figures, film, style
from train_dynamics.plots.group_drawings import group_drawings
from train_dynamics.recording.format import written_whole
from train_dynamics.recording.reader import Recording
from train_dynamics.report import sections
from train_dynamics.report.directory import KINDS
from train_dynamics.report.export import export
from train_dynamics.report.lineage_section import lineages_section
from train_dynamics.report.oscillation_section import oscillation_section
from train_dynamics.report.page import page
from train_dynamics.study import tables
from train_dynamics.study.claims import Claim, claims
from train_dynamics.study.cones import ConeOptions, Cones, half_learned, shown_seed
from train_dynamics.study.contention import Contention, ContentionOptions
from train_dynamics.study.group_claims import group_claims
from train_dynamics.study.lineages import LineageOptions, Lineages, Persistence
from train_dynamics.study.oscillation import Oscillation, time_quartiles, verdicts
from train_dynamics.study.results import Results
from train_dynamics.study.scores import ScoreOptions

if TYPE_CHECKING:
    from train_dynamics.study.score_agreement import ScoreStudy

FILM_FRAMES, FILM_FPS, MOST_PANELS = 120, 24, 3


class Motion(NamedTuple):
    """What the film and its key frames show.

    Attributes:
        seed: The seed.
        half: The iteration at which it classifies half of the examples correctly.
        iterations: Iterations of the film.
    """

    seed: int
    half: int
    iterations: Int[np.ndarray, " frame"]

    @classmethod
    def of(cls, recording: Recording, results: Results, options: ConeOptions) -> "Motion":
        """Choose what to show, for the seed whose cones are shown."""
        seed = shown_seed(recording, options)
        progress = results.progress[list(recording.seeds).index(seed)]
        half = int(recording.iterations[half_learned(progress, len(recording.class_names))])
        return cls(seed, half, first_frames(half, recording.iterations))


class Writing:
    """Writes an analysis part by part: tables and figures at once, and the page at the end.

    `analysis.json` names every file before it is written, so that a later analysis knows what to remove.

    Args:
        recording: The recording.
        results: What was computed from it.
        output: The directory, which must exist.
        about: Contents of `analysis.json`. Figures are added to its `files`.
        submit: Function that calls another function in a helper process, and returns a `Future`.
    """

    def __init__(
        self,
        recording: Recording,
        results: Results,
        output: Path,
        about: dict[str, Any],
        submit: Callable[..., Future],
    ) -> None:
        self._recording, self._results, self._output, self._about = recording, results, output, about
        self._submit = submit
        self._saving: list[Future] = []
        self._sections: list[sections.Section] = []
        self._claims: Sequence[Claim] = ()
        self._contention: Contention | None = None
        self._write_about()

    @property
    def of_classes(self) -> bool:
        """Whether the recording is of a classifier."""
        return self._recording.contents.classes

    def study(self) -> None:
        """Write what every analysis has: curves and examples, and the claims, which are measured here."""
        recording, results, output = self._recording, self._results, self._output
        shown = self._pictures(figures.study_drawings(recording, results))
        self._sections.append(sections.Section("How the examples were learned", pictures=shown))
        tables.write_scores(recording, results, output / "scores.csv")
        tables.write_scores_parquet(recording, results, output / "scores.parquet")
        tables.write_curves(results, output / "curves.csv")
        self._claims = claims(results, recording.layers, len(recording.classes[1]))
        self._write_claims()

    def scores(self, study: "ScoreStudy") -> None:
        """Write how the scores compare, and the examples at their ends."""
        # Half a second to import, for nothing if scores are not asked for.
        from train_dynamics.plots import score_figures
        from train_dynamics.report.score_section import scores_section

        recording, results, output = self._recording, self._results, self._output
        tables.write_correlations(results, study, output / "score_correlations.csv")
        tables.write_stability(results, study, output / "score_stability.csv")
        if "label_noise.csv" in self._about["files"]:
            tables.write_label_noise(results, study, output / "label_noise.csv")
        shown = self._pictures(score_figures.score_drawings(recording, results, study))
        self._sections.append(scores_section(results, study, shown, has_pictures(recording.data)))
        self._pictures(score_figures.extreme_drawings(recording, results))  # too large for the page

    def groups(self) -> None:
        """Write how far groups of examples pull together."""
        recording, results, output = self._recording, self._results, self._output
        tables.write_group_dynamics(recording, results, output / "group_dynamics.csv")
        tables.write_opposing_signals(recording, results, output / "opposing_signals.csv")
        shown = self._pictures(group_drawings(recording, results))
        self._sections.append(sections.groups_section(recording, results, shown))

    def motion(self, options: ConeOptions) -> Motion:
        """Write the key frames of the film, and return what it shows. `film` writes the film itself."""
        motion = Motion.of(self._recording, self._results, options)
        shown = self._pictures(figures.motion_drawings(self._recording, motion.seed, motion.half))
        its_film = sections.Film.of(self._output / "scatter.mp4", motion.seed, motion.iterations)
        self._sections.append(sections.motion_section([its_film], shown))
        return motion

    def cones(self, options: ConeOptions, cones: Sequence[Cones]) -> None:
        """Write the cones and who is in them."""
        recording, output = self._recording, self._output
        tables.write_cones(recording, cones, output / "cones.csv")
        tables.write_cone_members(recording, cones, output / "cone_members.csv")
        shown = self._pictures(figures.cone_drawings(recording, cones))
        self._sections.append(sections.cones_section(recording, options, cones, shown))

    def film(self, motion: Motion) -> None:
        """Write the film, in this process, because a helper that is killed would leave half a film behind."""
        layers = self._recording.layers[-MOST_PANELS:]
        width = 900 if len(layers) == 1 else 1120  # pixels, so that the page can be mailed
        path = self._output / "scatter.mp4"
        film.film(self._recording, path, motion.seed, motion.iterations, layers, fps=FILM_FPS, width=width)

    def lineages(
        self,
        seed: int,
        found: Sequence[Lineages],
        beside_chance: Sequence[Persistence],
        drawings: Iterable[figures.Drawing],
    ) -> None:
        """Write how cones live. The figures of a seed are already drawn."""
        recording, output = self._recording, self._output
        shown = self._pictures(drawings)
        tables.write_lineages(recording, found, output / "cone_lineages.csv")
        tables.write_events(found, output / "cone_events.csv")
        tables.write_persistence(beside_chance, output / "lineage_persistence.csv")
        tables.write_continuity(found, output / "lineage_continuity.csv")
        tables.write_lineage_members(found, output / "cone_lineage_members.parquet")
        smallest = self._about["lineages"]["smallest"]
        self._sections.append(lineages_section(recording, smallest, seed, found, beside_chance, shown))

    def contention(self, contention: Contention, drawings: Iterable[figures.Drawing]) -> None:
        """Write the pairs in contention, already drawn, and which labels fight."""
        recording, output = self._recording, self._output
        self._contention = contention
        shown = self._pictures(drawings)
        self._sections.append(sections.contention_section(recording, contention, shown))
        tables.write_contention(recording, contention, output / "contention.csv")
        tables.write_contention_members(recording, contention, output / "contention_members.csv")
        tables.write_label_opposition(recording, contention, output / "label_opposition.csv")

    def oscillation(self, found: Oscillation, drawings: Iterable[figures.Drawing]) -> None:
        """Write which steps of the explanation of oscillation hold, in which pairs."""
        recording, output = self._recording, self._output
        shown = self._pictures(drawings)
        self._sections.append(oscillation_section(recording, found, shown))
        tables.write_oscillation(recording, found, output / "oscillation.csv")
        steps = [verdict.to_dict() for verdict in verdicts(found, len(recording.seeds))]
        _write_json({"steps": steps, "times": time_quartiles(found)}, output / "oscillation.json")

    def group_claims(self, options: ConeOptions) -> None:
        """Measure the claims about groups, in addition to those of the study."""
        found = group_claims(self._recording, self._results.progress, options, self._contention)
        self._claims = [*self._claims, *found]
        self._write_claims()

    def _write_claims(self) -> None:
        _write_json([claim.to_dict() for claim in self._claims], self._output / "claims.json")

    def page(self, options: Sequence[ConeOptions | ContentionOptions | ScoreOptions | LineageOptions]) -> None:
        """Write the page, when all figures are saved."""
        for saved in self._saving:
            saved.result()
        parts = self._about["parts"]
        text = page(self._recording, self._results, self._claims, self._sections, options, parts, self._contention)
        with written_whole(self._output / "report.html") as new:
            new.write_text(text)

    def export(self, targets: Collection[str]) -> None:
        """Export the results to other programs, when all figures are saved."""
        export(self._recording, self._results, self._output, self._about["files"], targets)

    def _pictures(self, drawings: Iterable[figures.Drawing]) -> list[sections.Picture]:
        """Have figures saved in helper processes while others are drawn, and add them to the page."""
        shown = []
        for drawing in drawings:
            path = self._output / "figures" / drawing.name
            self._about["files"] += [f"figures/{drawing.name}{kind}" for kind in KINDS]
            self._write_about()
            self._saving.append(self._submit(style.save, drawing.figure, path))
            width, height = drawing.figure.get_size_inches()
            file = path.with_name(f"{drawing.name}.png")
            shown.append(sections.Picture(drawing.title, drawing.caption, file, square=bool(height > width)))
        return shown

    def _write_about(self) -> None:
        _write_json(self._about, self._output / "analysis.json")


def first_frames(half: int, iterations: Int[np.ndarray, " t"]) -> Int[np.ndarray, " frame"]:
    """Choose the film's iterations: up to four times the one at which half of the examples are learned.

    Example:
        >>> first_frames(half=30, iterations=np.arange(1411))[[0, 1, -1]]
        array([  0,   2, 120])
    """
    shown = iterations[iterations <= 4 * max(half, 1)]
    return shown[:: (len(shown) - 1) // FILM_FRAMES + 1]


def _write_json(value: object, path: Path) -> None:
    with written_whole(path) as new:
        new.write_text(json.dumps(value, indent=2) + "\n")
