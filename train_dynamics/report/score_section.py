"""The text about scores on the page."""

from collections.abc import Sequence

import numpy as np

from train_dynamics.report.sections import Picture, Section
from train_dynamics.study.results import Results
from train_dynamics.study.score_agreement import ScoreStudy, summary


def scores_section(
    results: Results, study: ScoreStudy, pictures: Sequence[Picture], has_pictures: bool = True
) -> Section:
    """Write the section on scores, with a table of what each is, how stable, and how well it finds wrong labels.

    Args:
        results: The scores.
        study: How they compare.
        pictures: The figures.
        has_pictures: Whether the examples are images.
    """
    scores, found = results.scores.scores, results.scores.study
    replayed = ", ".join(f"{t:,}" for t in study.checkpoints)
    words = (
        f"{len(scores)} scores of how hard an example is, from one recording. scores.csv and scores.parquet have "
        f"their values. Scores that are defined early in training are computed at iteration {found.early:,}; those "
        f"that run the networks again, at iterations {replayed}."
    )
    missing = results.scores.missing
    for reason in dict.fromkeys(missing.values()):
        names = [name for name in missing if missing[name] == reason]
        words += f" {', '.join(names)} {'is' if len(names) == 1 else 'are'} missing: {reason}."
    if not has_pictures:
        words += (
            " The overview of the easiest and hardest examples needs images and is left out; the figures "
            "extremes_SCORE show these examples as text."
        )
    if results.ranked_by == "cumulative_loss":
        words += " With one seed there is no agreement, and the examples are ranked by cumulative_loss."
    if study.noisy.any():
        words += f" {np.count_nonzero(study.noisy):,} labels were flipped; the last columns say which scores find them."
    one_seed = summary(study.of_draws)[0][:, 0]
    table = {
        "score": [score.name for score in scores],
        "what it is": [score.formula for score in scores],
        "hard is": [score.hard for score in scores],
        "unit": [score.unit for score in scores],
        "source": [score.source for score in scores],
        "easiest": [_three(score.name, results, 0 if score.hard == "high" else 1) for score in scores],
        "hardest": [_three(score.name, results, 1 if score.hard == "high" else 0) for score in scores],
    }
    if found.num_seeds > 1:
        table["correlation of one seed with all"] = [_two(value) for value in one_seed]
    if study.noisy.any():
        table |= {
            "precision at noise rate": [_two(value) for value in study.precision],
            "AUC": [_two(value) for value in study.auc],
        }
    return Section("Scores", words, pictures=pictures, table=table, table_title="All scores")


def _two(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"


def _three(name: str, results: Results, end: int) -> str:
    values = results.scores.values[name]
    known = values[~np.isnan(values)]
    return f"{(known.min(), known.max())[end]:.3g}" if len(known) else ""
