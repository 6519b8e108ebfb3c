"""Pairs of groups in contention, in all seeds and layers of a recording, and which of them really fight."""

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from train_dynamics.config import InputError
from train_dynamics.dynamics import cones, contention
from train_dynamics.dynamics.alignment import alignment_of
from train_dynamics.dynamics.contention import Pair
from train_dynamics.dynamics.tiles import ROUNDING, Tiles, apart, opposed_blocks, tiles
from train_dynamics.recording.reader import Recording
from train_dynamics.study.cones import COVERS, read_factors
from train_dynamics.study.motion import Frame, frames, nearest

NUM_CONTROLS = 999
WINDOW = 300
FEWEST_CHANGES = 30
BEFORE = 50
SIGNIFICANT = 0.05
MEMORY_BYTES = 1024**3
FEW_EXAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class ContentionOptions:
    """Which pairs to look for.

    Attributes:
        cosine: Smallest cosine between the members of a cone. Its opponents have a cosine below minus this.
        cover: `clique` or `star`.
        opposed_to: What opponents must oppose: the `centre` of a cone, or every one of its `members`.
        smallest: Fewest examples on either side.
        checkpoints: Number of iterations, per seed, at which to look for them.
        examples: Number of examples, drawn at random, among which to look. None means all.
    """

    cosine: float = 0.95
    cover: str = "clique"
    opposed_to: str = "centre"
    smallest: int = 10
    checkpoints: int = 16
    examples: int | None = None

    def __post_init__(self) -> None:
        if self.opposed_to not in ("centre", "members"):
            raise InputError.flag("opposed_to", self.opposed_to, "must be centre or members")
        if self.smallest < 2:
            raise InputError.flag("smallest_group", self.smallest, "must be at least 2")
        if self.checkpoints < 1:
            raise InputError.flag("contention_checkpoints", self.checkpoints, "must be 1 or more")
        if self.examples is not None and self.examples < 2 * self.smallest:
            raise InputError.flag(
                "contention_examples",
                self.examples,
                f"must be at least {2 * self.smallest}, twice --smallest_group",
            )


@dataclasses.dataclass(frozen=True)
class Fight:
    """What happens to a pair after it was found.

    Attributes:
        pair: The pair.
        accuracy_correlation: Correlation of the two groups' changes of accuracy between iterations.
        loss_correlation: Correlation of the two groups' changes of mean loss: the antiphase that is tested.
        matched_correlation: Median of `loss_correlation` over matched random pairs.
        p: Share of matched random pairs that are at least as much in antiphase. None if it cannot be tested.
        corrected: The same, corrected for the number of pairs tested: the false discovery rate at which the pair
            survives.
        reason: Why it cannot be tested. Empty if it can.
    """

    pair: Pair
    accuracy_correlation: float | None = None
    loss_correlation: float | None = None
    matched_correlation: float | None = None
    p: float | None = None
    corrected: float | None = None
    reason: str = ""

    @property
    def survives(self) -> bool:
        """Whether the two are more in antiphase than matched pairs."""
        return self.corrected is not None and self.corrected <= SIGNIFICANT


@dataclasses.dataclass(frozen=True, eq=False)
class Contention:
    """All pairs of a recording.

    Attributes:
        options: The options that were used.
        checkpoints: The examined iterations.
        fights: The pairs, the strongest first.
        label_opposition: For each layer and every two labels, the share of pairs of their examples whose gradients are
            opposed, averaged over seeds and examined iterations.
    """

    options: ContentionOptions
    checkpoints: Int[np.ndarray, " checkpoint"]
    fights: Sequence[Fight]
    label_opposition: dict[str, Float[np.ndarray, "c c"]]


