"""Whether the pairs in contention of a recording take turns, tested step by step as the study explains it."""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from train_dynamics.dynamics import cones, contention, oscillation
from train_dynamics.dynamics.alignment import alignment_of
from train_dynamics.dynamics.contention import Pair
from train_dynamics.dynamics.oscillation import Course
from train_dynamics.recording.reader import Recording
from train_dynamics.study.cones import read_factors
from train_dynamics.study.contention import FEWEST_CHANGES, SIGNIFICANT, WINDOW, Contention

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NUM_CONTROLS = 199
MOST_LAG = 50
MOST_WORK = 2e12  # sums of two numbers: some minutes
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of the explanation, or of an alternative to it, as one number per pair.

    Attributes:
        name: Name of its column.
        sentence: What is said to happen.
        measured: How it is measured.
        statistic: Function that computes it.
        bar: The value that the number must exceed for the sentence to be true of a pair.
        explained: Whether it is a step of the study's explanation.
    """

    name: str
    sentence: str
    measured: str
    statistic: Callable[[Course], Float[np.ndarray, "*g"]]
    bar: float
    explained: bool = True


HALF = 0.5
STEPS = (
    Step(
        "carried",
        "The group with the larger gradients carries the mean gradient.",
        "share of records at which the group leads that adds more to the mean gradient along their axis",
        oscillation.carried,
        HALF,
    ),
    Step(
        "leader_falls",
        "The loss of the group that leads falls.",
        "share of records after which it does",
        oscillation.leader_falls,
        HALF,
    ),
    Step(
        "leader_gains",
        "The accuracy of the group that leads rises.",
        "share of records after which it does, of those where it changes",
        oscillation.leader_gains,
        HALF,
    ),
    Step(
        "other_rises",
        "The loss of the other rises.",
        "share of records after which it does",
        oscillation.other_rises,
        HALF,
    ),
    Step(
        "other_loses",
        "The accuracy of the other falls.",
        "share of records after which it does, of those where it changes",
        oscillation.other_loses,
        HALF,
    ),
    Step(
        "other_grows",
        "The gradients of the other grow.",
        "share of records after which what it adds to the mean gradient is longer",
        oscillation.other_grows,
        HALF,
    ),
    Step(
        "lead_changes",
        "The lead changes, there and back.",
        "number of changes",
        oscillation.lead_changes,
        1.0,
    ),
    Step(
        "regularity",
        "They take turns regularly.",
        "highest peak of the autocorrelation of the lead after this first falls below 0",
        oscillation.regularity,
        0.2,
    ),
    Step(
        "follows",
        "The mean gradient turns to the group whose gradients grow.",
        "correlation of what the two groups add to the mean gradient along their axis with the lead",
        oscillation.follows,
        HALF,
        False,
    ),
    Step(
        "step_follows_lead",
        "The weights move to the side of the group that leads.",
        "correlation of the lead with how far the weights move along the axis until the next record",
        oscillation.step_follows_lead,
        HALF,
        False,
    ),
    Step(
        "step_goes_on",
        "The weights go on as they went before.",
        "correlation of how far they move along the axis until the next record with how far they moved before",
        oscillation.step_goes_on,
        HALF,
        False,
    ),
    Step(
        "step_decides",
        "The group to whose side the weights move gains on the other.",
        "correlation of how far they move with how far its loss falls against that of the other",
        oscillation.step_decides,
        HALF,
        False,
    ),
)


class _Followed:
    """A pair and its controls while they are followed. The pair itself comes first."""

    def __init__(self, pair: Pair, first: int, last: int) -> None:
        self.pair, self.first, self.last = pair, first, last
        self.groups: list[Int[np.ndarray, "g m"]] = [pair.left[None], pair.right[None]]
        self.courses: list[Float[np.ndarray, "9 t g"]] = []
        self.reason = ""

    def match(self, recording: Recording, factors: tuple[np.ndarray, ...]) -> None:
        """Draw the controls, as the test of contention does."""
        pair = self.pair
        bin_of = contention.norm_bins(recording.classes[0], alignment_of(*factors).norm)
        rng = np.random.default_rng((int(recording.seeds[pair.seed]), pair.iteration, pair.left[0], pair.right[0]))
        found = contention.matched_groups(pair.left, pair.right, bin_of, cones.directions(*factors), NUM_CONTROLS, rng)
        if found is None:
            self.reason = "too few other examples of the same labels and norms to compare with"
            return
        self.groups = [
            np.concatenate([own, drawn.groups[drawn.draws]]) for own, drawn in zip(self.groups, found, strict=True)
        ]

    @property
    def course(self) -> Course:
        lead, own, step, *sides = np.concatenate(self.courses, axis=1).astype(np.float64)
        return Course(lead, own, step, *np.stack(sides).reshape(3, 2, *lead.shape))


def _membership(followed: Sequence[_Followed], count: int) -> "csr_array":
    """Make the matrix that adds up over groups: first all left ones, then all right ones."""
    from scipy.sparse import csr_array  # as in contention, for nothing where there is no pair

    groups = [rows for side in (0, 1) for of in followed for rows in of.groups[side]]
    ends = np.cumsum([0, *map(len, groups)])
    return csr_array((np.ones(ends[-1], np.float32), np.concatenate(groups), ends), shape=(len(groups), count))


def _courses(
    members: "csr_array",
    gradients: tuple[Float[np.ndarray, "n _"], ...],
    step: Float[np.ndarray, " k"],
    loss: Float[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"] | Float[np.ndarray, " n"],
) -> Float[np.ndarray, "9 g"]:
    """Compute one record of the courses of all pairs of a seed, in the order of `Course`."""
    count = len(loss)
    if len(gradients) == 2:
        gradients = ((gradients[0][:, :, None] * gradients[1][:, None, :]).reshape(count, -1),)
    values = np.concatenate([gradients[0], loss[:, None], correct[:, None]], axis=1, dtype=np.float32)
    sums = (members @ values).reshape(2, members.shape[0] // 2, -1)
    means = sums[..., -2:] / np.diff(members.indptr).reshape(2, -1, 1)
    left, right = parts = sums[..., :-2] / np.float32(count)
    norm, product = np.linalg.norm(parts, axis=2), (left * right).sum(axis=1)
    to_others = parts @ np.stack(np.broadcast_arrays(values[:, :-2].mean(axis=0), step), axis=1)
    lead, moved = (oscillation.along_axis(norm, product, to_others[..., k]) for k in (0, 1))
    own = oscillation.along_axis(norm, product, norm**2 + product)
    return np.stack([lead, own, moved, *norm, *means[..., 0], *means[..., 1]])


def _weights(recording: Recording, layer: str, records: range) -> Float[np.ndarray, "t s k"] | None:
    """Read the weights whose gradients are compared. None for sketches, which are in another space."""
    kept = recording.kept(layer)
    path = kept.layer.name.replace("/", ".").split(".")
    if kept.layout == "sketch":
        return None
    trees = (recording.parameters(recording.iterations[record]) for record in records)
    found = np.stack([functools.reduce(dict.__getitem__, path, tree) for tree in trees])
    return found.reshape(*found.shape[:2], -1)


def _follow(recording: Recording, alive: Sequence[_Followed], records: range, threads: ThreadPoolExecutor) -> None:
    """Follow pairs through the same consecutive records. Each record is read once."""
    by_network: dict[tuple[str, int], list[_Followed]] = {}
    for of in alive:
        by_network.setdefault((of.pair.layer, of.pair.seed), []).append(of)
    count = len(recording.labels)
    members = {key: _membership(followed, count) for key, followed in by_network.items()}
    courses = {key: np.empty((9, len(records), of.shape[0] // 2), np.float32) for key, of in members.items()}
    known = range(records.start, min(records.stop + 1, recording.num_records))
    steps = {}
    for layer in dict.fromkeys(layer for layer, _ in by_network):
        weights = _weights(recording, layer, known)
        if weights is not None:
            steps[layer] = -np.diff(weights, axis=0)

    def at(record: int) -> None:
        t, place = int(recording.iterations[record]), record - records.start
        loss, correct = recording.loss(t), recording.correct(t)
        factors = {layer: read_factors(recording, layer, t) for layer in dict.fromkeys(key[0] for key in by_network)}
        for (layer, s), matrix in members.items():
            moves = steps.get(layer, ())
            step = moves[place][s] if place < len(moves) else np.full(1, np.nan)
            courses[layer, s][:, place] = _courses(matrix, factors[layer][s], step, loss[s], correct[s])

    list(threads.map(at, records))
    for key, followed in by_network.items():
        ends = np.cumsum([0, *(len(of.groups[0]) for of in followed)])
        for of, (start, stop) in zip(followed, itertools.pairwise(ends), strict=True):
            of.courses.append(courses[key][..., start:stop].copy())


TIMES = ("period", "memory", "half_turn", "loss_lag", "accuracy_lag")
AT_TIMES = ("at_half_turn", "loss_at_lag", "accuracy_at_lag")
TIMES += AT_TIMES  # correlations there


@dataclasses.dataclass(frozen=True, eq=False)
class Oscillation:
    """What happened to all pairs in contention after their discovery.

    Attributes:
        pairs: The pairs, in the order of `Contention.fights`.
        records: For each pair, the records through which it was followed, from its discovery on.
        courses: The course of each pair, without controls. None if a pair was not followed.
        value: The value of each of `STEPS`. NaN where there is none.
        matched: Median of the value over matched pairs. NaN where there are none.
        p: Share of the matched pairs, counting the pair itself, whose value is at least as high.
        corrected: The same, corrected for the number of pairs: the false discovery rate at which the step survives.
        times: The values of `TIMES`, in records: the period of the lead; how long it is remembered; half its period; by
            how many records the loss and the accuracy of the left group, minus those of the right one, are later than
            the lead; and the lead's correlation with itself after half a period, and with these two at their lags.
        matched_times: Median of these over matched pairs.
        reasons: Why a pair was not followed or not compared. Empty if it was.
    """

    pairs: Sequence[Pair]
    records: Sequence[range]
    courses: Sequence[Course | None]
    value: Float[np.ndarray, "pair step"]
    matched: Float[np.ndarray, "pair step"]
    p: Float[np.ndarray, "pair step"]
    corrected: Float[np.ndarray, "pair step"]
    times: Float[np.ndarray, "pair time"]
    matched_times: Float[np.ndarray, "pair time"]
    reasons: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """In how many pairs a step holds.

    Attributes:
        name: Name of the step.
        sentence: What is said to happen.
        measured: How that is measured.
        bar: The value to exceed for the sentence to be true.
        explained: Whether it is a step of the study's explanation.
        pairs: Number of pairs that have a value.
        true: Number of these that are above the bar.
        compared: Number of pairs that could be compared with matched pairs.
        holds: Number of those that are above the bar, and significantly higher than matched pairs.
        share: `holds` divided by `compared`. None if none was compared.
        median: Median of the value over pairs.
        matched: Median over pairs of the median over their matched pairs.
        difference: Mean over pairs of the value minus the median over the pair's matched pairs.
        low: Lower end of a 95 % interval of that difference, from a bootstrap over seeds. None for a single seed.
        high: Upper end.
    """

    name: str
    sentence: str
    measured: str
    bar: float
    explained: bool
    pairs: int
    true: int
    compared: int
    holds: int
    share: float | None
    median: float | None
    matched: float | None
    difference: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in a form that JSON can store."""
        return dataclasses.asdict(self)


