"""One pass over a recording: computes what tables, figures and claims are made from."""

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from train_dynamics.config import InputError, pluralise
from train_dynamics.dynamics.agreement import agreement, chunks, indifferent, ranks
from train_dynamics.dynamics.forgetting import Forgetting, first_correct_curve, last_mistake_curve
from train_dynamics.dynamics.groups import group_weights
from train_dynamics.dynamics.opposing import OpposingSignals
from train_dynamics.dynamics.scores.margin import margin
from train_dynamics.dynamics.scores.score import Records
from train_dynamics.recording.layers import TOGETHER
from train_dynamics.recording.reader import Block, Recording
from train_dynamics.study.groups import GroupDynamics, GroupStudy, Measures
from train_dynamics.study.motion import each_alignment
from train_dynamics.study.ranking import Ranking
from train_dynamics.study.scores import Networks, ScoreOptions, ScorePass, Scores, batches

NUM_CHUNKS = 10
SHARE = "mean_gradient_share"
Curves = dict[str, Float[np.ndarray, "s t group"]]
Item, Result = TypeVar("Item"), TypeVar("Result")
LayerMeasures = dict[str, list[Measures]]


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """Everything that the study computes from a recording.

    Attributes:
        iterations: The recorded iterations.
        agr: Ensemble agreement of each example after the last update, in nats; low is typical. None for a single seed,
            and for a regression.
        ranking: The value that examples are ranked by: `agr` in nats; without it, the mean loss over records; or the
            given ranking.
        rank: Rank of each example; 0 is the most typical.
        chunk: Tenth of that ranking; 0 is the most typical. With fewer than ten examples, each is a chunk.
        indifferent: Which seeds' networks give all examples the same output after the last update.
        forgetting: When each seed learned and forgot each example. None for a regression.
        curves: For each metric, the mean over the examples of each of `groups`, for each seed and iteration. Metrics
            are `accuracy`, `first_correct` and `last_mistake`, or for a regression `loss`; and for each recorded layer
            `alignment`, `gradient_norm` and `mean_gradient_share`. The last one is a sum over the group instead of a
            mean: how much of the mean gradient's square each example contributes, by its product with the mean. If
            several layers were recorded, these three are called `LAYER/alignment` and so on.
        scores: All scores of each example. None if not asked for.
        group_dynamics: How far batches, classes and all examples pull together, for each seed and iteration. None if
            not asked for.
        given: Description of the given ranking. Empty if none was given.
    """

    iterations: Int[np.ndarray, " t"]
    agr: Float[np.ndarray, " n"] | None
    ranking: Float[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]
    chunk: Int[np.ndarray, " n"]
    indifferent: Bool[np.ndarray, " s"]
    forgetting: Forgetting | None
    curves: Curves
    scores: Scores | None = None
    group_dynamics: GroupDynamics | None = None
    given: str = ""

    @property
    def ranked_by(self) -> str:
        """Name of what ranks the examples: `agr`, without it `cumulative_loss`, or `given`."""
        return "given" if self.given else "cumulative_loss" if self.agr is None else "agr"

    @property
    def ranked_by_words(self) -> str:
        """Description of what ranks the examples."""
        if self.given:
            return self.given
        if self.agr is None:
            without = "a single seed has no other to agree with" if self.forgetting else "there are no classes"
            return f"their mean loss over all records, because {without}"
        return "how much the trained networks agree on them (AGR)"

    @property
    def gradient_unit(self) -> str:
        """Unit of gradients. The loss of a regression has a unit of its own."""
        return "nats per unit of weight" if "accuracy" in self.curves else "loss per unit of weight"

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return next(iter(self.curves.values())).shape[-1] - 1

    @property
    def progress(self) -> Float[np.ndarray, "s t"]:
        """How much is learned: the accuracy of all examples; for a regression, the share of the loss that is gone."""
        if "accuracy" in self.curves:
            return self.curves["accuracy"][..., 0]
        loss = self.curves["loss"][..., 0]
        return 1 - loss / np.where(loss[:, :1] > 0, loss[:, :1], 1)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that curves have: `all`, and each chunk."""
        return ("all", *(f"chunk_{k}" for k in range(self.num_chunks)))


class Gradients(NamedTuple):
    """What scores need from the gradients of a block.

    Attributes:
        norm: L2 norm of each example's gradient, over all recorded layers together.
        error_norm: L2 norm of the class probabilities minus the one-hot label.
        largest_other: Largest probability of a class that is not the label.
    """

    norm: Float[np.ndarray, "s t n"]
    error_norm: Float[np.ndarray, "s t n"]
    largest_other: Float[np.ndarray, "s t n"]


class OfBlock(NamedTuple):
    """Results of a block: `loss` if scores or groups are asked for, `records` for scores, `measures` for groups."""

    iterations: Int[np.ndarray, " t"]
    correct: Bool[np.ndarray, "s t n"] | None
    loss: Float[np.ndarray, "s t n"] | None
    records: Records | None
    curves: Curves
    measures: LayerMeasures


def compute(
    recording: Recording,
    options: ScoreOptions | None = ScoreOptions(),
    groups: bool = True,
    advance: Callable[[int], object] = lambda records: None,
    networks: Networks | None = None,
    given: Ranking | None = None,
    replayed: Callable[[str], object] = lambda words: None,
) -> Results:
    """Compute all results, reading each block once. Memory does not grow with the number of blocks.

    The examples are ranked by agreement. A single seed and a regression have no agreement; there, examples are ranked
    by their mean loss over all records, `cumulative_loss`, for which the losses are read a second time. A regression
    has no scores.

    Args:
        recording: The recording.
        options: How to compute scores. None computes no scores.
        groups: Whether to follow groups of examples.
        advance: Told the number of records after each block.
        networks: Runs the networks again, for the scores that need it; of the default network it need not be given.
        given: What to rank the examples by instead.
        replayed: Told in words how far scores are for which networks are run again.

    Raises:
        InputError: If the recording is unfinished or damaged, has only one example, or lacks what the options ask for.
    """
    check_finished(recording)
    classes = recording.contents.classes
    score_pass = ScorePass(recording, options, networks=networks) if options is not None and classes else None
    probabilities = recording.probabilities(recording.num_iterations) if classes else None
    agr = agreement(probabilities) if classes and len(recording.seeds) > 1 else None
    ranking = given.values if given else _mean_loss(recording) if agr is None else agr
    rank = ranks(ranking)
    num_chunks = min(NUM_CHUNKS, len(rank))
    chunk = chunks(rank, num_chunks)
    everyone = group_weights(np.zeros(len(rank), int), 1)
    weights = np.concatenate([everyone, group_weights(chunk, num_chunks)], axis=1)
    study = GroupStudy(recording) if groups else None
    gathered = Gathered(recording, score_pass, study)
    # Our threads share the work already; BLAS threads on products this small only get in their way.
    # There are more of them than processors, for some wait for the disk.
    workers = min(8, 2 * (os.cpu_count() or 1))
    of_block = functools.partial(_of_block, recording, weights, score_pass is not None, study)
    with threadpool_limits(1), ThreadPoolExecutor(workers) as threads:
        for found in _in_order(threads, of_block, recording.blocks(), workers):
            advance(len(found.iterations))
            gathered.add(found)
    curves = gathered.curves() | forgetting_curves(gathered.forgetting, recording.iterations, chunk, num_chunks)
    dead = indifferent(probabilities) if classes else np.zeros(len(recording.seeds), bool)
    return Results(
        recording.iterations,
        agr,
        ranking,
        rank,
        chunk,
        dead,
        gathered.forgetting,
        curves,
        score_pass and score_pass.finish(replayed),
        gathered.group_dynamics(),
        given.words if given else "",
    )


def _mean_loss(recording: Recording) -> Float[np.ndarray, " n"]:
    """Average the loss of each example over seeds and records."""
    losses = (block.read("loss").mean(axis=0).sum(axis=0, dtype=np.float64) for block in recording.blocks())
    return sum(losses) / recording.num_records


def _of_block(
    recording: Recording, weights: Float[np.ndarray, "n group"], scores: bool, study: GroupStudy | None, block: Block
) -> OfBlock:
    """Compute what needs only a block's own records. Several threads do this, each for another block."""
    classes = recording.contents.classes
    loss = block.read("loss") if scores or study or not classes else None
    if classes:
        prediction = block.read("prediction")
        correct = prediction == recording.labels
        learned = {"accuracy": correct @ weights}
    else:
        correct, learned = None, {"loss": loss @ weights}
    curves, gradients, measures = _gradient_curves(recording, block, weights.astype(np.float32), scores, study)
    records = None
    if scores:
        records = Records(
            block.iterations,
            loss,
            prediction,
            correct,
            margin(loss, gradients.largest_other),
            gradients.error_norm,
            gradients.norm,
            batches(recording, block),
        )
    return OfBlock(block.iterations, correct, loss, records, {**learned, **curves}, measures)


