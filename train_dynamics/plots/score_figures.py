"""The figures of all scores, each with the words that go with it."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from train_dynamics.data.showing import has_pictures, shown
from train_dynamics.dynamics.scores.score import Score
from train_dynamics.plots import scores as score_plots
from train_dynamics.plots.figures import Drawing
from train_dynamics.plots.grids import most_shown
from train_dynamics.recording.reader import Recording
from train_dynamics.study.results import Results
from train_dynamics.study.score_agreement import ScoreStudy, summary


def score_drawings(recording: Recording, results: Results, study: ScoreStudy) -> Iterator[Drawing]:
    """Draw how the scores compare: their agreement, their stability, their ends, and whether they find wrong labels."""
    names = [score.name for score in results.scores.scores]
    yield _correlation_drawing(names, study)
    if results.scores.study.num_seeds > 1:
        yield _seed_drawing(names, study)
    yield _stopping_drawing(names, results, study)
    if has_pictures(recording.data):
        yield _overview_drawing(recording, results, len(names))
    if study.noisy.any():
        yield _noise_drawing(names, study)


def _correlation_drawing(names: list[str], study: ScoreStudy) -> Drawing:
    """Draw which scores agree."""
    ordered = [names[k] for k in study.order]
    return Drawing(
        "score_correlations",
        f"Which of {len(names)} scores agree: Spearman correlation between every two",
        "Every score is turned so that high is hard. Scores that rank alike stand together. Dark red blocks are "
        "families that say much the same. Pale rows say something else, or are noise; the next figures show how "
        "far a score agrees with itself. A high cartography_variability means ambiguous rather than hard, because "
        "examples that are never learned vary little.",
        score_plots.number_map(
            study.correlations[np.ix_(study.order, study.order)], ordered, ordered, "Which scores agree", diverging=True
        ),
    )


def _seed_drawing(names: list[str], study: ScoreStudy) -> Drawing:
    """Draw how stable rankings are from fewer seeds."""
    return Drawing(
        "score_stability_seeds",
        "How many seeds a score needs: correlation of rankings from fewer seeds with that from all",
        "Seeds are drawn with replacement, and the correlation is averaged over the draws. A score that is high on "
        "the left needs only one training run; a slow rise means that one run mostly shows its own randomness. The "
        "drawn seeds are among all seeds, so independent seeds would agree slightly less.",
        score_plots.number_map(
            summary(study.of_draws)[0],
            names,
            [str(size) for size in study.sizes],
            "Stability of each ranking against the number of seeds",
            "seeds drawn",
        ),
    )


def _stopping_drawing(names: list[str], results: Results, study: ScoreStudy) -> Drawing:
    """Draw how stable rankings are if recording stops early."""
    return Drawing(
        "score_stability_iterations",
        "How early recording may stop: correlation of rankings from a shorter recording with those from the whole",
        "All seeds, up to the iteration below each column. A score that is high on the left is known early, or "
        f"defined early: el2n and grand are computed at iteration {results.scores.study.early:,} and do not change "
        "later. In empty cells a score is not defined yet, or constant.",
        score_plots.number_map(
            study.of_checkpoints,
            names,
            [str(t) for t in study.checkpoints],
            "Stability of each ranking against stopping early",
            "last iteration recorded (updates)",
        ),
    )


def _overview_drawing(recording: Recording, results: Results, num_scores: int) -> Drawing:
    """Draw the images at both ends of every score."""
    scores = _with_values(results)
    return Drawing(
        "score_extremes",
        f"The easiest and the hardest examples by each of {num_scores} scores",
        "One row per score: the easiest example is at the left end, the hardest at the right end. The figures "
        "extremes_SCORE have 64 of each, with labels.",
        score_plots.overview(
            [
                tuple(shown(recording.data, chosen) for chosen in ends(score, results, score_plots.STRIP))
                for score in scores
            ],
            [score.name for score in scores],
            "The easiest and the hardest examples by each score",
        ),
    )


def _noise_drawing(names: list[str], study: ScoreStudy) -> Drawing:
    """Draw how well each score finds wrong labels."""
    share = study.noisy.mean()
    return Drawing(
        "label_noise",
        "Which scores find wrong labels",
        f"{np.count_nonzero(study.noisy):,} labels, {share:.1%}, were flipped. AUC: the chance that a wrong "
        "label scores harder than a right one. Precision: the share of wrong labels among the same number of hardest "
        "examples. Dotted lines are chance.",
        score_plots.noise_bars(names, study.precision, study.auc, share, "Which scores find wrong labels"),
    )


def extreme_drawings(recording: Recording, results: Results) -> Iterator[Drawing]:
    """Draw up to 64 images, or 24 other examples, at either end of each score."""
    flipped = " A star is at a label that was flipped." if recording.noisy.any() else ""
    for score in _with_values(results):
        easy, hard = ends(score, results, most_shown(recording.data))
        values = results.scores.values[score.name]
        titles = tuple(
            f"{len(chosen)} {word}: {values[chosen[0]]:.3g} to {values[chosen[-1]]:.3g}"
            for word, chosen in (("easiest", easy), ("hardest", hard))
        )
        labels = tuple([_label(recording, n) for n in chosen.tolist()] for chosen in (easy, hard))
        yield Drawing(
            f"extremes_{score.name}",
            f"The easiest and the hardest examples by {score.name}",
            f"{score.formula}; in {score.unit}, {score.hard} is hard." + flipped,
            score_plots.extremes(
                shown(recording.data, easy),
                shown(recording.data, hard),
                labels,
                titles,
                extremes_title(score),
            ),
        )


def extremes_title(score: Score) -> str:
    """Describe a score, and which end of it is hard."""
    return f"{score.name}: {score.formula} ({score.unit}; {score.hard} is hard)"


def _label(recording: Recording, n: int) -> str:
    return recording.class_names[recording.labels[n]] + ("*" if recording.noisy[n] else "")


def _with_values(results: Results) -> list[Score]:
    return [score for score in results.scores.scores if not np.isnan(results.scores.values[score.name]).all()]


def ends(score: Score, results: Results, count: int) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """List the easiest and the hardest examples, the most extreme first. Ties keep their order; NaN is in neither."""
    difficulty = score.difficulty(results.scores.values[score.name])
    known = np.flatnonzero(~np.isnan(difficulty))
    count = min(count, len(known))
    easy, hard = (known[np.argsort(sign * difficulty[known], kind="stable")[:count]] for sign in (1, -1))
    return easy, hard
