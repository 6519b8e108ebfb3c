"""The claims of the published study, measured in this recording."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.study.results import NUM_CHUNKS, SHARE, Results, metric_name

ALL, TOP, MIDDLE, BOTTOM = 0, 1, 6, NUM_CHUNKS  # columns of a curve: all examples, chunk 0, chunk 5, chunk 9
CHUNKS = slice(1, None)
LEARNED = 0.8
EARLY = 50
RESAMPLES = 1000
SURE = 0.975
DECIMALS = 9  # a mean of values of 0.95 is that but for its last bits, which must not decide
Means = dict[str, Float[np.ndarray, "t group"]]


class UndecidedError(Exception):
    """Says why a recording cannot decide a claim."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim and its verdict.

    Attributes:
        name: Short name.
        sentence: What is claimed.
        measured: How it was measured, and which value confirms it.
        unit: Unit of the value: `share`, `updates`, `times`, `cosine`, `ratio`, `pairs` or `nats per unit of weight`.
        value: The measured value, from curves averaged over seeds. None if there is none.
        low: Lower end of the value's 95 % interval, from a bootstrap over seeds, using the resampled sets that decide
            the claim. None if there is no value, or a single seed.
        high: Upper end.
        holds: Whether it holds here. None if this recording cannot decide it.
        support: Share of the resampled sets of seeds that give this same verdict, rather than the other one or none.
            None if nothing is decided, or for a single seed.
        reason: Why it cannot be decided. Empty if it can.
    """

    name: str
    sentence: str
    measured: str
    unit: str
    value: float | None
    low: float | None
    high: float | None
    holds: bool | None
    support: float | None
    reason: str

    @property
    def barely(self) -> bool:
        """Whether other seeds could well have given another verdict."""
        return self.support is not None and self.support < SURE

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in a form that JSON can store."""
        return dataclasses.asdict(self)


def in_words(layers: Sequence[str], layer: str) -> tuple[str, str]:
    """Give what tells a claim of a layer from the same of others: in its name and in its sentence; nothing of one.

    Example:
        >>> in_words(("fc2", "fc3"), "fc3")
        ('_fc3', ' in fc3')
    """
    return ("", "") if len(layers) == 1 else (f"_{layer}", f" in {layer}")


def reaches(curve: Float[np.ndarray, " t"], level: float) -> int | None:
    """Find the first iteration at which a curve is at least `level`, up to rounding. None if it never is.

    Example:
        >>> reaches(np.array([0.1, 0.8, 0.7]), 0.8)
        1
    """
    above = curve >= level - 0.1**DECIMALS
    return int(above.argmax()) if above.any() else None


def between(
    curves: Float[np.ndarray, "s t group"], iterations: Int[np.ndarray, " t"]
) -> Float[np.ndarray, "s _ group"]:
    """Fill in iterations that were not recorded, by straight lines.

    Example:
        >>> between(np.array([[[0.0], [1.0]]]), np.array([0, 2])).ravel()
        array([0. , 0.5, 1. ])
    """
    every = np.arange(iterations[-1] + 1)
    if len(every) == len(iterations):
        return curves
    later = np.searchsorted(iterations, every).clip(1)
    share = ((every - iterations[later - 1]) / (iterations[later] - iterations[later - 1]))[:, None]
    return curves[:, later - 1] * (1 - share) + curves[:, later] * share


def claims(results: Results, layers: tuple[str, ...], num_classes: int, seed: int = 0) -> list[Claim]:
    """Measure every claim.

    The interval resamples seeds with replacement (percentile bootstrap, Efron 1979), while the ranking into chunks
    stays the same. Between records, curves are assumed to be straight.
    """
    num_records = int(results.iterations[-1]) + 1
    of_all, of_chunks = list(_of_all(num_classes, num_records)), list(_of_chunks(layers, num_records))
    if "accuracy" not in results.curves:
        return _undecided([*of_all, *of_chunks], "is about classes, and the labels are targets of a regression")
    if results.num_chunks < NUM_CHUNKS:
        return _undecided([*of_all, *of_chunks], f"needs {NUM_CHUNKS} examples or more")
    if results.agr is None and not results.given:
        definitions, left = (
            of_all,
            _undecided(of_chunks, "needs at least two seeds, because their agreement ranks the examples"),
        )
    elif not results.given and np.count_nonzero(~results.indifferent) < 2:
        few = "needs at least two networks that distinguish examples, because their agreement ranks the examples"
        definitions, left = of_all, _undecided(of_chunks, few)
    else:
        definitions, left = [*of_all, *of_chunks], []
    curves = {metric: between(curve, results.iterations) for metric, curve in results.curves.items()}

    def means(weights: Float[np.ndarray, " s"]) -> Means:
        return {metric: np.tensordot(weights, curve, 1) for metric, curve in curves.items()}

    return decided(definitions, means, len(results.curves["accuracy"]), seed) + left


