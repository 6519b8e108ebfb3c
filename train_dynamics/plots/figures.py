"""All figures of the study, each with the words that go with it."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from train_dynamics.config import pluralise
from train_dynamics.data.showing import has_pictures, shown
from train_dynamics.plots import cones as cone_plots
from train_dynamics.plots import contention as contention_plots
from train_dynamics.plots import curves, film, grids, scatter
from train_dynamics.recording.reader import Recording
from train_dynamics.study.cones import Cones
from train_dynamics.study.contention import Contention, Fight, window
from train_dynamics.study.motion import frames, nearest, reach
from train_dynamics.study.results import NUM_CHUNKS, Results, metric_name
from train_dynamics.study.tables import label_counts

NUM_CONES = 6
NUM_FIGHTS = 3
MOST_COLUMNS = 4  # layers side by side, so that their panels can be read


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure with its words.

    Attributes:
        name: File name, without ending.
        title: What it shows, in one line. This is also its text for those who cannot see it.
        caption: How to read it and what to look for.
        figure: The figure.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def study_drawings(recording: Recording, results: Results) -> Iterator[Drawing]:
    """Draw the curves and examples of the study, one figure after the other."""
    classes = "accuracy" in results.curves
    if classes:
        yield _accuracy(results)
    yield _chunks(results, "accuracy" if classes else "loss")
    for layer in recording.layers:
        yield _alignment(results, layer, metric_name(recording.layers, layer, "alignment"))
        yield _gradient_norm(results, layer, metric_name(recording.layers, layer, "gradient_norm"))
    if classes:
        yield _learning(results)
    yield from _extremes(recording, results)


def _accuracy(results: Results) -> Drawing:
    """Draw the accuracy of all examples."""
    accuracy = results.curves["accuracy"][..., 0]
    band = " The band is one standard deviation over seeds: what a run owes to its start and the order of its batches."
    return Drawing(
        "accuracy",
        "Training accuracy over iterations",
        "Share of all training examples classified correctly after each update." + (band if len(accuracy) > 1 else ""),
        curves.accuracy(results.iterations, accuracy),
    )


def _chunks(results: Results, learned: str) -> Drawing:
    """Draw how each chunk is learned: its `accuracy` or its `loss`."""
    return Drawing(
        f"chunk_{learned}",
        f"{learned.capitalize()} of each chunk over iterations",
        f"The examples are ranked by {results.ranked_by_words}, and divided into tenths. "
        + (
            {
                "cumulative_loss": "Such a ranking depends on how fast examples are learned: the order is no finding.",
                "agr": "The ranking uses only the end of training. Are the tenths nevertheless learned in its order?",
                "given": "The ranking comes from elsewhere. Are the tenths learned in its order?",
            }[results.ranked_by]
        ),
        curves.by_chunk(
            results.iterations,
            results.curves[learned][..., 1:],
            "accuracy of the chunk" if learned == "accuracy" else "mean loss of the chunk",
            f"{learned.capitalize()} of each chunk",
            share=learned == "accuracy",
        ),
    )


def _alignment(results: Results, layer: str, metric: str) -> Drawing:
    """Draw the alignment of each chunk in a layer."""
    return Drawing(
        metric.replace("/", "_"),
        f"Alignment of each chunk in {layer} over iterations",
        "Cosine between an example's gradient and the mean gradient of the whole training set, averaged over the "
        "chunk. High means that a step down the mean gradient also lowers the loss of these examples; near zero, "
        "that it does little for them. A cosine ignores the length of a gradient: when the typical chunks are "
        "learned, their gradients are tiny (see the norms below), and their late cosines are mostly noise.",
        curves.by_chunk(
            results.iterations,
            results.curves[metric][..., 1:],
            "cosine to the mean gradient",
            f"Alignment of each chunk in {layer}",
            share=False,
        ),
    )


def _gradient_norm(results: Results, layer: str, metric: str) -> Drawing:
    """Draw how long the gradients of each chunk are in a layer."""
    return Drawing(
        metric.replace("/", "_"),
        f"Gradient norm of each chunk in {layer} over iterations",
        "L2 norm of an example's gradient, averaged over the chunk: how large a change the example asks for. When "
        "do the curves separate, and which fall to zero?",
        curves.by_chunk(
            results.iterations,
            results.curves[metric][..., 1:],
            f"L2 norm of the gradient ({results.gradient_unit})",
            f"Gradient norm of each chunk in {layer}",
            share=False,
        ),
    )


def _learning(results: Results) -> Drawing:
    """Draw when the examples of some groups are learned, and learned for good."""
    found, shown_groups = results.curves, _shown_groups(results)
    groups = list(shown_groups.values())
    return Drawing(
        "learning",
        "First correct, accuracy and last mistake of the top, middle and bottom tenth and of all examples",
        "First correct: examples that have been right at least once so far. Last mistake: examples that will not "
        "be wrong again before the recording ends, which is why its curve rises at the end. The shaded examples "
        "between the curves have been right, but will be wrong again.",
        curves.learning(
            results.iterations,
            *(found[metric][..., groups] for metric in ("first_correct", "accuracy", "last_mistake")),
            list(shown_groups),
        ),
    )


def _extremes(recording: Recording, results: Results) -> Iterator[Drawing]:
    """Draw random examples, and those at either end of the ranking."""
    order = np.argsort(results.rank)
    count = min(grids.most_shown(recording.data), len(order))
    label, nats = ("label", " nats") if recording.contents.classes else ("target", "")
    for name, words, chosen, caption in (
        (
            "random",
            "random examples",
            np.sort(np.random.default_rng(0).choice(len(order), count, replace=False)),
            "Drawn uniformly, for comparison with the next two figures.",
        ),
        (
            "typical",
            "most typical examples",
            order[:count],
            {
                "agr": "Lowest AGR first: the trained networks predict nearly the same for these.",
                "cumulative_loss": "Lowest mean loss over all records first: what the network learned at once.",
                "given": f"First in the ranking by {results.ranked_by_words}.",
            }[results.ranked_by],
        ),
        (
            "atypical",
            "most atypical examples",
            order[::-1][:count],
            {
                "agr": "Highest AGR first: the trained networks differ most on these. Look for unusual ones and "
                "doubtful labels.",
                "cumulative_loss": "Highest mean loss over all records first. Look for odd ones and doubtful "
                f"{label}s.",
                "given": f"Last in the ranking by {results.ranked_by_words}. Look for odd ones.",
            }[results.ranked_by],
        ),
    ):
        labels = [label_text(recording, n) for n in chosen]
        ranked = results.ranking[chosen]
        name_of_score = {"cumulative_loss": "mean loss", "agr": "AGR", "given": "ranking"}[results.ranked_by]
        span = f"{ranked.min():.2g} to {ranked.max():.2g}{'' if results.given else nats}"
        title = f"{count} {words}, each below its {label}; {name_of_score} {span}"
        figure = grids.example_grid(shown(recording.data, chosen), labels, title)
        yield Drawing(f"examples_{name}", f"{count} {words}", caption, figure)


def label_text(recording: Recording, n: int | np.integer) -> str:
    """Return the name of an example's label: its class, or its target."""
    if recording.contents.classes:
        return recording.class_names[recording.labels[n]]
    return ", ".join(f"{value:.3g}" for value in np.atleast_1d(recording.labels[n]))


