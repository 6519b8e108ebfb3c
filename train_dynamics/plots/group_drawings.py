"""Figures of groups of examples through training, each with the words that go with it."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from train_dynamics.config import counted
from train_dynamics.data.showing import shown
from train_dynamics.plots import cones as cone_plots
from train_dynamics.plots import groups
from train_dynamics.plots.figures import Drawing
from train_dynamics.plots.style import of_seeds
from train_dynamics.recording.reader import Recording
from train_dynamics.study.cones import half_learned
from train_dynamics.study.groups import MOST_BATCHES, mean_cosine, strongest_update
from train_dynamics.study.results import Results, metric_name
from train_dynamics.study.tables import label_counts


def group_drawings(recording: Recording, results: Results) -> Iterator[Drawing]:
    """Draw the curves of each measure, the classes against each other, and the opposing signals."""
    found, layers = results.group_dynamics, recording.gradient_layers
    of = {
        name: {layer: getattr(found.layers[layer], name) for layer in layers}
        for name in ("m_coherence", "noise_scale", "gradient_confusion", "smallest_cosine")
    }
    figure = groups.panels(
        found.looks,
        [of["m_coherence"], of["noise_scale"]],
        ["m-coherence (examples)", "noise scale (examples)"],
        [True, True],
        "m-coherence and noise scale",
    )
    batch, axes = recording.config.examples_per_batch(len(recording.labels)), figure.axes[1]
    axes.axhline(batch, color="black", linewidth=0.9, linestyle=":")
    at_right = axes.get_yaxis_transform()
    axes.text(0.995, batch, f"batch size {batch}", transform=at_right, ha="right", va="bottom", fontsize=9)
    unknown = any(np.isnan(scale).mean(axis=0).max() >= 0.5 for scale in of["noise_scale"].values())
    gap = (
        " Where there is no line the mean gradient of half of the seeds is no longer than noise alone would make it."
        if unknown
        else ""
    )
    yield Drawing(
        "coherence",
        "m-coherence and noise scale over iterations",
        "m-coherence: how many examples the step of one example helps, on average; 1 is every one for itself. Noise "
        "scale: the size of a batch whose gradient is as much noise as signal; it is (n - M) / (M - 1) of m-coherence "
        "M of a seed and the number of examples n, so that one falls where the other rises. Look where it crosses the "
        f"dotted line, {counted(batch, 'example')}, the batch that was trained with: its step turns from "
        "signal into noise." + gap,
        figure,
    )
    num_batches = len(recording.labels) // batch
    some = f", of which {MOST_BATCHES} are compared" if num_batches > MOST_BATCHES else ""
    if num_batches > 1:
        yield Drawing(
            "gradient_confusion",
            "Gradient confusion over iterations",
            f"All examples are divided, once and at random, into batches of {batch}{some}. "
            "Of all pairs of batches, the one whose mean gradients are most opposed: minus their inner product, 0 if "
            "no two are opposed, and, below, the smallest cosine. Below a cosine of 0 a step for one batch harms "
            "another.",
            groups.panels(
                found.looks,
                [of["gradient_confusion"], of["smallest_cosine"]],
                ["gradient confusion\n((nats per unit of weight)²)", "smallest cosine"],
                [False, False],
                "Gradient confusion",
            ),
        )
    yield Drawing(
        "stiffness",
        "Stiffness within and between classes over iterations",
        "Mean cosine between the gradients of two examples of one class, and of two different classes. High means that "
        "a step for one example is a step for the other; below zero, that it harms it. A gradient of zero counts as a "
        "cosine of 0 to all.",
        groups.panels(
            found.looks,
            [
                {
                    f"{words}{f' in {layer}' if len(layers) > 1 else ''}": getattr(found.layers[layer], name)
                    for layer in layers
                    for words, name in (
                        ("within a class", "stiffness_within"),
                        ("between classes", "stiffness_between"),
                    )
                }
            ],
            ["mean cosine"],
            [False],
            "Stiffness",
        ),
    )
    yield from _class_drawings(recording, results)
    yield from _opposing_drawings(recording, results)


def _class_drawings(recording: Recording, results: Results) -> Iterator[Drawing]:
    """Draw the stiffness of each layer by pair of classes: at the start, when half is learned, and at the end."""
    looks, layers = results.group_dynamics.looks, recording.gradient_layers
    half = int(results.iterations[half_learned(results.progress.mean(axis=0), len(recording.class_names))])
    shown = list(dict.fromkeys([0, int(np.abs(looks - half).argmin()), len(looks) - 1]))
    for layer in layers:
        matrices = results.group_dynamics.layers[layer].stiffness.mean(axis=0)
        if matrices.shape[-1] < 2:
            continue
        yield Drawing(
            metric_name(layers, layer, "class_stiffness").replace("/", "_"),
            f"Stiffness by pair of labels in {layer}",
            "Mean cosine between the gradients of an example of either label, no example with itself, averaged over "
            "seeds: at the start, half way, and at the end. Blue pulls together, red "
            "apart. Look which labels fight, and whether a label still pulls in one direction at the end.",
            groups.class_matrices(
                [matrices[k] for k in shown],
                [f"iteration {looks[k]:,}" for k in shown],
                recording.classes[1],
                f"Stiffness by pair of labels in {layer}, {of_seeds('mean', len(recording.seeds))}",
            ),
        )


def _opposing_drawings(recording: Recording, results: Results) -> Iterator[Drawing]:
    opposing, iterations = results.group_dynamics.opposing, results.iterations
    if not opposing.size:
        return
    update = strongest_update(recording, results.group_dynamics.opposing)
    t, last = int(iterations[update.record]), int(iterations[update.record + 1])
    yield Drawing(
        "opposing_signals",
        "Opposing signals over iterations",
        "From one record to the next the loss of some examples rises while that of others falls: the mean change of "
        f"the {opposing.size} that rise most, of the {opposing.size} that fall most, and of all. Who is in a group "
        "changes from one update to the next. Look how much more the extremes move than the whole.",
        groups.opposing(
            iterations[:-1],
            opposing.curves,
            opposing.size,
            t,
            f"the largest update of one seed, {recording.seeds[update.seed]}: see the next figure",
            "Changes of loss",
        ),
    )
    often = [
        np.argsort(-counts.sum(axis=0), kind="stable")[: opposing.size] for counts in (opposing.risen, opposing.fallen)
    ]
    both = len(set(often[0].tolist()) & set(often[1].tolist()))
    panels = {
        f"rose by {update.rise:.2f} nats": update.risers,
        f"fell by {-update.fall:.2f} nats": update.fallers,
        "most often risen": often[0],
        "most often fallen": often[1],
    }
    where = f"seed {recording.seeds[update.seed]}, from iteration {t:,} to {last:,}"
    cosines = ", ".join(
        f"{mean_cosine(recording, layer, t, update.seed, update.risers, update.fallers):.2f} in {layer}"
        for layer in recording.gradient_layers
    )
    yield Drawing(
        "opposing_examples",
        f"Examples at both extremes: {where}, and most often",
        f"Above, some of the two groups of {opposing.size} in the update in which both moved most, the most first: "
        f"{where}. Their mean gradients have a cosine of {cosines} before it. Below, those "
        f"that are most often at either extreme, over all seeds and updates; {both} of {opposing.size} are in both. "
        "Changes are averaged over a group. Look for what it has in common.",
        cone_plots.cone_grids(
            [shown(recording.data, group) for group in panels.values()],
            [f"{words}; labels {_labels(recording, group)}" for words, group in panels.items()],
            f"Opposing signals: {where}, and most often",
        ),
    )


def _labels(recording: Recording, group: Int[np.ndarray, " m"]) -> str:
    counts = label_counts(recording, group).split("; ")
    return ", ".join(counts[:3]) + (", ..." if len(counts) > 3 else "")
