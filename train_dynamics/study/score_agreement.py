"""Compares scores: which agree, how stable their rankings are, and which find wrong labels."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from train_dynamics.dynamics.label_noise import auc, precision_at_noise_rate
from train_dynamics.dynamics.rank_correlation import families, spearman, spearman_matrix
from train_dynamics.study.scores import Scores

NUM_DRAWS = 20
SIZES = (1, 2, 3, 5, 10, 20, 50, 100)


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreStudy:
    """How the scores of a recording compare.

    Attributes:
        correlations: Spearman's rank correlation between every two scores, in their order, with high meaning hard.
        order: The scores, ordered so that similar ones stand together.
        sizes: Numbers of seeds drawn.
        of_draws: Rank correlation of each score from some drawn seeds with that from all seeds. NaN where a draw has
            none.
        checkpoints: Iterations at which recording might have stopped.
        of_checkpoints: Rank correlation of each score, had recording stopped there, with that at the end. NaN where it
            is not defined yet.
        precision: For each score, the share of wrong labels among the hardest examples, as many as there are wrong
            labels. NaN without any.
        auc: For each score, the probability that a wrong label looks harder than a right one. NaN without any.
        noisy: Whether the label of each example was flipped.
    """

    correlations: Float[np.ndarray, "score score"]
    order: Int[np.ndarray, " score"]
    sizes: tuple[int, ...]
    of_draws: Float[np.ndarray, "score size draw"]
    checkpoints: Int[np.ndarray, " checkpoint"]
    of_checkpoints: Float[np.ndarray, "score checkpoint"]
    precision: Float[np.ndarray, " score"]
    auc: Float[np.ndarray, " score"]
    noisy: Bool[np.ndarray, " n"]


def study_scores(scores: Scores, noisy: Bool[np.ndarray, " n"], seed: int = 0) -> ScoreStudy:
    """Compare the scores of a recording.

    Seeds are drawn with replacement (bootstrap, Efron 1979), as many as there are or fewer. A draw shares seeds with
    the whole, so its correlation is somewhat higher than that of two recordings with different seeds.

    Args:
        scores: The scores.
        noisy: Which labels were flipped.
        seed: Seed of the draws.
    """
    difficulty = np.stack([score.difficulty(scores.values[score.name]) for score in scores.scores])
    correlations = spearman_matrix(difficulty)
    num_seeds = scores.study.num_seeds
    sizes = (*(size for size in SIZES if size < num_seeds), num_seeds)
    rng = np.random.default_rng(seed)
    draws = np.concatenate([rng.multinomial(size, np.full(num_seeds, 1 / num_seeds), NUM_DRAWS) for size in sizes])
    of_draws = [
        spearman(scores.resampled(score, draws.astype(float)), scores.values[score.name]).reshape(len(sizes), NUM_DRAWS)
        for score in scores.scores
    ]
    of_checkpoints = [spearman(scores.stopped[score.name], scores.values[score.name]) for score in scores.scores]
    return ScoreStudy(
        correlations,
        families(correlations),
        sizes,
        np.stack(of_draws),
        scores.study.checkpoints,
        np.stack(of_checkpoints),
        np.array([precision_at_noise_rate(values, noisy) for values in difficulty]),
        np.array([auc(values, noisy) for values in difficulty]),
        noisy,
    )


def summary(values: Float[np.ndarray, "*lead draw"]) -> Float[np.ndarray, "statistic *lead"]:
    """Compute mean, smallest and largest over the draws that have a value. NaN where none has.

    Example:
        >>> summary(np.array([[0.5, 1.0], [np.nan, 0.5]]))
        array([[0.75, 0.5 ],
               [0.5 , 0.5 ],
               [1.  , 0.5 ]])
    """
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    mean = np.divide(np.where(known, values, 0).sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)
    low, high = np.where(known, values, np.inf).min(axis=-1), np.where(known, values, -np.inf).max(axis=-1)
    return np.stack([mean, np.where(count > 0, low, np.nan), np.where(count > 0, high, np.nan)])


def stability_rows(scores: Scores, study: ScoreStudy) -> Iterator[tuple[str, str, int, float, float, float, int]]:
    """List score, what varies, its value, mean, smallest and largest correlation, and the number of draws with one."""
    for k, score in enumerate(scores.scores):
        for size, draws in zip(study.sizes, study.of_draws[k], strict=True):
            yield score.name, "seeds", size, *summary(draws).tolist(), int(np.count_nonzero(~np.isnan(draws)))
        for t, value in zip(study.checkpoints.tolist(), study.of_checkpoints[k].tolist(), strict=True):
            yield score.name, "iterations", t, value, value, value, int(not np.isnan(value))