def find_contention(recording: Recording, options: ContentionOptions) -> Contention:
    """Look for pairs at some iterations of every seed and layer, join them, follow them, and test them.

    A pair is followed through the records after its discovery. It is tested against random pairs that match it in size,
    labels, gradient norm and similarity of their members, because examples with similar activations and different
    labels oppose each other by construction.
    """
    checkpoints = spread_checkpoints(recording.iterations, options.checkpoints)
    layers = recording.gradient_layers
    seen: dict[str, list[list[Pair]]] = {layer: [] for layer in layers}
    num_classes = len(recording.classes[1])
    opposition = {layer: np.zeros((num_classes, num_classes)) for layer in layers}
    among = drawn(len(recording.labels), options.examples)

    def found_at(t: int) -> dict[str, list[tuple[list[Pair], np.ndarray]]]:
        return {
            layer: [
                find_pairs(recording, options, s, layer, t, _of(factors, among), among)
                for s, factors in enumerate(read_factors(recording, layer, t))
            ]
            for layer in layers
        }

    at_once = _at_once(len(among))
    # Our threads share the work already; BLAS threads on products this small only get in their way.
    with threadpool_limits(1), ThreadPoolExecutor(at_once) as threads:
        for found in threads.map(found_at, checkpoints.tolist()):
            for layer in layers:
                seen[layer].append([pair for pairs, _ in found[layer] for pair in pairs])
                opposition[layer] += sum(share for _, share in found[layer]) / (len(checkpoints) * len(recording.seeds))
        pairs = [pair for layer in layers for pair in contention.merge(seen[layer])]
        fights = [
            fight
            for t in checkpoints
            for fight in _follow(recording, [pair for pair in pairs if pair.iteration == t], threads)
        ]
    fights.sort(key=lambda fight: -fight.pair.strength)
    return Contention(options, checkpoints, _corrected(fights), opposition)


def drawn(num_examples: int, count: int | None) -> Int[np.ndarray, " m"]:
    """Draw examples at random, always the same ones. Returns all if there are no more."""
    if count is None or count >= num_examples:
        return np.arange(num_examples)
    return np.sort(np.random.default_rng(0).choice(num_examples, count, replace=False))