def decided(
    definitions: Sequence[tuple], means: Callable[[Float[np.ndarray, " s"]], Any], num_seeds: int, seed: int = 0
) -> list[Claim]:
    """Decide claims, with intervals over resampled seeds.

    Args:
        definitions: For each claim its name, sentence, measure, unit, statistic and verdict. The statistic maps what
            `means` returns to a number, or raises `UndecidedError`; the verdict maps that number to whether the claim
            holds.
        means: Function from the weight of each seed to what the statistics are computed from.
        num_seeds: Number of seeds.
        seed: Seed of the bootstrap.
    """
    draws = np.random.default_rng(seed).multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), RESAMPLES)
    resampled: list[list[float]] = [[] for _ in definitions]
    # Few seeds have few distinct resamples: three have ten.
    for draw, count in zip(*np.unique(draws, axis=0, return_counts=True), strict=True):
        drawn = means(draw / num_seeds)
        for values, (*_, statistic, _) in zip(resampled, definitions, strict=True):
            with contextlib.suppress(UndecidedError):
                values += [round(float(statistic(drawn)), DECIMALS)] * count
    whole = means(np.full(num_seeds, 1 / num_seeds))
    return [
        # A single seed resampled is itself, and says nothing of others.
        _decide(*definition, whole, values if num_seeds > 1 else None)
        for definition, values in zip(definitions, resampled, strict=True)
    ]


def _undecided(definitions: Sequence[tuple], reason: str) -> list[Claim]:
    return [Claim(*words, None, None, None, None, None, reason) for *words, _, _ in definitions]


def _decide(
    name: str,
    sentence: str,
    measured: str,
    unit: str,
    statistic: Callable[[Means], float],
    holds: Callable[[float], bool],
    means: Any,
    resampled: list[float] | None,
) -> Claim:
    try:
        value = round(float(statistic(means)), DECIMALS)
    except UndecidedError as error:
        return Claim(name, sentence, measured, unit, None, None, None, None, None, str(error))
    ends = np.percentile(resampled, [2.5, 97.5], method="nearest") if resampled else [np.nan, np.nan]
    shown, low, high = (float(x) if np.isfinite(x) else None for x in (value, *ends))
    verdict = bool(holds(value))
    support = None if resampled is None else sum(bool(holds(x)) == verdict for x in resampled) / RESAMPLES
    return Claim(name, sentence, measured, unit, shown, low, high, verdict, support, "")


def _need(iteration: int, num_records: int) -> None:
    if num_records <= iteration:
        raise UndecidedError(f"needs {iteration} iterations; the recording has {num_records - 1}")


def _of_all(num_classes: int, num_records: int) -> Iterator[tuple]:
    """List name, sentence, measure, unit, statistic and verdict of every claim about all examples.

    A statistic maps curves averaged over seeds to a number, which is infinite if an event never happens.
    """

    def start(means: Means) -> float:
        return means["accuracy"][0, ALL]

    chance = 1 / num_classes
    words = f"{chance:.0%}" if num_classes > 1 else "chance"
    yield (
        "starts_at_chance",
        "At initialisation, accuracy is near chance.",
        f"training accuracy at iteration 0; holds within 5 points of {words}",
        "share",
        start,
        lambda value: abs(value - chance) <= 0.05,
    )

    def first_at(means: Means) -> float:
        found = reaches(means["accuracy"][:, ALL], LEARNED)
        if found is None:
            _need(100, num_records)
            return np.inf
        return float(found)

    yield (
        "learns_fast",
        "Training accuracy passes 80 % within the first 100 iterations.",
        "first iteration with a training accuracy of 80 %; holds up to 100",
        "updates",
        first_at,
        lambda value: value <= 100,
    )


def _of_chunks(layers: tuple[str, ...], num_records: int) -> Iterator[tuple]:
    """List the same for every claim about chunks.

    They need a ranking by agreement: a ranking by how examples were learned cannot test how typical examples are
    learned.
    """
    yield from _of_learning(num_records)
    yield from _of_the_slowest(num_records)
    for layer in layers:
        yield from _of_gradients(layers, layer, num_records)
    yield from _of_forgetting()


