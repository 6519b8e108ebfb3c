"""A whole analysis of a recording: computes everything, and writes it into one directory."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train_dynamics import __version__
from train_dynamics.config import InputError, pluralise, time_in_words
from train_dynamics.processes import Helpers
from train_dynamics.progress import Progress
from train_dynamics.recording.code import how_to_run
from train_dynamics.recording.reader import Recording
from train_dynamics.report.directory import STUDY, check_output, cleared
from train_dynamics.report.export import check_targets
from train_dynamics.study import tables
from train_dynamics.study.cones import ConeOptions, Cones, check_options, find_cones, shown_seed
from train_dynamics.study.contention import Contention, ContentionOptions, find_contention, longest_search
from train_dynamics.study.histories import make_histories
from train_dynamics.study.lineages import LineageOptions, Lineages, Persistence, find_lineages, persistence
from train_dynamics.study.oscillation import Oscillation, follow_oscillation
from train_dynamics.study.ranking import Ranking
from train_dynamics.study.results import Results, check_finished, compute
from train_dynamics.study.scores import Networks, ScoreOptions, replay_seconds
from train_dynamics.study.tables import DEFAULT_PARTS, PARTS

if TYPE_CHECKING:
    from train_dynamics.plots.figures import Drawing
    from train_dynamics.report.writing import Writing
    from train_dynamics.study.score_agreement import ScoreStudy

OF_GRADIENTS = ("groups", "cones", "lineages", "contention", "oscillation")
OF_PAIRS = {"contention", "oscillation"}
OF_CLASSES = ("scores", "motion")
STEP = "{desc}: step {n_fmt} of {total_fmt}, {elapsed} so far"  # steps differ too much to say how long the others take
MANY = 10_000  # examples of which all pairs take minutes
LONG = 60  # seconds that a user is told of


def analyze(
    recording: Recording,
    output: Path,
    cone_options: ConeOptions = ConeOptions(),
    contention_options: ContentionOptions = ContentionOptions(),
    score_options: ScoreOptions = ScoreOptions(),
    lineage_options: LineageOptions = LineageOptions(),
    parts: Collection[str] = DEFAULT_PARTS,
    log: Callable[[str], None] = print,
    networks: Networks | None = None,
    export: Collection[str] = (),
    given: Ranking | None = None,
) -> None:
    """Write tables, claims, figures and the report of a finished recording, replacing an earlier analysis.

    Args:
        recording: The recording.
        output: Directory for the results. It must be new, empty, or hold an earlier analysis.
        cone_options: Which cones to look for, and which seed to show.
        contention_options: Which pairs in contention to look for.
        score_options: How to compute scores.
        lineage_options: Which cones to follow.
        parts: Which of `PARTS` to compute in addition to the study itself. Files of other parts from an earlier
            analysis are removed.
        log: Function that prints a line for the user.
        networks: Runs networks again, for the scores that need it. Not needed for the default network.
        export: Where to export the finished analysis: some of `tensorboard`, `wandb` and `trackio`.
        given: What to rank the examples by, instead of their agreement.

    Raises:
        InputError: If a part or an export is unknown; if the recording is unfinished or damaged, or lacks what the
            options ask for; if the output holds other files, cannot be written, or is being written by another
            analysis; or if a package for an export is not installed.
    """
    check_targets(export)
    parts = _possible(recording, parts, log)
    options = (cone_options, contention_options, score_options, lineage_options)
    try:
        check_output(output, recording)
        about = _about(recording, options, parts, given)
        check_finished(recording)
        _ = recording.data  # which compares the checksums of all examples before anything is written
        check_options(recording, cone_options)
        if OF_PAIRS & set(parts):
            _say_cost(recording, contention_options, log)
        if networks is not None and "scores" in parts:
            _say_cost_of_replay(recording, score_options, networks, log)
        with Helpers() as helpers:
            # It needs nothing of what is computed here, and takes as long.
            fighting = helpers.submit(_pairs, recording, contention_options, parts) if OF_PAIRS & set(parts) else None
            seed = shown_seed(recording, cone_options)
            living = helpers.submit(_lineages, recording, lineage_options, seed) if "lineages" in parts else None
            results = _results(recording, score_options, parts, log, networks, given)
            score_study = _score_study(recording, results)
            cones = find_cones(recording, cone_options, results.progress) if "cones" in parts else []
            # Seconds to import, for nothing if the recording will not do.
            from train_dynamics.plots.style import lacking
            from train_dynamics.report.writing import Writing

            asked = (score_study, "groups" in parts, cones, living, fighting, "histories" in parts, export)
            total = 2 + sum(map(bool, asked)) + 2 * ("motion" in parts)
            with cleared(output, about["files"], log), Steps(total, log) as steps:
                # Not before it is known that options and output will do: nothing is stored by mistake.
                histories = helpers.submit(_histories, recording) if "histories" in parts else None
                if letters := lacking(recording.class_names):
                    log(f"Figures show boxes in place of {letters}, which their font does not have; tables have them")
                writing = Writing(recording, results, output, about, helpers.submit)
                steps.begin("Drawing curves")
                writing.study()
                _write_parts(writing, parts, cone_options, score_study, cones, (living, fighting), steps)
                steps.begin("Writing the report")
                writing.page(options)
                if export:
                    steps.begin("Exporting")
                    writing.export(export)
                problem = steps.awaited(histories, "Storing histories") if histories else ""
            if problem:
                log(f"Left out: histories: {problem}")
    except OSError as error:
        raise InputError.flag("output", output, f"cannot be written: {error.strerror or error}") from error


def _write_parts(
    writing: "Writing",
    parts: Collection[str],
    options: ConeOptions,
    study: "ScoreStudy | None",
    cones: Sequence[Cones],
    elsewhere: tuple[Future | None, Future | None],
    steps: "Steps",
) -> None:
    """Write the parts besides the study. Lineages and contention are computed by other processes."""
    living, fighting = elsewhere
    if study:
        steps.begin("Drawing scores")
        writing.scores(study)
    if "groups" in parts:
        steps.begin("Drawing groups")
        writing.groups()
    motion = None
    if "motion" in parts:
        steps.begin("Drawing key frames")
        motion = writing.motion(options)
    if cones:
        steps.begin("Drawing cones")
        writing.cones(options, cones)
    if motion:
        steps.begin("Drawing the film")
        writing.film(motion)  # while helpers save what was drawn
    if living:
        writing.lineages(*steps.awaited(living, "Following cones"))
    if fighting:
        contention, oscillation = steps.awaited(fighting, "Looking for contention")
        if contention:
            writing.contention(*contention)
        if oscillation:
            writing.oscillation(*oscillation)
    if cones and writing.of_classes:
        writing.group_claims(options)


def _say_cost(recording: Recording, options: ContentionOptions, log: Callable[[str], None]) -> None:
    """Log how long it may take to compare every two of many examples, and how to shorten it."""
    count = min(len(recording.labels), options.examples or len(recording.labels))
    if count <= MANY:
        return
    most = time_in_words(longest_search(recording, options))
    log(
        f"Comparing every two of {count:,} examples, at {pluralise(options.checkpoints, 'iteration')} of "
        f"{pluralise(len(recording.seeds), 'seed')}: at most {most}; --contention_examples={MANY} takes "
        f"{(MANY / count) ** 2:.0%} of that"
    )


def _say_cost_of_replay(
    recording: Recording, options: ScoreOptions, networks: Networks, log: Callable[[str], None]
) -> None:
    """Log how long it may take to run networks again for scores, and how to shorten it."""
    seconds = replay_seconds(recording, options, networks)
    if (total := sum(seconds.values())) < LONG:
        return
    longest, count = max(seconds, key=seconds.get), options.checkpoints
    fewer = 2 if count > 2 else 1
    less = "" if count == 1 else f"; --score_checkpoints={fewer} takes {fewer / count:.0%} of that"
    log(
        f"Running the networks of {pluralise(len(recording.seeds), 'seed')} again, at {pluralise(count, 'iteration')}: "
        f"about {time_in_words(total)}, of which {longest} takes {time_in_words(seconds[longest])}{less}"
    )


def _possible(recording: Recording, parts: Collection[str], log: Callable[[str], None]) -> list[str]:
    """Leave out the parts that a recording has no data for, and say so."""
    unknown = ", ".join(part for part in parts if part not in PARTS)
    if unknown:
        raise InputError.flag("parts", unknown, f"must be one or more of {','.join(PARTS)}, or empty")
    impossible: dict[str, str] = {}
    if not recording.gradient_layers:
        impossible |= dict.fromkeys(OF_GRADIENTS, "compares gradients, and only measures were recorded")
    if not recording.contents.classes:
        impossible |= dict.fromkeys(OF_CLASSES, "is about classes, and the labels are targets")
    for part, why in impossible.items():
        if part in parts:
            log(f"Left out: {part}, which {why}")
    return [part for part in parts if part not in impossible]


def _about(
    recording: Recording,
    options: tuple[ConeOptions, ContentionOptions, ScoreOptions, LineageOptions],
    parts: Collection[str],
    given: Ranking | None,
) -> dict[str, Any]:
    """Return what `analysis.json` stores: the recording, how the analysis was made, and its files."""
    cones, contention, scores, lineages = map(dataclasses.asdict, options)
    return {
        "recording": str(recording.path),
        "version": __version__,
        "config": recording.config.to_dict(),
        "cones": cones,
        "contention": contention,
        "scores": scores,
        "lineages": lineages,
        "ranked_by": given.words if given else "",
        "parts": [part for part in PARTS if part in parts],
        "files": [*STUDY, *tables.files_of_parts(recording, parts)],
    }


def _results(
    recording: Recording,
    options: ScoreOptions,
    parts: Collection[str],
    log: Callable[[str], None],
    networks: Networks | None,
    given: Ranking | None,
) -> Results:
    """Compute everything that needs one pass over the recording, and show the progress."""
    records, seeds = pluralise(recording.num_records, "record"), pluralise(len(recording.seeds), "seed")
    log(f"Reading {records} of {seeds} in {recording.path}")
    with Progress("Measuring", recording.num_records, "records") as bar:
        results = compute(
            recording,
            options if "scores" in parts else None,
            "groups" in parts,
            bar.update,
            networks,
            given,
            bar.set_postfix_str,
        )
    if results.scores and not results.scores.study.replayable:
        log(f"Left out: scores for which the network must be run again; {how_to_run(recording)}")
    if dead := np.count_nonzero(results.indifferent):
        log(f"Dead networks, which at the end give every example the same probabilities: {dead} of {seeds}")
    return results


def _score_study(recording: Recording, results: Results) -> "ScoreStudy | None":
    """Compare the scores, if there are any."""
    if not results.scores:
        return None
    from train_dynamics.study.score_agreement import study_scores  # half a second to import

    return study_scores(results.scores, recording.noisy)


def _pairs(
    recording: Recording, options: ContentionOptions, parts: Collection[str]
) -> tuple[tuple[Contention, list["Drawing"]] | None, tuple[Oscillation, list["Drawing"]] | None]:
    """Look for contention and follow it, as far as asked for, and draw what is found."""
    from train_dynamics.plots.figures import contention_drawings
    from train_dynamics.plots.oscillation_drawings import oscillation_drawings

    found, contention, oscillation = find_contention(recording, options), None, None
    if "contention" in parts:
        contention = found, list(contention_drawings(recording, found))
    if "oscillation" in parts:
        followed = follow_oscillation(recording, found)
        oscillation = followed, list(oscillation_drawings(recording, followed))
    return contention, oscillation


def _lineages(
    recording: Recording, options: LineageOptions, seed: int
) -> tuple[int, list[Lineages], list[Persistence], list["Drawing"]]:
    """Follow the cones, compare them with groups drawn at random, and draw those of one seed."""
    from train_dynamics.plots.lineage_drawings import lineage_drawings

    found = find_lineages(recording, options)
    beside_chance = persistence(found)
    return seed, found, beside_chance, list(lineage_drawings(recording, found, beside_chance, seed))


def _histories(recording: Recording) -> str:
    """Make histories. If that is not possible, for example in a read-only recording, return the reason."""
    try:
        make_histories(recording)
    except InputError as error:
        return str(error)
    return ""


class Steps:
    """Shows, in a terminal, which step of writing the results is going on, and how many there are.

    Args:
        total: Number of steps.
        log: Function that prints a line for the user.
    """

    def __init__(self, total: int, log: Callable[[str], None]) -> None:
        self._log, self._begun = log, 0
        self._bar = Progress("Writing", total, "steps", forms=(STEP,), leave=False)

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, words: str) -> None:
        """Say which step begins."""
        self._begun += 1
        self._bar.n = self._begun
        self._bar.set_description(words)

    def awaited(self, result: Future, words: str) -> Any:
        """Wait for another process; if it is not done yet, say so also where no bar is shown."""
        self.begin(words)
        if self._bar.disable and not result.done():
            self._log(f"Still {words[0].lower()}{words[1:]}")
        while not wait([result], timeout=1).done:
            self._bar.refresh()
        return result.result()
