"""The text on the page about gradients in motion, cones and contention."""

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from train_dynamics.config import pluralise
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.sketch import sketch_error
from train_dynamics.study.cones import ConeOptions, Cones
from train_dynamics.study.contention import NUM_CONTROLS, SIGNIFICANT, WINDOW, Contention
from train_dynamics.study.groups import quartiles
from train_dynamics.study.results import Results
from train_dynamics.study.tables import label_counts

LISTED = 10


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure for the page: its words, its PNG file, and whether it is taller than wide."""

    title: str
    caption: str
    file: Path
    square: bool

    @property
    def source(self) -> str:
        """The picture's data."""
        return _address(self.file, "image/png")


@dataclasses.dataclass(frozen=True)
class Film:
    """A film for the page."""

    title: str
    caption: str
    file: Path

    @classmethod
    def of(cls, file: Path, seed: int, iterations: Int[np.ndarray, " t"]) -> "Film":
        """Describe a film of all examples."""
        steps = sorted(set(np.diff(iterations).tolist())) or [1]
        step = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        return cls(
            f"All examples in motion: seed {seed}, iterations {iterations[0]:,} to {iterations[-1]:,}, "
            f"{step} updates per frame",
            "The axes stay the same. A disc is an example classified correctly, a cross one that is not.",
            file,
        )

    @property
    def source(self) -> str:
        """The film's data."""
        return _address(self.file, "video/mp4")


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: text, then a film, pictures and a table. Columns are lists of cells by name."""

    title: str
    words: str = ""
    films: Sequence[Film] = ()
    pictures: Sequence[Picture] = ()
    table: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    table_title: str = ""

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table, row by row."""
        return list(zip(*self.table.values(), strict=True))


def motion_section(films: Sequence[Film], pictures: Sequence[Picture]) -> Section:
    """Write the section with the film and its key frames."""
    return Section(
        "Gradients in motion",
        "Every example is a point. The horizontal axis is its gradient norm, the vertical axis its alignment: the "
        "cosine with the mean gradient. The crowd moves right while a network learns, and an example comes back to "
        "the left once it is learned.",
        films,
        pictures,
    )