class Gathered:
    """Results of blocks, gathered in order.

    Args:
        recording: The recording.
        score_pass: Computes the scores. None if they are not asked for.
        study: Follows groups of examples. None if they are not asked for.

    Attributes:
        forgetting: When each example was learned and forgotten. None for a regression.
    """

    def __init__(self, recording: Recording, score_pass: ScorePass | None, study: GroupStudy | None) -> None:
        size = len(recording.seeds), len(recording.labels)
        self.forgetting = Forgetting(*size) if recording.contents.classes else None
        self._score_pass, self._study = score_pass, study
        self._opposing = OpposingSignals(*size)
        self._measures: LayerMeasures = {layer: [] for layer in recording.gradient_layers}
        self._curves: list[Curves] = []

    def add(self, found: OfBlock) -> None:
        """Take in the next block."""
        self._curves.append(found.curves)
        if self.forgetting is not None:
            self.forgetting.add(found.correct, found.iterations)
        if self._score_pass:
            self._score_pass.add(found.records)
        if self._study:
            self._opposing.add(found.loss)
            for layer, measures in found.measures.items():
                self._measures[layer] += measures

    def curves(self) -> Curves:
        """Return the joined curves."""
        return {metric: np.concatenate([one[metric] for one in self._curves], axis=1) for metric in self._curves[0]}

    def group_dynamics(self) -> GroupDynamics | None:
        """Return what was measured of groups. None if it was not asked for."""
        if self._study is None:
            return None
        layers = {layer: Measures.stacked(measures) for layer, measures in self._measures.items()}
        return GroupDynamics(self._study.checkpoints, layers, self._opposing)


