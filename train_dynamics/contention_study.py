"""Pairs of groups in contention, in all seeds and layers of a recording, and which of them really fight."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int

from train_dynamics.cone_study import COVERS, ROUNDING, read_factors
from train_dynamics.config import InputError
from train_dynamics.dynamics import cones, contention
from train_dynamics.dynamics.alignment import alignment, factored_alignment
from train_dynamics.dynamics.contention import Pair
from train_dynamics.motion import Frame, frames
from train_dynamics.recording import Recording

NUM_TESTED = 20
NUM_CONTROLS = 999
WINDOW = 300
FEWEST_CHANGES = 30
BEFORE = 50
SIGNIFICANT = 0.05


@dataclasses.dataclass(frozen=True)
class ContentionOptions:
    """Which pairs to look for.

    Attributes:
        cosine: How near the members of a cone are to each other, and how far beyond a right angle its opponents.
        cover: `clique` or `star`.
        opposed_to: Opponents oppose the `centre` of a cone, or every one of its `members`.
        smallest: Fewest examples on either side.
        looks: At how many iterations to look, closer together early in the run, where more changes.
    """

    cosine: float = 0.95
    cover: str = "clique"
    opposed_to: str = "centre"
    smallest: int = 10
    looks: int = 20

    def __post_init__(self) -> None:
        if self.opposed_to not in ("centre", "members"):
            raise InputError.flag("opposed_to", self.opposed_to, "must be centre or members")
        if self.smallest < 2:
            raise InputError.flag("smallest_group", self.smallest, "must be at least 2")
        if self.looks < 0:
            raise InputError.flag("contention_looks", self.looks, "must be 0, for none, or more")


@dataclasses.dataclass(frozen=True)
class Fight:
    """What becomes of a pair after it was found.

    Attributes:
        pair: The pair.
        accuracy_correlation: Of the changes of the two groups' accuracy from one iteration to the next.
        loss_correlation: The same of their mean loss: the antiphase that is tested.
        matched_correlation: The median of `loss_correlation` over matched random pairs.
        p: Share of matched random pairs that are as much in antiphase; None if not tested.
        corrected: The same, corrected for the number of pairs tested.
        reason: Why it was not tested, or empty.
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
        """Whether the two are more in antiphase than their labels and norms explain."""
        return self.corrected is not None and self.corrected < SIGNIFICANT


@dataclasses.dataclass(frozen=True, eq=False)
class Contention:
    """All pairs of a recording.

    Attributes:
        options: What was looked for.
        looks: The iterations looked at.
        fights: The pairs, the strongest first.
        label_opposition: For each layer, the share of the pairs of examples of two labels whose gradients are opposed,
            averaged over seeds and the iterations looked at.
    """

    options: ContentionOptions
    looks: Int[np.ndarray, " look"]
    fights: Sequence[Fight]
    label_opposition: dict[str, Float[np.ndarray, "c c"]]


def find_contention(recording: Recording, options: ContentionOptions) -> Contention:
    """Look for pairs at some iterations of every seed and layer, join them, and test the strongest.

    A pair is tested on the iterations after the one it was found at and against random pairs that match it in size,
    labels and gradient norm, because examples with like activations and different labels oppose each other by
    construction. Those tested are chosen by their strength when found, which knows nothing of what came after.
    """
    looks = look_at(recording.num_iterations, options.looks)
    layers = recording.config.layers
    seen: dict[str, list[list[Pair]]] = {layer: [] for layer in layers}
    num_classes = len(recording.class_names)
    opposition = {layer: np.zeros((num_classes, num_classes)) for layer in layers}

    def look(t: int) -> dict[str, list[tuple[list[Pair], np.ndarray]]]:
        return {
            layer: [
                _look_once(recording, options, s, layer, t, factors)
                for s, factors in enumerate(read_factors(recording, layer, t))
            ]
            for layer in layers
        }

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        for found in threads.map(look, looks.tolist()):
            for layer in layers:
                seen[layer].append([pair for pairs, _ in found[layer] for pair in pairs])
                opposition[layer] += sum(share for _, share in found[layer]) / (len(looks) * len(recording.seeds))
    pairs = [pair for layer in layers for pair in contention.merge(seen[layer])]
    pairs.sort(key=lambda pair: -pair.strength)
    chosen = [pair for layer in layers for pair in _to_test(recording, [p for p in pairs if p.layer == layer])]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        tested = list(threads.map(lambda pair: _test(recording, pair), chosen))
    corrected = iter(contention.holm(np.array([fight.p for fight in tested if fight.p is not None])))
    known = {id(f.pair): f if f.p is None else dataclasses.replace(f, corrected=float(next(corrected))) for f in tested}
    fights = [known.get(id(pair)) or Fight(pair, reason=_why_not(recording, pair)) for pair in pairs]
    return Contention(options, looks, fights, opposition)


def _to_test(recording: Recording, pairs: Sequence[Pair]) -> list[Pair]:
    """Choose the strongest pairs of a layer that were found early enough to be followed."""
    most = NUM_TESTED // len(recording.config.layers)
    return [pair for pair in pairs if _can_be_followed(recording, pair)][: max(most, 1)]


def _can_be_followed(recording: Recording, pair: Pair) -> bool:
    return recording.num_records - 1 - pair.iteration > FEWEST_CHANGES


def _why_not(recording: Recording, pair: Pair) -> str:
    if _can_be_followed(recording, pair):
        return "not among the strongest"
    return f"{FEWEST_CHANGES} iterations or fewer after it was found"


def look_at(num_iterations: int, looks: int) -> Int[np.ndarray, " look"]:
    """Choose iterations from the first update to the last, each a constant factor after the one before.

    Example:
        >>> look_at(1000, 4)
        array([   1,   10,  100, 1000])
    """
    if looks == 0:
        return np.zeros(0, int)
    return np.unique(np.geomspace(1, num_iterations, looks).round().astype(int))