def groups_section(recording: Recording, results: Results, pictures: Sequence[Picture]) -> Section:
    """Write the section on groups of examples, with a table of the start, the middle and the end."""
    found, layers = results.group_dynamics, recording.gradient_layers
    classes = recording.contents.classes
    words = (
        "How far do examples pull together? Four published measures of the gradients of each recorded layer "
        f"at {len(found.checkpoints):,} of {pluralise(len(results.iterations), 'record')}, and one of the losses: m-"
        "coherence (Chatterjee and Zielinski, 2020), the simple noise scale (McCandlish et al., 2018), gradient "
        f"confusion (Sankararaman et al., 2020), stiffness{' by class' if classes else ''} (Fort et al., 2019), "
        "opposing signals (Rosenfeld and Risteski, 2023). group_dynamics.csv has every curve"
        f"{', also of each pair of classes' if classes else ''}; opposing_signals.csv tells how often each example was "
        "at either extreme."
    )
    rows = [
        (
            layer,
            f"{found.checkpoints[k]:,}",
            *(_three(quartiles(curve)[1, k]) for curve in found.layers[layer][:2]),
            *(_three(float(curve[:, k].mean())) for curve in found.layers[layer][2:6]),
        )
        for layer in layers
        for k in dict.fromkeys((0, len(found.checkpoints) // 2, len(found.checkpoints) - 1))
    ]
    names = ("layer", "iteration", "m-coherence", "noise scale", "confusion of batches", "smallest cosine of batches")
    names += ("stiffness within classes", "stiffness between classes") if classes else ("stiffness",)
    title = (
        "At the first, the middle and the last record measured. M-coherence and noise scale are medians over seeds, "
        "the others means"
    )
    return Section("Groups of examples", words, pictures=pictures, table=_columns(names, rows), table_title=title)


def cones_section(
    recording: Recording, options: ConeOptions, found: Sequence[Cones], pictures: Sequence[Picture]
) -> Section:
    """Write the section on cones, with a table of the largest ones in each layer."""
    first, half = found[0], "three quarters" if len(recording.class_names) == 2 else "half"
    classes = recording.contents.classes
    learned = f"it classifies {half} of the examples correctly" if classes else f"{half} of its loss is gone"
    chosen = (
        f"the first at which {learned}, or the last if there is none" if options.iteration is None else "as asked for"
    )
    promise = (
        f"whose gradients have pairwise cosines of at least {options.cosine:g}"
        if options.cover == "clique"
        else f"whose gradients have a cosine of at least {options.cosine:g} to that of a central one"
    )
    words = (
        f"Cones are sets of examples {promise}, so one step suits them all. These are those of seed {first.seed} at "
        f"iteration {first.frame.iteration}, {chosen}; a greedy {options.cover} cover found them."
    )
    rows = []
    for cones in found:
        shared = cones.sizes[cones.sizes > 1]
        zero = np.count_nonzero(cones.cone < 0)
        words += (
            f" In {cones.layer}, {shared.sum():,} of {pluralise(len(cones.cone), 'example')} share "
            f"{pluralise(len(shared), 'cone')}; {len(cones.sizes) - len(shared):,} are alone, and {zero:,} "
            "have a zero gradient and no direction."
        )
        for cone in range(min(LISTED, len(shared))):
            members = cones.members(cone)
            rows.append(
                (
                    cones.layer,
                    str(cone),
                    f"{len(members)}",
                    label_counts(recording, members),
                    f"{cones.smallest_cosine[cone]:.3f}",
                    f"{cones.frame.cosine[0, members].mean():.3f}",
                    "" if np.isnan(right := cones.frame.correct[members].mean()) else f"{right:.1%}",
                )
            )
    names = ("layer", "cone", "size", "label:count", "smallest cosine", "mean alignment", "accuracy")
    table = _columns(names, rows)
    if not classes:
        table = {name: cells for name, cells in table.items() if name not in ("label:count", "accuracy")}
    words += sketch_words(recording)
    return Section("Cones", words, pictures=pictures, table=table, table_title="The largest cones")


def sketch_words(recording: Recording) -> str:
    """Describe how accurate cosines between sketches are. Empty if there are no sketches."""
    size = recording.config.sketch_size
    sketched = [kept for kept in recording.contents.layers.values() if kept.layout == "sketch"]
    errors = {kept.name: sketch_error(kept.layer, size).cosine for kept in sketched}
    unsure = {name: error for name, error in errors.items() if error}
    if not unsure:
        return ""
    layers = ", ".join(f"{error:.2g} in {name}" for name, error in unsure.items())
    return (
        f" Some gradients were recorded as sketches of at most {size} numbers. Cosines between them have "
        f"a standard error, at most, of: {layers}; it is smaller near 1 and -1."
    )


def contention_section(recording: Recording, contention: Contention, pictures: Sequence[Picture]) -> Section:
    """Write the section on pairs in contention, and say clearly which of them survive the test."""
    options, fights = contention.options, contention.fights
    classes = recording.contents.classes
    labels, alike = ("labels", "sizes, labels") if classes else ("targets", "sizes")
    counted = "label:count" if classes else "size"
    tested = [fight for fight in fights if fight.p is not None]
    survivors = sum(fight.survives for fight in tested)
    to = "the centre of a cone, its mean direction," if options.opposed_to == "centre" else "every member of a cone"
    words = (
        f"Two groups are in contention when the gradients of one have a cosine below {-options.cosine:g} to {to} with "
        f"at least {pluralise(options.smallest, 'example')} on either side: what helps one harms the other. "
        f"Looked for at {pluralise(len(contention.checkpoints), 'iteration')} of "
        f"{pluralise(len(recording.seeds), 'seed')}, "
    )
    if options.examples is not None and options.examples < len(recording.labels):
        words += f"among {options.examples:,} of {pluralise(len(recording.labels), 'example')}, drawn at random, "
    if not fights:
        words += "no pair was found: at those iterations no cone of that size has that many examples against it."
    else:
        words += (
            f"{pluralise(len(fights), 'pair')} found. Strength is how much of the mean gradient the two cancel: "
            "the length of the smaller group's part of it. Opposition is partly algebra:  two examples with the same "
            f"activations and different {labels} oppose each other by construction. So pairs are followed for up to "
            f"{WINDOW} records after they were found. "
        )
        words += (
            f"The {len(tested):,} that could be tested were each compared with {NUM_CONTROLS} random pairs of groups "
            f"of the same {alike} and gradient norms, gathered around a random example so that members are similar "
            f"too: {survivors:,} of {len(tested):,} are more in antiphase than those, at a false discovery rate of "
            f"{SIGNIFICANT:.0%} (Benjamini and Hochberg): about as large a share of the survivors may be there by "
            "chance, as long as pairs that share examples or iterations depend on each other positively. No p can be "
            f"below {1 / (NUM_CONTROLS + 1):g}. To survive means that {alike} and norms alone do not explain the "
            "antiphase; groups that oppose each other a little less would also show some. "
            f"{pluralise(len(fights) - len(tested), 'pair')} could not be tested; contention.csv says why. Shown are "
            "the strongest that survive, before others."
            if tested
            else "None of them could be tested; the table says why."
        )
    words += sketch_words(recording)
    rows = [
        (
            str(k),
            str(recording.seeds[fight.pair.seed]),
            fight.pair.layer,
            f"{fight.pair.iteration:,}",
            label_counts(recording, fight.pair.left) if classes else str(len(fight.pair.left)),
            label_counts(recording, fight.pair.right) if classes else str(len(fight.pair.right)),
            f"{fight.pair.cosine:.2f}",
            f"{fight.pair.strength:.3g}",
            _two(fight.loss_correlation),
            _two(fight.matched_correlation),
            "" if fight.corrected is None else f"{fight.corrected:.2g}",
            fight.reason or ("survives" if fight.survives else "does not survive"),
        )
        for k, fight in enumerate(fights[:LISTED])
    ]
    names = (
        *("pair", "seed", "layer", "found at", f"left, {counted}", f"right, {counted}", "cosine", "strength"),
        *("correlation of losses", "of matched groups", "p, corrected", "verdict"),
    )
    title = "The strongest pairs" if rows else ""
    return Section("Contention", words, pictures=pictures, table=_columns(names, rows), table_title=title)


def _columns(names: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    return {name: [row[k] for row in rows] for k, name in enumerate(names)} if rows else {}


def _three(value: float) -> str:
    return "" if np.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _address(file: Path, kind: str) -> str:
    return f"data:{kind};base64," + base64.b64encode(file.read_bytes()).decode()