def follow_oscillation(recording: Recording, found: Contention) -> Oscillation:
    """Follow all pairs in contention through the records after their discovery, and measure every step.

    Each of these records is read only once, however many pairs are followed through it. A pair is compared with
    `NUM_CONTROLS` matched pairs, drawn as for the test of contention and treated like the pair: their lead is along
    their own axes. `SIGNIFICANT` is the false discovery rate of each step over all pairs.
    """
    pairs = [fight.pair for fight in found.fights]
    everyone = _followed(recording, pairs)
    value, matched, p = (np.full((len(pairs), len(STEPS)), np.nan) for _ in range(3))
    times, matched_times = (np.full((len(pairs), len(TIMES)), np.nan) for _ in range(2))
    courses: list[Course | None] = [None] * len(pairs)
    followed = [of for of in everyone if not of.reason]
    ends = sorted({record for of in followed for record in (of.first, of.last + 1)})
    with threadpool_limits(1), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        for start, stop in itertools.pairwise(ends):
            alive = [of for of in followed if of.first <= start <= of.last]
            _match(recording, [of for of in alive if of.first == start])
            if alive:
                _follow(recording, alive, range(start, stop), threads)
            for k, of in enumerate(everyone):
                if of.courses and of.last + 1 == stop:
                    course = of.course
                    courses[k] = Course(*(curve[..., 0].copy() for curve in course))  # a view would keep all
                    value[k], matched[k], p[k] = _compare(course)
                    times[k], matched_times[k] = _times(course)
                    of.courses.clear()
    spans, reasons = [range(of.first, of.last + 1) for of in everyone], [of.reason for of in everyone]
    return Oscillation(pairs, spans, courses, value, matched, p, _corrected(p), times, matched_times, reasons)


