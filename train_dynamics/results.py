"""One pass over a recording: what tables, figures and claims are made of."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from train_dynamics.config import InputError
from train_dynamics.dynamics.agreement import agreement, chunks, ranks
from train_dynamics.dynamics.alignment import alignment, factored_alignment
from train_dynamics.dynamics.forgetting import Forgetting, first_correct_curve, last_mistake_curve
from train_dynamics.dynamics.groups import group_weights
from train_dynamics.dynamics.opposing import OpposingSignals
from train_dynamics.group_dynamics import GroupDynamics, GroupStudy, Measures
from train_dynamics.recording import Block, Recording, is_being_written

NUM_CHUNKS = 10
GROUPS = ("all", *(f"chunk_{k}" for k in range(NUM_CHUNKS)))
Curves = dict[str, Float[np.ndarray, "s t group"]]
LayerMeasures = dict[str, list[Measures]]


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """What the study asks of a recording.

    Attributes:
        iterations: The recorded iterations.
        agr: Ensemble agreement of each example after the last update, in nats; low is typical.
        rank: Rank of each example by it; 0 is the most typical.
        chunk: Tenth of that ranking; 0 is the most typical.
        forgetting: When each example was learned and forgotten, for each seed.
        curves: By metric, the mean over the examples of each of `GROUPS`, for each seed and iteration: `accuracy`,
            `first_correct`, `last_mistake`, and for each recorded layer `alignment` and `gradient_norm`; these two are
            called `LAYER/alignment` and `LAYER/gradient_norm` if several layers were recorded.
        group_dynamics: How far batches, classes and all examples pull together, for each seed and iteration.
    """

    iterations: Int[np.ndarray, " t"]
    agr: Float[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]
    chunk: Int[np.ndarray, " n"]
    forgetting: Forgetting
    curves: Curves
    group_dynamics: GroupDynamics


def compute(recording: Recording) -> Results:
    """Compute all results, reading each block once; memory does not grow with the number of blocks.

    Raises:
        InputError: If the recording is unfinished, damaged, or too small to be ranked.
    """
    _check(recording)
    labels = recording.labels
    agr = agreement(recording.probabilities(recording.num_iterations))
    rank = ranks(agr)
    chunk = chunks(rank, NUM_CHUNKS)
    everyone = group_weights(np.zeros(len(labels), int), 1)
    weights = np.concatenate([everyone, group_weights(chunk, NUM_CHUNKS)], axis=1)
    study = GroupStudy(recording)

    def of_block(block: Block) -> tuple[Bool[np.ndarray, "s t n"], Curves, LayerMeasures, Float[np.ndarray, "s t n"]]:
        correct = block.read("prediction") == labels
        curves, of_groups = _gradient_curves(recording, block, weights.astype(np.float32), study)
        return correct, {"accuracy": correct @ weights, **curves}, of_groups, block.read("loss")

    opposing = OpposingSignals(len(recording.seeds), len(labels))
    measures: LayerMeasures = {layer: [] for layer in recording.config.layers}
    forgetting = Forgetting(len(recording.seeds), len(labels))
    pieces: list[Curves] = []
    # Our threads share the work already; BLAS threads on products this small only get in their way.
    # There are more of them than processors, for some wait for the disk.
    with threadpool_limits(1), ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as threads:
        found = threads.map(of_block, recording.blocks())
        for block, (correct, piece, of_groups, loss) in zip(recording.blocks(), found, strict=True):
            forgetting.add(correct, block.iterations)
            opposing.add(loss)
            pieces.append(piece)
            for layer, of_layer in of_groups.items():
                measures[layer] += of_layer
    curves = {metric: np.concatenate([piece[metric] for piece in pieces], axis=1) for metric in pieces[0]}

    groups = [np.ones(len(labels), bool), *(chunk == k for k in range(NUM_CHUNKS))]
    for metric, curve, iterations in (
        ("first_correct", first_correct_curve, forgetting.first_correct),
        ("last_mistake", last_mistake_curve, forgetting.last_mistake),
    ):
        curves[metric] = np.stack([curve(iterations[:, group], recording.iterations) for group in groups], axis=-1)
    group_dynamics = GroupDynamics(
        study.looks, {layer: Measures.stacked(of_layer) for layer, of_layer in measures.items()}, opposing
    )
    return Results(recording.iterations, agr, rank, chunk, forgetting, curves, group_dynamics)


def metric_name(layers: tuple[str, ...], layer: str, metric: str) -> str:
    """Name a metric of a layer: the metric's own name if only one layer was recorded."""
    return metric if len(layers) == 1 else f"{layer}/{metric}"


def _gradient_curves(
    recording: Recording, block: Block, weights: Float[np.ndarray, "n group"], study: GroupStudy
) -> tuple[Curves, LayerMeasures]:
    curves: Curves = {}
    looks = set(study.looks.tolist())
    measures: LayerMeasures = {layer: [] for layer in recording.config.layers}
    layers = recording.config.layers
    shape = (len(recording.seeds), len(block.iterations), len(GROUPS))
    for layer in layers:
        cosine, norm = np.empty(shape), np.empty(shape)
        for t, parts in enumerate(recording.each_gradient(block, layer)):
            sums = []
            for s in range(shape[0]):  # one seed at a time stays in the processor's cache
                of_seed = tuple(part[s % len(part)] for part in parts)
                found = factored_alignment(*of_seed) if len(of_seed) == 2 else alignment(*of_seed)
                cosine[s, t], norm[s, t] = found.cosine @ weights, found.norm @ weights
                if block.iterations[t] in looks:
                    sums.append(study.sums(of_seed, found))
            if sums:
                measures[layer].append(study.measure(sums))
        curves[metric_name(layers, layer, "alignment")] = cosine
        curves[metric_name(layers, layer, "gradient_norm")] = norm
    return curves, measures


def _check(recording: Recording) -> None:
    if not recording.finished:
        if is_being_written(recording.path):
            state, then = "is still being written", "analyse it when that is finished"
        else:
            state, then = "is unfinished", "run the train command again to finish it"
        raise InputError.flag(
            "recording",
            recording.path,
            f"{state}: it holds {recording.num_records} of {recording.num_planned} records; {then}",
        )
    if len(recording.seeds) < 2:
        raise InputError.flag(
            "recording",
            recording.path,
            "has one seed, and ranking by agreement needs two; record with --seeds=2 or more",
        )
    if len(recording.labels) < NUM_CHUNKS:
        raise InputError.flag(
            "recording", recording.path, f"has {len(recording.labels)} examples, and {NUM_CHUNKS} chunks need one each"
        )