def _shown_groups(results: Results) -> dict[str, int]:
    """Choose the groups to look at more closely: title, and column of the curves."""
    top, middle, bottom = 1, results.num_chunks // 2 + 1, results.num_chunks
    part = "tenth " if results.num_chunks == NUM_CHUNKS else ""
    chosen = {f"{word} {part}(chunk {k - 1})": k for word, k in (("top", top), ("middle", middle), ("bottom", bottom))}
    return {**chosen, "all examples": 0}


def motion_drawings(recording: Recording, seed: int, half: int) -> Iterator[Drawing]:
    """Draw all examples of a seed at key iterations around the one at which half of them are learned."""
    times = nearest(recording.iterations, np.array([0, half // 2, half, 2 * half, 4 * half, recording.num_iterations]))
    layers, all_layers = recording.layers[-MOST_COLUMNS:], recording.layers
    view = film.view(recording, seed, recording.iterations, layers)
    some = f" Shown are the last {len(layers)} of {len(all_layers)} layers." if len(layers) < len(all_layers) else ""
    yield Drawing(
        "scatter",
        f"Every example by gradient norm and alignment: seed {seed}, iterations {', '.join(f'{t:,}' for t in times)}",
        "Further right, the gradient is larger. Further up, it is more aligned with the mean gradient; below zero, "
        "a step that helps the others harms this example. Correct examples come back to the left; which ones stay?"
        + some,
        scatter.key_frames(view, list(frames(recording, seed, times, layers))),
    )


def cone_drawings(recording: Recording, found: Sequence[Cones]) -> Iterator[Drawing]:
    """Draw the largest cones of each layer: their images, where they lie, and what happens to the largest."""
    layers = recording.layers
    besides = " besides the label" if recording.contents.classes else ""
    for cones in found:
        frame, sizes = cones.frame, cones.sizes
        groups = [cones.members(k) for k in range(min(NUM_CONES, np.count_nonzero(sizes > 1)))]
        if not groups:
            continue
        where = f"{cones.layer}, seed {cones.seed}, iteration {frame.iteration}"
        titles = [f"cone {k}: {composition(recording, group)}" for k, group in enumerate(groups)]
        yield Drawing(
            metric_name(layers, cones.layer, "cones").replace("/", "_"),
            f"The largest cones of {where}",
            "Each panel shows some examples whose gradients point the same way, or nearly. Look for what they have in "
            f"common{besides}{': slant, stroke, shape' if has_pictures(recording.data) else ''}.",
            cone_plots.cone_grids(
                [shown(recording.data, group) for group in groups], titles, f"Largest cones of {where}"
            ),
        )
        yield Drawing(
            metric_name(layers, cones.layer, "cone_scatter").replace("/", "_"),
            f"Where the largest cones of {where} lie among all examples",
            "Members of a cone have similar heights (cosine with the mean gradient) but may differ in norm. "
            "Arrowheads at the right edge are examples beyond it.",
            cone_plots.cone_scatter(frame, groups, float(reach([frame])[0]), f"Largest cones of {where}"),
        )
        yield Drawing(
            metric_name(layers, cones.layer, "cone_tracks").replace("/", "_"),
            f"What happens to cone 0 of {where}",
            "The examples of the largest cone, followed before and after the iteration at which it was found. Are "
            "they learned together, and do their gradients then shrink together?",
            cone_plots.cone_tracks(
                cones.tracked, groups[0], frame.iteration, f"Cone 0 of {where}: {pluralise(len(groups[0]), 'example')}"
            ),
        )


def contention_drawings(recording: Recording, contention: Contention) -> Iterator[Drawing]:
    """Draw the first pairs, surviving ones before others, and which labels fight in each layer."""
    accuracies, alike = (", and the accuracies", "sizes, labels") if recording.contents.classes else ("", "sizes")
    order = sorted(range(len(contention.fights)), key=lambda k: (not contention.fights[k].survives, k))
    for k in order[:NUM_FIGHTS]:
        fight = contention.fights[k]
        pair, groups = fight.pair, (fight.pair.left, fight.pair.right)
        words = tuple(composition(recording, group) for group in groups)
        where = f"{pair.layer}, seed {recording.seeds[pair.seed]}, found at iteration {pair.iteration}"
        yield Drawing(
            f"contention_{k}",
            f"Pair {k} in contention: {words[0]} against {words[1]}; {where}",
            f"The mean gradients of the two groups have a cosine of {pair.cosine:.2f}. {_verdict(fight, alike)} Two "
            "groups with opposed gradients have opposite cosines to any third vector, so the upper lines mirror "
            f"each other by construction; look whether the losses do{accuracies}, one falling where the other rises.",
            contention_plots.fight(
                *window(recording, fight),
                groups,
                tuple(shown(recording.data, group) for group in groups),
                words,
                pair.iteration,
                f"Pair {k}: {where}",
            ),
        )
    layers = recording.layers
    if len(contention.checkpoints) and len(recording.classes[1]) > 1:
        for layer, share in contention.label_opposition.items():
            yield Drawing(
                metric_name(layers, layer, "label_opposition").replace("/", "_"),
                f"Share of opposed pairs of examples by label in {layer}",
                "For every two labels, the share of pairs of their examples, in percent, whose gradients have a cosine "
                f"below {-contention.options.cosine:g}, averaged over seeds and "
                f"{pluralise(len(contention.checkpoints), 'iteration')}.",
                contention_plots.label_matrix(share, recording.classes[1], f"Opposed pairs of examples in {layer}, %"),
            )


def composition(recording: Recording, group: Int[np.ndarray, " m"]) -> str:
    """Describe how many examples a group has, and with which labels."""
    counts = label_counts(recording, group).split("; ")
    if len(counts) == 1:
        of_label = f" of label {label_text(recording, group[0])}" if recording.contents.classes else ""
        return f"{pluralise(len(group), 'example')}{of_label}"
    rest = f", {len(counts) - 3} more" if len(counts) > 3 else ""
    return f"{pluralise(len(group), 'example')} (labels {', '.join(counts[:3])}{rest})"


def _verdict(fight: Fight, alike: str) -> str:
    if fight.p is None:
        return f"Not tested: {fight.reason}."
    outcome = "more in antiphase than they" if fight.survives else "no more in antiphase than they"
    return (
        f"From one iteration to the next their losses change with a correlation of {fight.loss_correlation:.2f}, those "
        f"of random coherent groups of like {alike} and norms with {fight.matched_correlation:.2f}; p = "
        f"{fight.p:.3g}, {fight.corrected:.2g} after correction: {outcome}."
    )