def _followed(recording: Recording, pairs: Sequence[Pair]) -> list[_Followed]:
    """Tell where each pair is followed, the strongest first, or why it is not."""
    everyone, work = [], 0
    for pair in pairs:
        first = int(np.searchsorted(recording.iterations, pair.iteration))
        of = _Followed(pair, first, min(first + WINDOW, recording.num_records - 1))
        everyone.append(of)
        if of.last - first <= FEWEST_CHANGES:
            of.reason = f"{FEWEST_CHANGES} records or fewer after it was found"
            continue
        kept = recording.kept(pair.layer)
        size = recording.config.sketch_size if kept.layout == "sketch" else math.prod(kept.layer.shape)
        work += (1 + NUM_CONTROLS) * (len(pair.left) + len(pair.right)) * size * (of.last - first)
        if work > MOST_WORK:
            of.reason = "others are stronger, and to follow them takes long enough"
    return everyone


def _match(recording: Recording, begun: Sequence[_Followed]) -> None:
    for layer in dict.fromkeys(of.pair.layer for of in begun):
        factors = read_factors(recording, layer, begun[0].pair.iteration)
        for of in begun:
            if of.pair.layer == layer:
                of.match(recording, factors[of.pair.seed])


def _compare(course: Course) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute every step of a pair, the median of its controls, and p."""
    found = np.stack([np.atleast_1d(step.statistic(course)) for step in STEPS])
    value, controls = found[:, 0], found[:, 1:]
    if not controls.shape[1]:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    p = [
        contention.p_value(-one, -others) if one == one else np.nan for one, others in zip(value, controls, strict=True)
    ]
    return value, _median(controls), np.array(p)


def _median(values: Float[np.ndarray, "k g"]) -> Float[np.ndarray, " k"]:
    """Compute the median of each row, ignoring NaN. NaN for a row without any number."""
    return np.array([np.median(row[~np.isnan(row)]) if not np.isnan(row).all() else np.nan for row in values])


def _times(course: Course) -> tuple[np.ndarray, np.ndarray]:
    _, period = oscillation.rhythm(course.lead)
    most = min(MOST_LAG, len(course.lead) // 4)
    memory, half_turn, swing = oscillation.memory(course.lead, most)
    loss_lag, at_loss = oscillation.best_lag(course.lead, course.loss[0] - course.loss[1], most)
    accuracy_lag, at_accuracy = oscillation.best_lag(course.lead, course.accuracy[0] - course.accuracy[1], most)
    found = np.stack([period, memory, half_turn, loss_lag, accuracy_lag, swing, at_loss, at_accuracy])
    return found[:, 0], _median(found[:, 1:])


def _corrected(p: Float[np.ndarray, "pair step"]) -> Float[np.ndarray, "pair step"]:
    """Correct the p-values of each step for the number of pairs, as contention does."""
    from scipy.stats import false_discovery_control  # a second to import, for nothing where there is no pair

    corrected = np.full_like(p, np.nan)
    for k, of_step in enumerate(p.T):
        some = ~np.isnan(of_step)
        if some.any():
            corrected[some, k] = false_discovery_control(of_step[some], method="bh")
    return corrected


def holding(found: Oscillation) -> Bool[np.ndarray, "pair step"]:
    """Tell which steps hold for each pair: those that are true of it, and more so than of matched pairs."""
    return (found.value > [step.bar for step in STEPS]) & (found.corrected <= SIGNIFICANT)


def verdicts(found: Oscillation, num_seeds: int) -> list[Verdict]:
    """Count in how many pairs each step holds, and how much more so than in matched pairs.

    A difference of a few percent may be certain for all pairs together, and for none of them alone. Intervals resample
    seeds with replacement, because the pairs of one seed depend on each other.
    """
    seeds = np.array([pair.seed for pair in found.pairs], int)
    draws = np.random.default_rng(0).multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), RESAMPLES)
    verdicts = []
    for k, step in enumerate(STEPS):
        true = found.value[:, k] > step.bar
        difference = found.value[:, k] - found.matched[:, k]
        compared = ~np.isnan(difference)
        holds = int(holding(found)[:, k].sum())
        sums = np.bincount(seeds[compared], difference[compared], num_seeds)
        counts = draws @ np.bincount(seeds[compared], minlength=num_seeds)
        resampled = (draws @ sums)[counts > 0] / counts[counts > 0]
        ends = np.percentile(resampled, [2.5, 97.5]).tolist() if num_seeds > 1 and len(resampled) else (None, None)
        verdicts.append(
            Verdict(
                *(step.name, step.sentence, step.measured, step.bar, step.explained),
                int(np.count_nonzero(~np.isnan(found.value[:, k]))),
                int(true.sum()),
                int(compared.sum()),
                holds,
                float(holds / compared.sum()) if compared.any() else None,
                *(_number(_median(values[:, k][None])[0]) for values in (found.value, found.matched)),
                float(difference[compared].mean()) if compared.any() else None,
                *ends,
            )
        )
    return verdicts


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def time_quartiles(found: Oscillation) -> dict[str, dict[str, int | float | None]]:
    """Summarise each of `TIMES`: its quartiles over pairs, and the median over pairs of the matched pairs' median."""
    rows = {}
    for k, name in enumerate(TIMES):
        values = found.times[:, k][~np.isnan(found.times[:, k])]
        quartiles = np.quantile(values, (0.25, 0.5, 0.75)).tolist() if len(values) else (None, None, None)
        matched = _number(_median(found.matched_times[:, k][None])[0])
        names = ("lower_quartile", "median", "upper_quartile", "matched_median")
        rows[name] = {"pairs": len(values), **dict(zip(names, (*quartiles, matched), strict=True))}
    return rows


def most_typical(found: Oscillation) -> int | None:
    """Choose the pair to show: the strongest of those in which most steps hold. None if there is no pair."""
    explained = [k for k, step in enumerate(STEPS) if step.explained]
    count = np.where([course is None for course in found.courses], -1, holding(found)[:, explained].sum(axis=1))
    return int(count.argmax()) if len(count) and count.max() >= 0 else None
