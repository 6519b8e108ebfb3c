"""All figures of the study, by name."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from train_dynamics.plots import curves, grids
from train_dynamics.recording import Recording
from train_dynamics.results import NUM_CHUNKS, Results, metric_name

SHOWN = {"top tenth (chunk 0)": 1, "middle tenth (chunk 5)": 6, "bottom tenth (chunk 9)": NUM_CHUNKS, "all examples": 0}


def figures(recording: Recording, results: Results) -> Iterator[tuple[str, Figure]]:
    """Draw one figure after the other, each with the name of its file."""
    found = results.curves
    yield "accuracy", curves.accuracy(found["accuracy"][..., 0])
    yield (
        "chunk_accuracy",
        curves.by_chunk(found["accuracy"][..., 1:], "accuracy of the chunk", "Accuracy of each chunk", share=True),
    )
    layers = recording.config.layers
    for layer in layers:
        for metric, label, title in (
            ("alignment", "cosine to the mean gradient", "Alignment of each chunk"),
            ("gradient_norm", "L2 norm of the gradient (nats per unit of weight)", "Gradient norm of each chunk"),
        ):
            name = metric_name(layers, layer, metric)
            title = f"{title} in {layer}"
            yield name.replace("/", "_"), curves.by_chunk(found[name][..., 1:], label, title, share=False)
    groups = list(SHOWN.values())
    yield (
        "learning",
        curves.learning(
            *(found[metric][..., groups] for metric in ("first_correct", "accuracy", "last_mistake")), list(SHOWN)
        ),
    )
    order = np.argsort(results.rank)
    shown = min(grids.SIDE**2, len(order))
    for name, words, chosen in (
        ("random", "random examples", np.sort(np.random.default_rng(0).choice(len(order), shown, replace=False))),
        ("typical", "most typical examples", order[:shown]),
        ("atypical", "most atypical examples", order[::-1][:shown]),
    ):
        labels = [recording.class_names[label] for label in recording.labels[chosen]]
        low, high = results.agr[chosen].min(), results.agr[chosen].max()
        title = f"{shown} {words}, each below its label; AGR {low:.2g} to {high:.2g} nats"
        yield f"examples_{name}", grids.image_grid(recording.images[chosen], labels, title)
