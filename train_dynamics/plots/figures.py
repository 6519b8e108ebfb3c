"""All figures of the study, each with the words that go with it."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from train_dynamics.plots import curves, grids
from train_dynamics.recording import Recording
from train_dynamics.results import NUM_CHUNKS, Results, metric_name

SHOWN = {"top tenth (chunk 0)": 1, "middle tenth (chunk 5)": 6, "bottom tenth (chunk 9)": NUM_CHUNKS, "all examples": 0}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure with its words.

    Attributes:
        name: Name of its files.
        title: What it shows, in a line; also its text for those who cannot see it.
        caption: How to read it and what to look for.
        figure: The figure.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def drawings(recording: Recording, results: Results) -> Iterator[Drawing]:
    """Draw one figure after the other."""
    found = results.curves
    yield Drawing(
        "accuracy",
        "Training accuracy over iterations",
        "Share of all training examples classified correctly after each update. The band is one standard deviation "
        "over seeds: how much a run owes to its start and the order of its batches.",
        curves.accuracy(found["accuracy"][..., 0]),
    )
    yield Drawing(
        "chunk_accuracy",
        "Accuracy of each chunk over iterations",
        "The examples are ranked by how much the trained networks agree on them (AGR), and divided into tenths. The "
        "ranking knows only the end of training; look whether the tenths are nevertheless learned in its order.",
        curves.by_chunk(found["accuracy"][..., 1:], "accuracy of the chunk", "Accuracy of each chunk", share=True),
    )
    layers = recording.config.layers
    for layer in layers:
        name = metric_name(layers, layer, "alignment")
        yield Drawing(
            name.replace("/", "_"),
            f"Alignment of each chunk in {layer} over iterations",
            "Cosine between an example's gradient and the mean gradient of the whole training set, averaged over the "
            "chunk. High means that a step down the mean gradient is the step these examples ask for; near zero, that "
            "they are done or disagree with one another.",
            curves.by_chunk(
                found[name][..., 1:], "cosine to the mean gradient", f"Alignment of each chunk in {layer}", share=False
            ),
        )
        name = metric_name(layers, layer, "gradient_norm")
        yield Drawing(
            name.replace("/", "_"),
            f"Gradient norm of each chunk in {layer} over iterations",
            "L2 norm of an example's gradient, averaged over the chunk: how large a change the example asks for. Look "
            "when the tenths part, and which fall silent.",
            curves.by_chunk(
                found[name][..., 1:],
                "L2 norm of the gradient (nats per unit of weight)",
                f"Gradient norm of each chunk in {layer}",
                share=False,
            ),
        )
    groups = list(SHOWN.values())
    yield Drawing(
        "learning",
        "First correct, accuracy and last mistake of the top, middle and bottom tenth and of all examples",
        "First correct: examples that have been right at least once so far. Last mistake: examples that will not be "
        "wrong again. What lies between, shaded, comes and goes: the wider, the less settled.",
        curves.learning(
            *(found[metric][..., groups] for metric in ("first_correct", "accuracy", "last_mistake")), list(SHOWN)
        ),
    )
    order = np.argsort(results.rank)
    shown = min(grids.SIDE**2, len(order))
    for name, words, chosen, caption in (
        (
            "random",
            "random examples",
            np.sort(np.random.default_rng(0).choice(len(order), shown, replace=False)),
            "Drawn uniformly: what the data set looks like, to compare the next two with.",
        ),
        (
            "typical",
            "most typical examples",
            order[:shown],
            "Lowest AGR first: the trained networks say nearly the same of these.",
        ),
        (
            "atypical",
            "most atypical examples",
            order[::-1][:shown],
            "Highest AGR first: the trained networks differ most on these. Look for odd shapes and doubtful labels.",
        ),
    ):
        labels = [recording.class_names[label] for label in recording.labels[chosen]]
        low, high = results.agr[chosen].min(), results.agr[chosen].max()
        title = f"{shown} {words}, each below its label; AGR {low:.2g} to {high:.2g} nats"
        figure = grids.image_grid(recording.images[chosen], labels, title)
        yield Drawing(f"examples_{name}", f"{shown} {words}", caption, figure)
