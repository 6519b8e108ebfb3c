"""Figures of groups of examples through training, each with the words that go with it."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.config import pluralise
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
    yield _coherence_drawing(recording, results)
    if _num_batches(recording) > 1:
        yield _confusion_drawing(recording, results)
    yield _stiffness_drawing(recording, results)
    yield from _class_drawings(recording, results)
    yield from _opposing_drawings(recording, results)


def _batch_size(recording: Recording) -> int:
    return recording.config.examples_per_batch(len(recording.labels))


def _num_batches(recording: Recording) -> int:
    return len(recording.labels) // _batch_size(recording)


def _by_layer(recording: Recording, results: Results, measure: str) -> dict[str, Float[np.ndarray, "s t"]]:
    return {layer: getattr(results.group_dynamics.layers[layer], measure) for layer in recording.gradient_layers}


def _coherence_drawing(recording: Recording, results: Results) -> Drawing:
    """Draw m-coherence and noise scale, with the batch size used in training."""
    noise_scale = _by_layer(recording, results, "noise_scale")
    figure = groups.panels(
        results.group_dynamics.checkpoints,
        [_by_layer(recording, results, "m_coherence"), noise_scale],
        ["m-coherence (examples)", "noise scale (examples)"],
        [True, True],
        "m-coherence and noise scale",
    )
    batch, axes, crossing = recording.batch_size, figure.axes[1], ""
    if batch is not None:
        axes.axhline(batch, color="black", linewidth=0.9, linestyle=":")
        at_right = axes.get_yaxis_transform()
        axes.text(0.995, batch, f"batch size {batch}", transform=at_right, ha="right", va="bottom", fontsize=9)
        crossing = (
            f" Above the dotted line, the batch size in training ({pluralise(batch, 'example')}), a step is "
            "more noise than signal."
        )
    unknown = any(np.isnan(scale).mean(axis=0).max() >= 0.5 for scale in noise_scale.values())
    gap = (
        " Where there is no line, in at least half of the seeds the mean gradient is not longer than noise alone "
        "would make it."
        if unknown
        else ""
    )
    return Drawing(
        "coherence",
        "m-coherence and noise scale over iterations",
        "m-coherence: how many examples a step for one example helps, on average; at 1, only itself. Noise "
        "scale: the batch size at which a gradient is as much noise as signal. It is (n - M) / (M - 1), with "
        "m-coherence M and n examples, so one falls where the other rises." + crossing + gap,
        figure,
    )


def _confusion_drawing(recording: Recording, results: Results) -> Drawing:
    """Draw how opposed the most opposed batches are."""
    some = f", of which {MOST_BATCHES} are compared" if _num_batches(recording) > MOST_BATCHES else ""
    return Drawing(
        "gradient_confusion",
        "Gradient confusion over iterations",
        f"All examples are divided, once and at random, into batches of {_batch_size(recording)}{some}. "
        "The curve shows the most opposed pair of batches: minus the inner product of their mean gradients, 0 if "
        "no two are opposed. The lower panel shows the smallest cosine. Below 0, a step for one batch harms "
        "another.",
        groups.panels(
            results.group_dynamics.checkpoints,
            [_by_layer(recording, results, measure) for measure in ("gradient_confusion", "smallest_cosine")],
            [f"gradient confusion\n(({results.gradient_unit})²)", "smallest cosine"],
            [False, False],
            "Gradient confusion",
        ),
    )


def _stiffness_drawing(recording: Recording, results: Results) -> Drawing:
    """Draw the mean cosine within and between classes, for all layers in one panel."""
    found, layers, classes = results.group_dynamics, recording.gradient_layers, recording.contents.classes
    kinds, of_classes = [("two examples", "stiffness_within")], ""
    if classes:
        kinds = [("within a class", "stiffness_within"), ("between classes", "stiffness_between")]
        of_classes = " of one class, and of two different classes"
    curves = {
        f"{words}{f' in {layer}' if len(layers) > 1 else ''}": getattr(found.layers[layer], name)
        for layer in layers
        for words, name in kinds
    }
    return Drawing(
        "stiffness",
        f"Stiffness{' within and between classes' if classes else ''} over iterations",
        f"Mean cosine between the gradients of two examples{of_classes}. High means that "
        "a step for one example also helps the other; below zero, that it harms it. A gradient of zero counts as "
        "cosine 0.",
        groups.panels(found.checkpoints, [curves], ["mean cosine"], [False], "Stiffness"),
    )


def _class_drawings(recording: Recording, results: Results) -> Iterator[Drawing]:
    """Draw the stiffness of each layer by pair of classes: at the start, when half is learned, and at the end."""
    checkpoints, layers = results.group_dynamics.checkpoints, recording.gradient_layers
    half = int(results.iterations[half_learned(results.progress.mean(axis=0), len(recording.class_names))])
    shown = list(dict.fromkeys([0, int(np.abs(checkpoints - half).argmin()), len(checkpoints) - 1]))
    for layer in layers:
        matrices = results.group_dynamics.layers[layer].stiffness.mean(axis=0)
        if matrices.shape[-1] < 2:
            continue
        yield Drawing(
            metric_name(layers, layer, "class_stiffness").replace("/", "_"),
            f"Stiffness by pair of labels in {layer}",
            "Mean cosine between the gradients of examples of two labels (none is paired with itself), averaged over "
            "seeds: at the first, the middle and the last record. Blue pulls together, red "
            "apart. Which labels are opposed, and does a label still pull in one direction at the end?",
            groups.class_matrices(
                [matrices[k] for k in shown],
                [f"iteration {checkpoints[k]:,}" for k in shown],
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
    nats = " nats" if recording.contents.classes else ""  # any other loss has a unit of its own
    yield Drawing(
        "opposing_signals",
        "Opposing signals over iterations",
        "From one record to the next the loss of some examples rises while that of others falls: the mean change of "
        f"the {opposing.size} that rise most, of the {opposing.size} that fall most, and of all. The groups "
        "change from one update to the next. How much more do the extremes move than the whole?",
        groups.opposing(
            iterations[:-1],
            opposing.curves,
            opposing.size,
            t,
            f"the largest update of one seed, {recording.seeds[update.seed]}: see the next figure",
            "Changes of loss",
            nats and " (nats)",
        ),
    )
    often = [
        np.argsort(-counts.sum(axis=0), kind="stable")[: opposing.size] for counts in (opposing.risen, opposing.fallen)
    ]
    both = len(set(often[0].tolist()) & set(often[1].tolist()))
    panels = {
        f"rose by {update.rise:.2f}{nats}": update.risers,
        f"fell by {-update.fall:.2f}{nats}": update.fallers,
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
            [f"{words}; labels {_labels(recording, group)}" if nats else words for words, group in panels.items()],
            f"Opposing signals: {where}, and most often",
        ),
    )


def _labels(recording: Recording, group: Int[np.ndarray, " m"]) -> str:
    counts = label_counts(recording, group).split("; ")
    return ", ".join(counts[:3]) + (", ..." if len(counts) > 3 else "")