def _of_learning(num_records: int) -> Iterator[tuple]:
    """List the claims about the order in which chunks are learned."""

    def top_early(means: Means) -> float:
        _need(EARLY, num_records)
        return means["accuracy"][EARLY, TOP]

    yield (
        "typical_learned_early",
        "The most typical tenth is nearly all learned by iteration 50.",
        "accuracy of chunk 0 at iteration 50; holds from 95 %",
        "share",
        top_early,
        lambda value: value >= 0.95,
    )

    def order(means: Means) -> float:
        reached = [reaches(curve, LEARNED) for curve in means["accuracy"][:, CHUNKS].T]
        times = [num_records if t is None else t for t in reached]
        if sum(t is not None for t in reached) < 2:
            raise UndecidedError("fewer than two chunks reach 80 %")
        return np.mean([later >= earlier for earlier, later in itertools.pairwise(times)])

    yield (
        "learned_in_order",
        "The iteration at which a chunk reaches 80 % rises with the chunk.",
        "share of neighbouring chunks of which the less typical one reaches 80 % no earlier; holds if all",
        "share",
        order,
        lambda value: value == 1,
    )


def _of_the_slowest(num_records: int) -> Iterator[tuple]:
    """List the claim about the least typical tenth."""

    def slower(means: Means) -> float:
        middle, bottom = (reaches(means["accuracy"][:, chunk], 0.5) for chunk in (MIDDLE, BOTTOM))
        if middle is None:
            raise UndecidedError("chunk 5 never reaches 50 %")
        return np.inf if bottom is None else bottom / max(middle, 1)

    yield (
        "atypical_learned_slowly",
        "The least typical tenth is learned much more slowly.",
        "iteration at which chunk 9 reaches 50 %, as a multiple of that of chunk 5; holds from 2",
        "times",
        slower,
        lambda value: value >= 2,
    )


def _of_gradients(layers: tuple[str, ...], layer: str, num_records: int) -> Iterator[tuple]:
    """List the claims about the gradients of a layer."""
    suffix, of_layer = in_words(layers, layer)

    def lead(means: Means) -> float:
        _need(EARLY, num_records)
        early = means[metric_name(layers, layer, "alignment")][:EARLY, CHUNKS].mean(axis=0)
        return early[0] - early[1:].max()

    yield (
        f"typical_most_aligned{suffix}",
        f"In the first 50 iterations the most typical tenth is the most aligned with the mean gradient{of_layer}.",
        "mean alignment of chunk 0 over iterations 0 to 49, less that of the best other chunk; holds above 0",
        "cosine",
        lead,
        lambda value: value > 0,
    )

    def share(means: Means) -> float:
        _need(EARLY, num_records)
        return means[metric_name(layers, layer, SHARE)][:EARLY, TOP : TOP + NUM_CHUNKS // 2].mean(axis=0).sum()

    yield (
        f"typical_dominate{suffix}",
        f"In the first 50 iterations the well-represented dominate the mean gradient{of_layer}.",
        "share of the mean gradient that chunks 0 to 4 make up, mean over iterations 0 to 49; holds above 50 %",
        "share",
        share,
        lambda value: value > 0.5,
    )

    def rise(means: Means) -> float:
        under_way = reaches(means["accuracy"][:, ALL], 0.5)
        if under_way is None:
            raise UndecidedError("training accuracy never reaches 50 %")
        norm = means[metric_name(layers, layer, "gradient_norm")]
        return np.diff(norm[under_way:, CHUNKS].mean(axis=0)).min()

    yield (
        f"norm_rises_with_chunk{suffix}",
        f"Once learning is under way, the gradient norm rises with the chunk{of_layer}.",
        "mean norm from 50 % training accuracy on; smallest difference of neighbouring chunks; holds above 0",
        "nats per unit of weight",
        rise,
        lambda value: value > 0,
    )


def _of_forgetting() -> Iterator[tuple]:
    """List the claims about what is learned for good."""

    def widening(means: Means) -> float:
        area = (means["first_correct"] - means["last_mistake"]).mean(axis=0)
        return min(area[MIDDLE] - area[TOP], area[BOTTOM] - area[MIDDLE])

    yield (
        "uncertainty_widens",
        "The region between first correct and last mistake widens from the top to the middle to the bottom tenth.",
        "mean height of the region, the share of the examples there; smaller of the two differences; holds above 0",
        "share",
        widening,
        lambda value: value > 0,
    )

    def forgotten(means: Means) -> float:
        learned = reaches(means["accuracy"][:, TOP], 0.95)
        if learned is None:
            raise UndecidedError("the most typical tenth never reaches 95 %")
        # Never wrong from an iteration on implies correct at it, so the ratio is a conditional share.
        return 1 - means["last_mistake"][learned, TOP] / means["accuracy"][learned, TOP]

    yield (
        "typical_not_forgotten",
        "The top tenth, once learned, is hardly ever forgotten.",
        "of the examples of chunk 0 that are correct when it reaches 95 %, the share ever wrong later; holds up to 5 %",
        "share",
        forgotten,
        lambda value: value <= 0.05,
    )
