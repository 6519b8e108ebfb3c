"""Pairs of groups in contention, in all seeds and layers of a recording, and which of them really fight."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

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
MEMORY_BYTES = 1024**3


@dataclasses.dataclass(frozen=True)
class ContentionOptions:
    """Which pairs to look for.

    Attributes:
        cosine: How near the members of a cone are to each other, and how far beyond a right angle its opponents.
        cover: `clique` or `star`.
        opposed_to: Opponents oppose the `centre` of a cone, or every one of its `members`.
        smallest: Fewest examples on either side.
        looks: At how many iterations to look.
    """

    cosine: float = 0.95
    cover: str = "clique"
    opposed_to: str = "centre"
    smallest: int = 10
    looks: int = 16

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
        """Whether the two are more in antiphase than matched pairs."""
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
    """Look for pairs at some iterations of every seed and layer, join them, follow them, and test the strongest.

    A pair is followed on the iterations after the one it was found at. It is tested against random pairs that match it
    in size, labels and gradient norm and hang together as it does, because examples with like activations and different
    labels oppose each other by construction. Those tested are chosen by their strength when found, which knows nothing
    of what came after.
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

    at_once = max(1, min(4, os.cpu_count() or 1, MEMORY_BYTES // (len(recording.labels) ** 2 // 2)))
    # Our threads share the work already; BLAS threads on products this small only get in their way.
    with threadpool_limits(1), ThreadPoolExecutor(at_once) as threads:
        for found in threads.map(look, looks.tolist()):
            for layer in layers:
                seen[layer].append([pair for pairs, _ in found[layer] for pair in pairs])
                opposition[layer] += sum(share for _, share in found[layer]) / (len(looks) * len(recording.seeds))
        pairs = [pair for layer in layers for pair in contention.merge(seen[layer])]
        pairs.sort(key=lambda pair: -pair.strength)
        fights = _follow_all(recording, pairs)
        chosen = [k for layer in layers for k in _to_test(recording, fights, layer)]
        for k, tested in zip(chosen, threads.map(lambda k: _test(recording, fights[k]), chosen), strict=True):
            fights[k] = tested
    tested = [k for k in chosen if fights[k].p is not None]
    for k, corrected in zip(tested, contention.holm(np.array([fights[k].p for k in tested])), strict=True):
        fights[k] = dataclasses.replace(fights[k], corrected=float(corrected))
    return Contention(options, looks, fights, opposition)


def _to_test(recording: Recording, fights: Sequence[Fight], layer: str) -> list[int]:
    """Choose the strongest pairs of a layer that can be followed; the same number in every layer."""
    most = max(NUM_TESTED // len(recording.config.layers), 1)
    return [k for k, f in enumerate(fights) if f.pair.layer == layer and f.loss_correlation is not None][:most]


def look_at(num_iterations: int, looks: int) -> Int[np.ndarray, " look"]:
    """Choose iterations evenly spread over the run, inside it, so that what comes after can be looked at.

    Example:
        >>> look_at(1000, 4)
        array([200, 400, 600, 800])
    """
    return np.unique(np.linspace(0, num_iterations, looks + 2)[1:-1].round().astype(int))


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


def _follow_all(recording: Recording, pairs: Sequence[Pair]) -> list[Fight]:
    """Compute how accuracy and loss of the groups of each pair change together after its discovery, in one pass."""
    curves: list[list[np.ndarray]] = [[] for _ in pairs]
    for block in recording.blocks() if pairs else ():
        loss, correct = block.read("loss"), block.read("prediction") == recording.labels
        for pair, curve in zip(pairs, curves, strict=True):
            rows = slice(max(pair.iteration + 1 - block.start, 0), max(_stop(recording, pair) - block.start, 0))
            groups = pair.left, pair.right
            means = [values[pair.seed, rows][:, group].mean(axis=1) for values in (loss, correct) for group in groups]
            curve.append(np.stack(means))
    fights = []
    for pair, curve in zip(pairs, curves, strict=True):
        left_loss, right_loss, left_correct, right_correct = np.concatenate(curve, axis=1).astype(np.float64)
        if len(left_loss) <= FEWEST_CHANGES:
            fights.append(Fight(pair, reason=f"{FEWEST_CHANGES} iterations or fewer after it was found"))
            continue
        loss, accuracy = contention.antiphase(left_loss, right_loss), contention.antiphase(left_correct, right_correct)
        known = [None if np.isnan(value) else float(value) for value in (accuracy, loss)]
        reason = "the loss of a group does not change" if known[1] is None else "not among the strongest of its layer"
        fights.append(Fight(pair, *known, reason=reason))
    return fights


def _stop(recording: Recording, pair: Pair) -> int:
    return min(pair.iteration + WINDOW + 1, recording.num_records)


def _test(recording: Recording, fight: Fight) -> Fight:
    """Compare a pair with its controls on the iterations after its discovery."""
    pair = fight.pair
    loss = _losses(recording, pair.seed, pair.iteration, _stop(recording, pair))
    factors = read_factors(recording, pair.layer, pair.iteration)[pair.seed]
    norm = factored_alignment(*factors).norm if len(factors) == 2 else alignment(factors[0][:, None]).norm
    rng = np.random.default_rng((int(recording.seeds[pair.seed]), pair.iteration, int(pair.left[0])))
    directions = cones.directions(*factors)
    matched = contention.matched_groups(pair.left, pair.right, recording.labels, norm, directions, NUM_CONTROLS, rng)
    if matched is None:
        return dataclasses.replace(fight, reason="too few other examples of the same labels and norms to compare with")
    controls = contention.antiphase(*(loss @ _averages(group, loss.shape[1]) for group in matched))
    p = contention.p_value(fight.loss_correlation, controls)
    return dataclasses.replace(fight, matched_correlation=float(np.nanmedian(controls)), p=p, reason="")


def _averages(groups: Int[np.ndarray, "r m"], count: int) -> Float[np.ndarray, "n r"]:
    """Make the matrix whose columns average over one group each."""
    weights = np.zeros((count, len(groups)), np.float32)
    np.put_along_axis(weights, groups.T, np.float32(1 / groups.shape[1]), axis=0)
    return weights


def _losses(recording: Recording, s: int, start: int, stop: int) -> Float[np.ndarray, "t n"]:
    """Read the losses of one seed from the iteration after `start` up to `stop`."""
    return np.concatenate(
        [
            block.read("loss")[s, max(start + 1 - block.start, 0) : stop - block.start]
            for block in recording.blocks()
            if block.start < stop and block.stop > start + 1
        ]
    )
