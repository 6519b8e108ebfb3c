"""Ask which curves of a recording are properties of the examples, and which of the ranking that divides them.

    python -m benchmarks.rankings --recording=DIR --own=ANALYSIS --other=ANALYSIS [--output=FIGURE]

The examples are ranked by every score of two analyses: one of the recording itself, and one of a recording of the same
examples and other seeds. For each ranking the study's claims about chunks are measured, in one pass over the recording.
The table is in Markdown; the figure has the curves of three chunks under AGR of the same seeds and of the others.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from train_dynamics.config import InputError
from train_dynamics.dynamics.agreement import chunks, ranks
from train_dynamics.dynamics.forgetting import Forgetting
from train_dynamics.dynamics.groups import group_weights
from train_dynamics.dynamics.scores.registry import SCORES
from train_dynamics.recording.reader import Recording
from train_dynamics.study.claims import claims
from train_dynamics.study.motion import each_alignment
from train_dynamics.study.ranking import read_ranking
from train_dynamics.study.results import NUM_CHUNKS, SHARE, Results, forgetting_curves

RECORDING = flags.DEFINE_string("recording", "recordings/mini_mnist", "The recording, of one layer.")
OWN = flags.DEFINE_string("own", "recordings/mini_mnist/analysis", "An analysis of it.")
OTHER = flags.DEFINE_string("other", None, "An analysis of the same examples and other seeds.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Figure to draw, without its suffix; none if not given.")
SHOWN = ("typical_learned_early", "learned_in_order", "atypical_learned_slowly", "typical_most_aligned")
SHOWN += ("typical_dominate", "norm_rises_with_chunk", "uncertainty_widens", "typical_not_forgotten")


def all_curves(recording: Recording, weights: np.ndarray) -> tuple[dict[str, np.ndarray], Forgetting]:
    """Read the recording once, for the means over many groups."""
    (layer,) = recording.layers
    forgetting = Forgetting(len(recording.seeds), len(recording.labels))
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("accuracy", "alignment", "gradient_norm", SHARE)}
    single = weights.astype(np.float32)
    for block in recording.blocks():
        correct = block.read("prediction") == recording.labels
        forgetting.add(correct, block.iterations)
        found["accuracy"].append(correct.astype(np.float32) @ single)
        rows = [
            np.stack([np.stack([of.cosine, of.norm, of.cosine * of.norm]) @ single for _, of in of_seeds])
            for of_seeds in each_alignment(recording, block, layer)
        ]
        cosine, norm, along = np.moveaxis(np.stack(rows), (2, 1), (0, 1))
        shares = along * (np.count_nonzero(weights, axis=0) / len(weights)) / along[..., :1]
        for name, values in (("alignment", cosine), ("gradient_norm", norm), (SHARE, shares)):
            found[name].append(values)
    return {name: np.concatenate(values, axis=1) for name, values in found.items()}, forgetting


def draw(curves: dict[str, dict[str, np.ndarray]], iterations: np.ndarray, output: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from train_dynamics.plots.style import SEQUENCE, save, styled

    words = {
        "accuracy": "accuracy",
        "alignment": "alignment",
        "gradient_norm": "gradient norm",
        SHARE: "share of mean gradient",
    }
    with styled():
        figure = Figure(figsize=(12.5, 3.6))
        for axes, (metric, title) in zip(figure.subplots(1, 4), words.items(), strict=True):
            for k, name in ((0, "chunk 0"), (5, "chunk 5"), (9, "chunk 9")):
                for of, style in (("own", "-"), ("other", "--")):
                    color = matplotlib.colormaps[SEQUENCE](0.92 * k / 9)
                    label = f"{name}, AGR of {'the same' if of == 'own' else 'ten other'} networks"
                    axes.plot(
                        iterations, curves[of][metric].mean(axis=0)[:, k + 1], style, color=color, label=label, lw=1.3
                    )
            axes.set(title=title, xlabel="iteration", xscale="symlog")
            axes.set_xlim(0, iterations[-1])
            axes.set_xticks([0, 10, 100, 1000], ["0", "10", "100", "1,000"])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        save(figure, output)


def main(arguments: Sequence[str]) -> None:
    recording = Recording(RECORDING.value)
    rankings, groups = [], [group_weights(np.zeros(len(recording.labels), int), 1)]
    for of, where in (("own", OWN.value), ("other", OTHER.value)):
        for score in SCORES:
            try:
                given = read_ranking(recording, f"{where}/scores.csv:{score.name}")
            except InputError:  # which was not computed there
                continue
            chunk = chunks(ranks(given.values), NUM_CHUNKS)
            rankings.append((score.name, of, given, chunk))
            groups.append(group_weights(chunk, NUM_CHUNKS))
    curves, forgetting = all_curves(recording, np.concatenate(groups, axis=1))
    print(f"| ranked by | of | {' | '.join(SHOWN)} |\n{'| --- ' * (len(SHOWN) + 2)}|")
    shown = {}
    dead, nothing = np.zeros(len(recording.seeds), bool), np.zeros(0)
    for k, (name, of, given, chunk) in enumerate(rankings):
        columns = [0, *range(1 + NUM_CHUNKS * k, 1 + NUM_CHUNKS * (k + 1))]
        here = {metric: values[..., columns] for metric, values in curves.items()}
        here |= forgetting_curves(forgetting, recording.iterations, chunk, NUM_CHUNKS)
        results = Results(
            recording.iterations, None, nothing, nothing.astype(int), chunk, dead, forgetting, here, given=given.words
        )
        if name == "agr":
            shown[of] = here
        found = {claim.name: claim for claim in claims(results, recording.layers, len(recording.class_names))}
        cells = [
            f"{'yes' if c.holds else 'no' if c.holds is False else 'open'}{' (barely)' if c.barely else ''}"
            + ("" if c.value is None else f" {c.value:.3g}")
            for c in (found[claim] for claim in SHOWN)
        ]
        print(f"| {name} | {of} | {' | '.join(cells)} |", flush=True)
    if OUTPUT.value:
        draw(shown, recording.iterations, Path(OUTPUT.value))


if __name__ == "__main__":
    app.run(main)