def longest_search(recording: Recording, options: ContentionOptions) -> float:
    """Estimate how many seconds the search for pairs takes at most, from a search among a few examples.

    The estimate compares all pairs of examples, as if no bound excluded any. It does not include following and testing.
    """
    among = drawn(len(recording.labels), options.examples)
    few = drawn(len(recording.labels), min(len(among), FEW_EXAMPLES))
    checkpoints = spread_checkpoints(recording.iterations, options.checkpoints)
    t, seconds = int(checkpoints[len(checkpoints) // 2]), 0.0
    for layer in recording.gradient_layers:
        factors = _of(read_factors(recording, layer, t)[0], few)
        began = time.perf_counter()
        with threadpool_limits(1):
            find_pairs(recording, options, 0, layer, t, factors, few)
        seconds += time.perf_counter() - began
    networks = len(recording.seeds) * len(checkpoints)
    return seconds * (len(among) / len(few)) ** 2 * networks / _at_once(len(among))


def _at_once(num_examples: int) -> int:
    return max(1, min(4, os.cpu_count() or 1, MEMORY_BYTES // max(num_examples**2 // 2, 1)))


def _of(factors: tuple[np.ndarray, ...], among: Int[np.ndarray, " m"]) -> tuple[np.ndarray, ...]:
    return factors if len(among) == len(factors[0]) else tuple(part[among] for part in factors)


def spread_checkpoints(iterations: Int[np.ndarray, " t"], count: int) -> Int[np.ndarray, " checkpoint"]:
    """Choose recorded iterations evenly spread over the run, but not at its ends, so that pairs can be followed.

    Example:
        >>> spread_checkpoints(np.arange(1001), 4)
        array([200, 400, 600, 800])
    """
    return nearest(iterations, np.linspace(0, iterations[-1], count + 2)[1:-1].round().astype(int))


def window(recording: Recording, fight: Fight) -> tuple[list[Frame], Float[np.ndarray, "t n"]]:
    """Read the frames around a pair's discovery, in its layer, and all examples' losses in its seed, in nats."""
    pair = fight.pair
    seed = int(recording.seeds[pair.seed])
    record = int(np.searchsorted(recording.iterations, pair.iteration))
    times = recording.iterations[max(0, record - BEFORE) : record + WINDOW + 1]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        shown = list(threads.map(lambda t: next(frames(recording, seed, [t], [pair.layer])), times))
        return shown, np.stack(list(threads.map(lambda t: recording.loss(t)[pair.seed], times)))


def find_pairs(
    recording: Recording,
    options: ContentionOptions,
    s: int,
    layer: str,
    t: int,
    factors: tuple[np.ndarray, ...],
    among: Int[np.ndarray, " m"] | None = None,
) -> tuple[list[Pair], Float[np.ndarray, "c c"]]:
    """Find the pairs of one seed at one iteration, and how much its labels oppose each other.

    Args:
        recording: The recording.
        options: Which pairs to look for.
        s: Index of the seed.
        layer: The layer.
        t: The iteration.
        factors: What the gradients of the seed are made from, as `read_factors` returns it.
        among: Which examples the factors belong to, if not all.
    """
    directions = cones.directions(*factors)
    like = tiles(directions)
    bound = contention.least_to_member(options.cosine, options.cover, options.opposed_to) + ROUNDING
    labels, names = recording.classes
    among = np.arange(len(labels)) if among is None else among
    labels = labels[among]
    share, suspected = opposition(directions, like, labels, len(names), options.cosine, bound)
    suspects = np.flatnonzero(suspected)
    if len(suspects) < options.smallest:
        return [], share
    sets = apart(like, options.cosine)
    cone = cones.cover_apart(directions, sets, options.cosine, COVERS[options.cover], options.smallest)
    sizes = np.bincount(cone[cone >= 0])
    others = tuple(factor[suspects] for factor in directions)
    pairs = []
    suspect_cones = np.bincount(cone[suspects] + 1, minlength=len(sizes) + 1)[1:] > 0  # others have no opponents
    for k in np.flatnonzero((sizes >= options.smallest) & suspect_cones):
        left = np.flatnonzero(cone == k)
        right = suspects[contention.opponents(directions, left, options.cosine, options.opposed_to, others)]
        if len(right) < options.smallest:
            continue
        one, other = (contention.group_gradient(factors, group) for group in (left, right))
        lengths = np.linalg.norm(one), np.linalg.norm(other)
        pairs.append(
            Pair(
                seed=s,
                layer=layer,
                iteration=t,
                left=among[left],
                right=among[right],
                cosine=float(one @ other / (lengths[0] * lengths[1])),
                strength=float(min(lengths[0] * len(left), lengths[1] * len(right)) / len(labels)),
                last=t,
            )
        )
    return pairs, share


def opposition(
    directions: cones.Directions,
    like: Tiles,
    labels: Int[np.ndarray, " n"],
    num_classes: int,
    cosine: float,
    bound: float,
) -> tuple[Float[np.ndarray, "c c"], Bool[np.ndarray, " n"]]:
    """Find which examples are opposed to which.

    Args:
        directions: Directions of all gradients.
        like: The tiles of these directions.
        labels: Class of each example.
        num_classes: Number of classes.
        cosine: Two examples are opposed if their cosine is below minus this.
        bound: Cosine below which an example counts as opposed to any other; at least minus `cosine`.

    Returns:
        For every two labels, the share of pairs of their examples that are opposed (0 if there are no pairs); and for
        each example, whether its cosine to any other is below `bound`.
    """
    opposed = np.zeros((num_classes, num_classes), int)
    suspected = np.zeros(len(labels), bool)
    for rows, columns, block in opposed_blocks(directions, like, bound):
        below = block < bound
        suspected[rows] |= below.any(axis=1)
        suspected[columns] |= below.any(axis=0)
        row, column = np.nonzero(block < -cosine)
        np.add.at(opposed, (labels[rows[row]], labels[columns[column]]), 1)
        if rows is not columns:
            np.add.at(opposed, (labels[columns[column]], labels[rows[row]]), 1)
    count = np.bincount(labels, minlength=num_classes)
    pairs = np.outer(count, count) - np.diag(count)
    return np.divide(opposed, pairs, out=np.zeros(pairs.shape), where=pairs > 0), suspected


def _follow(recording: Recording, pairs: Sequence[Pair], threads: ThreadPoolExecutor) -> list[Fight]:
    """Follow and test pairs that were found at the same iteration."""
    if not pairs:
        return []
    t = pairs[0].iteration
    after = np.searchsorted(recording.iterations, t) + 1
    if min(WINDOW, recording.num_records - after) <= FEWEST_CHANGES:
        return [Fight(pair, reason=f"{FEWEST_CHANGES} records or fewer after it was found") for pair in pairs]
    blocks = list(_read(recording, recording.iterations[after : after + WINDOW]))

    def of_seed(layer: str, s: int, factors: tuple[np.ndarray, ...]) -> list[Fight]:
        norm = alignment_of(*factors).norm
        directions = cones.directions(*factors)
        bin_of = contention.norm_bins(recording.classes[0], norm)
        loss, correct = (np.concatenate([part[s] for part in parts]) for parts in zip(*blocks, strict=True))
        loss = loss.T.copy()
        here = [pair for pair in pairs if (pair.layer, pair.seed) == (layer, s)]
        return [_test(recording, pair, loss, correct, bin_of, directions) for pair in here]

    tasks = [
        threads.submit(of_seed, layer, s, factors)
        for layer in dict.fromkeys(pair.layer for pair in pairs)
        for s, factors in enumerate(read_factors(recording, layer, t))
    ]
    return [fight for task in tasks for fight in task.result()]


def _read(
    recording: Recording, iterations: Int[np.ndarray, " t"]
) -> Iterator[tuple[Float[np.ndarray, "s _ n"], np.ndarray]]:
    """Read the losses at consecutive records, and which examples are correct, [s, _, n], one block after another."""
    for block in recording.blocks():
        rows = np.flatnonzero(np.isin(block.iterations, iterations))
        if len(rows):
            span = slice(rows[0], rows[-1] + 1)
            loss = block.read("loss")[:, span]
            if recording.contents.classes:
                yield loss, block.read("prediction")[:, span] == recording.labels
            else:
                yield loss, np.full_like(loss, np.nan)


def _test(
    recording: Recording,
    pair: Pair,
    loss: Float[np.ndarray, "n t"],
    correct: Bool[np.ndarray, "t n"] | Float[np.ndarray, "t n"],
    bin_of: Int[np.ndarray, " n"],
    directions: cones.Directions,
) -> Fight:
    """Compute how the groups of a pair change together after its discovery, and compare that with its controls."""
    groups = pair.left, pair.right
    accuracy, observed = (
        float(contention.antiphase(*(values[group].mean(axis=0, dtype=np.float64) for group in groups)))
        for values in (correct.T, loss)
    )
    known = Fight(pair, *(None if np.isnan(value) else value for value in (accuracy, observed)))
    if known.loss_correlation is None:
        return dataclasses.replace(known, reason="the loss of a group does not change")
    rng = np.random.default_rng(
        (int(recording.seeds[pair.seed]), pair.iteration, int(pair.left[0]), int(pair.right[0]))
    )
    matched = contention.matched_groups(*groups, bin_of, directions, NUM_CONTROLS, rng)
    if matched is None:
        return dataclasses.replace(known, reason="too few other examples of the same labels and norms to compare with")
    controls = contention.antiphase(*(np.take(_means(loss, drawn.groups), drawn.draws, axis=1) for drawn in matched))
    p = contention.p_value(observed, controls)
    return dataclasses.replace(known, matched_correlation=float(np.nanmedian(controls)), p=p)


def _means(values: Float[np.ndarray, "n t"], groups: Int[np.ndarray, "r m"]) -> Float[np.ndarray, "t r"]:
    """Average over each group, as a matrix product, which does not copy the members of all groups."""
    here = np.zeros(len(values), bool)
    here[groups] = True
    used = np.flatnonzero(here)
    place = np.cumsum(here) - 1
    weights = np.zeros((len(used), len(groups)), np.float32)
    np.put_along_axis(weights, place[groups].T, np.float32(1 / groups.shape[1]), axis=0)
    return values[used].T @ weights


def _corrected(fights: Sequence[Fight]) -> list[Fight]:
    """Correct the p-values of all tested pairs for their number.

    It uses the false discovery rate of Benjamini and Hochberg, "Controlling the False Discovery Rate" (1995). There are
    hundreds of pairs, and a correction that lets not a single one pass by chance would need thousands of controls for
    each. The method is valid if tests are independent or depend positively, like those of overlapping pairs: Benjamini
    and Yekutieli, "The Control of the False Discovery Rate in Multiple Testing under Dependency" (2001).
    """
    tested = [fight.p for fight in fights if fight.p is not None]
    if not tested:
        return list(fights)
    from scipy.stats import false_discovery_control  # a second to import, for nothing where there is no pair

    corrected = iter(false_discovery_control(tested, method="bh"))
    return [f if f.p is None else dataclasses.replace(f, corrected=float(next(corrected))) for f in fights]