def window(recording: Recording, fight: Fight) -> list[Frame]:
    """Read the frames around the discovery of a pair, in its layer."""
    pair = fight.pair
    seed = int(recording.seeds[pair.seed])
    times = range(max(0, pair.iteration - BEFORE), min(pair.iteration + WINDOW + 1, recording.num_records))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        return list(threads.map(lambda t: next(frames(recording, seed, [t], [pair.layer])), times))


def _look_once(
    recording: Recording, options: ContentionOptions, s: int, layer: str, t: int, factors: tuple[np.ndarray, ...]
) -> tuple[list[Pair], Float[np.ndarray, "c c"]]:
    """Find the pairs of one seed at one iteration, and how much its labels oppose each other."""
    directions = cones.directions(*factors)
    near, opposed, least = cones.near_and_opposed(directions, options.cosine)
    share = opposition_by_label(opposed, recording.labels, len(recording.class_names))
    bound = contention.least_to_member(options.cosine, options.cover, options.opposed_to)
    if np.count_nonzero(least < bound + ROUNDING) < options.smallest:
        return [], share
    cone = COVERS[options.cover](near, cones.nonzero(directions), smallest=options.smallest)
    sizes = np.bincount(cone[cone >= 0])
    pairs = []
    for k in np.flatnonzero(sizes >= options.smallest):
        left = np.flatnonzero(cone == k)
        right = np.flatnonzero(contention.opponents(directions, left, options.cosine, options.opposed_to))
        if len(right) < options.smallest:
            continue
        one, other = (contention.group_gradient(factors, group) for group in (left, right))
        lengths = np.linalg.norm(one), np.linalg.norm(other)
        pairs.append(
            Pair(
                seed=s,
                layer=layer,
                iteration=t,
                left=left,
                right=right,
                cosine=float(one @ other / (lengths[0] * lengths[1])),
                strength=float(min(lengths[0] * len(left), lengths[1] * len(right)) / len(recording.labels)),
                last=t,
            )
        )
    return pairs, share


def opposition_by_label(
    against: cones.Bits, labels: Int[np.ndarray, " n"], num_classes: int
) -> Float[np.ndarray, "c c"]:
    """Compute for every two labels what share of the pairs of their examples is opposed; 0 where there are none.

    Example:
        >>> opposition_by_label(np.packbits(np.array([[0, 1], [1, 0]], bool), axis=1), np.array([0, 1]), 2)
        array([[0., 1.],
               [1., 0.]])
    """
    count = np.bincount(labels, minlength=num_classes)
    pairs = np.outer(count, count) - np.diag(count)
    hot = np.eye(num_classes, dtype=np.float32)[labels]
    some = np.flatnonzero(against.any(axis=1))
    opposed = np.zeros((num_classes, num_classes))
    for start in range(0, len(some), 512):
        rows = some[start : start + 512]
        opposed += hot[rows].T @ (cones.unpack(against[rows], len(labels)) @ hot)
    return np.divide(opposed, pairs, out=np.zeros_like(opposed), where=pairs > 0)


def _test(recording: Recording, pair: Pair) -> Fight:
    """Follow a pair and its controls through the iterations after its discovery."""
    stop = min(pair.iteration + WINDOW + 1, recording.num_records)
    loss, correct = _follow(recording, pair.seed, pair.iteration, stop)
    groups = pair.left, pair.right
    accuracy = contention.antiphase(*(correct[:, group].mean(axis=1) for group in groups))
    observed = contention.antiphase(*(loss[:, group].mean(axis=1, dtype=np.float64) for group in groups))
    known = {
        "accuracy_correlation": None if np.isnan(accuracy) else float(accuracy),
        "loss_correlation": None if np.isnan(observed) else float(observed),
    }
    if np.isnan(observed):
        return Fight(pair, **known, reason="the loss of a group does not change")
    factors = read_factors(recording, pair.layer, pair.iteration)[pair.seed]
    norm = factored_alignment(*factors).norm if len(factors) == 2 else alignment(factors[0][:, None]).norm
    rng = np.random.default_rng((int(recording.seeds[pair.seed]), pair.iteration, int(pair.left[0])))
    matched = contention.matched_groups(*groups, recording.labels, norm, NUM_CONTROLS, rng)
    if matched is None:
        return Fight(pair, **known, reason="too few other examples of the same labels and norms to compare with")
    controls = contention.antiphase(*(loss @ _averages(group, loss.shape[1]) for group in matched))
    p = contention.p_value(float(observed), controls)
    return Fight(pair, **known, matched_correlation=float(np.nanmedian(controls)), p=p)


def _averages(groups: Int[np.ndarray, "r m"], count: int) -> Float[np.ndarray, "n r"]:
    """Make the matrix whose columns average over one group each."""
    weights = np.zeros((count, len(groups)), np.float32)
    np.put_along_axis(weights, groups.T, np.float32(1 / groups.shape[1]), axis=0)
    return weights


def _follow(
    recording: Recording, s: int, start: int, stop: int
) -> tuple[Float[np.ndarray, "t n"], Bool[np.ndarray, "t n"]]:
    """Read loss and correctness of one seed from the iteration after `start` up to `stop`."""
    loss, correct = [], []
    for block in recording.blocks():
        rows = slice(max(start + 1 - block.start, 0), max(stop - block.start, 0))
        if block.start < stop and block.stop > start + 1:
            loss.append(block.read("loss")[s, rows])
            correct.append(block.read("prediction")[s, rows] == recording.labels)
    return np.concatenate(loss), np.concatenate(correct)