def forgetting_curves(
    forgetting: Forgetting | None, iterations: Int[np.ndarray, " t"], chunk: Int[np.ndarray, " n"], num_chunks: int
) -> Curves:
    """Compute first correct and last mistake for all examples and for each chunk."""
    if forgetting is None:
        return {}
    groups = [np.ones(len(chunk), bool), *(chunk == k for k in range(num_chunks))]

    def of_groups(curve: Callable, times: Int[np.ndarray, "s n"]) -> Float[np.ndarray, "s t group"]:
        return np.stack([curve(times[:, group], iterations) for group in groups], axis=-1)

    return {
        "first_correct": of_groups(first_correct_curve, forgetting.first_correct),
        "last_mistake": of_groups(last_mistake_curve, forgetting.last_mistake),
    }


def _in_order(
    threads: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Map a function over items in threads, a few ahead, and yield the results in order."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(threads.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def metric_name(layers: tuple[str, ...], layer: str, metric: str) -> str:
    """Name a metric of a layer. If only one layer was recorded, this is the metric's own name."""
    return metric if len(layers) == 1 else f"{layer}/{metric}"


def _gradient_curves(
    recording: Recording,
    block: Block,
    weights: Float[np.ndarray, "n group"],
    scores: bool,
    study: GroupStudy | None,
) -> tuple[Curves, Gradients | None, LayerMeasures]:
    curves: Curves = {}
    checkpoints = set(study.checkpoints.tolist()) if study else set()
    measures: LayerMeasures = {layer: [] for layer in recording.gradient_layers}
    lead = (len(recording.seeds), len(block.iterations))
    squares = np.zeros((*lead, len(weights)), np.float32) if scores else None
    for layer in recording.layers:
        cosine, norm, along = (np.empty((*lead, weights.shape[1])) for _ in range(3))
        for t, of_seeds in enumerate(each_alignment(recording, block, layer)):
            sums = []
            for s, (parts, found) in enumerate(of_seeds):
                cosine[s, t], norm[s, t] = found.cosine @ weights, found.norm @ weights
                along[s, t] = (found.cosine * found.norm) @ weights
                if scores and layer != TOGETHER:  # which the others are part of
                    squares[s, t] += np.square(found.norm)
                if parts and block.iterations[t] in checkpoints:
                    sums.append(study.sums(parts, found))
            if sums:
                measures[layer].append(study.measure(sums))
        curves[metric_name(recording.layers, layer, "alignment")] = cosine
        curves[metric_name(recording.layers, layer, "gradient_norm")] = norm
        whole = along[..., :1]  # the norm of the mean gradient
        sizes = np.count_nonzero(weights, axis=0) / len(weights)
        shares = np.divide(along * sizes, whole, out=np.zeros_like(along), where=whole > 0)
        curves[metric_name(recording.layers, layer, SHARE)] = shares
    if not scores:
        return curves, None, measures
    error_norm, largest_other = (np.zeros((*lead, len(weights)), np.float32) for _ in range(2))
    room = np.empty((lead[0], len(recording.class_names), len(weights)), np.float32)
    for t, error in enumerate(recording.each_error(block)):
        error_norm[:, t], largest_other[:, t] = _of_output(error, room)
    return curves, Gradients(np.sqrt(squares), error_norm, largest_other), measures


def _of_output(
    cotangent: Float[np.ndarray, "s n c"], room: Float[np.ndarray, "s c n"]
) -> tuple[Float[np.ndarray, "s n"], Float[np.ndarray, "s n"]]:
    """Find the norm of p - y, and the largest p of another class. At the label, p - 1 is never above 0.

    Going through the classes one by one, without allocating memory, takes a fifth of the time.
    """
    np.copyto(room, np.swapaxes(cotangent, 1, 2))
    largest_other = room.max(axis=1)
    return np.sqrt(np.square(room, out=room).sum(axis=1)), largest_other


def check_finished(recording: Recording) -> None:
    """Check that a recording has all records, and more than one example.

    Raises:
        InputError: If it has not.
    """
    if len(recording.labels) < 2:
        raise InputError.flag(
            "recording", recording.path, "has only one example, and an analysis compares examples with each other"
        )
    if recording.finished and recording.num_records < 2:
        there = pluralise(recording.num_records, "record")
        raise InputError.flag("recording", recording.path, f"holds {there}, but an analysis needs two or more")
    if not recording.finished:
        if recording.being_written:
            state, then = "is still being written", "analyse it when that is finished"
        else:
            state, then = "is unfinished", "run the train command again to finish it"
        raise InputError.flag(
            "recording",
            recording.path,
            f"{state} and holds {recording.num_records} of {recording.num_planned} records; {then}",
        )
