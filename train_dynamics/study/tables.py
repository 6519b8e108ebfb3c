"""Results as CSV files, and scores as Parquet too."""

import csv
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from train_dynamics.dynamics.scores.registry import SCORES
from train_dynamics.recording.format import written_whole
from train_dynamics.recording.reader import Recording
from train_dynamics.study.cones import Cones
from train_dynamics.study.contention import Contention
from train_dynamics.study.groups import quartiles
from train_dynamics.study.lineages import Lineages, Persistence
from train_dynamics.study.oscillation import STEPS, TIMES, Oscillation, holding
from train_dynamics.study.results import Results
from train_dynamics.study.scores import ScoreOptions, study_of

if TYPE_CHECKING:
    from train_dynamics.study.score_agreement import ScoreStudy

PARTS = {
    "scores": ("score_correlations.csv", "score_stability.csv", "label_noise.csv"),
    "groups": ("group_dynamics.csv", "opposing_signals.csv"),
    "motion": ("scatter.mp4",),
    "cones": ("cones.csv", "cone_members.csv"),
    "lineages": (
        *("cone_lineages.csv", "cone_events.csv", "lineage_persistence.csv", "lineage_continuity.csv"),
        "cone_lineage_members.parquet",
    ),
    "contention": ("contention.csv", "contention_members.csv", "label_opposition.csv"),
    "oscillation": ("oscillation.csv", "oscillation.json"),
    "histories": (),  # which are stored in the recording
}
"""What an analysis has beside the study's own curves, examples and claims, and the files of each other than figures."""
DEFAULT_PARTS = tuple(part for part in PARTS if part != "oscillation")
"""What an analysis looks at unless told; to follow all pairs in contention takes as long as all else."""
FIRST = ("example", "id", "label", "agr", "rank", "chunk", "first_correct", "last_mistake", "forgotten", "true_label")
ABOUT = {
    "example": "position of the example in the recording",
    "id": "name of the example in its data set",
    "label": "class that the example was trained on",
    "rank": "place among all examples, by agr, by cumulative_loss for a single seed, or by what --rank_by names; 0 is "
    "the most typical",
    "chunk": "tenth of that ranking; 0 is the most typical",
    "last_mistake": "last iteration at which the example is wrong, in updates, averaged over seeds; -1 if never",
    "forgotten": "how often wrong at a record after right at the one before, averaged over seeds; 0 if never right",
    "true_label": "class that the data set gives the example: another than label if that was flipped",
}


def files_of_parts(recording: Recording, parts: Collection[str]) -> list[str]:
    """List the files, other than figures, that some parts of an analysis write."""
    names = (name for part, names in PARTS.items() if part in parts for name in names)
    return [name for name in names if name != "label_noise.csv" or recording.noisy.any()]


def score_columns(recording: Recording, results: Results) -> dict[str, np.ndarray]:
    """List the columns of the table of examples: first facts about each example, then one column per score.

    Iterations and counts are averaged over seeds. What was not computed is NaN, but still has a column, so that the
    tables of different recordings have the same columns. If a seed never classifies an example correctly, its
    `first_correct` counts as the iteration after the last. If an example is never wrong, its `last_mistake` counts as
    -1.
    """
    nothing = np.full(len(recording.labels), np.nan)
    first_correct = last_mistake = forgotten = nothing
    if results.forgetting is not None:
        first_correct, last_mistake, forgotten = (
            getattr(results.forgetting, name).mean(axis=0) for name in ("first_correct", "last_mistake", "forgotten")
        )
    columns = dict.fromkeys((score.name for score in SCORES), nothing)
    columns |= results.scores.values if results.scores else {}
    if results.agr is not None:
        columns["agr"] = results.agr
    elif not results.given:
        columns["cumulative_loss"] = results.ranking
    columns["first_correct"] = first_correct
    columns |= {
        "example": np.arange(len(recording.labels)),
        "id": recording.ids,
        "label": recording.labels,
        "rank": results.rank,
        "chunk": results.chunk,
        "last_mistake": last_mistake,
        "forgotten": forgotten,
        "true_label": recording.true_labels,
    }
    return {name: columns[name] for name in (*FIRST, *(score.name for score in SCORES if score.name not in FIRST))}


def write_scores(recording: Recording, results: Results, path: Path) -> None:
    """Write one row per example. Values that were not computed are empty."""
    columns = score_columns(recording, results)
    cells = [_decimal(values) if values.dtype.kind == "f" else values for values in columns.values()]
    _write(path, list(columns), zip(*cells, strict=True))


def write_scores_parquet(recording: Recording, results: Results, path: Path) -> None:
    """Write the same as Parquet, with formula, unit, source and hard end in each column's metadata.

    Values that were not computed are null.
    """
    import pyarrow as pa  # a third of a second, which no other table needs
    from pyarrow import parquet

    if results.scores:
        missing = results.scores.missing
    else:
        study = study_of(recording, ScoreOptions())
        missing = {score.name: score.missing(study) or "scores were not asked for" for score in SCORES}
        for there in ("agr" if results.agr is not None else results.ranked_by, "first_correct"):
            missing.pop(there, None)
    about = {
        score.name: {
            "hard": score.hard,
            "unit": score.unit,
            "formula": score.formula,
            "source": score.source,
            "missing": missing.get(score.name, ""),
        }
        for score in SCORES
    }
    arrays, fields = [], []
    for name, values in score_columns(recording, results).items():
        text = values.dtype.kind in "SUO"
        arrays.append(pa.array(_texts(values) if text else values, from_pandas=values.dtype.kind == "f"))
        metadata = {key: value for key, value in (about.get(name) or {"about": ABOUT[name]}).items() if value}
        fields.append(pa.field(name, arrays[-1].type, metadata=metadata))
    with written_whole(path) as new:
        parquet.write_table(pa.table(arrays, pa.schema(fields, metadata={"key": "id"})), new)


def write_correlations(results: Results, study: "ScoreStudy", path: Path) -> None:
    """Write Spearman's rank correlation between every two scores, with high meaning hard in both."""
    names = [score.name for score in results.scores.scores]
    _write(path, ["score", *names], ((name, *_decimal(study.correlations[k])) for k, name in enumerate(names)))


def write_stability(results: Results, study: "ScoreStudy", path: Path) -> None:
    """Write how far rankings from fewer seeds, or from a shorter recording, agree with the full one."""
    from train_dynamics.study.score_agreement import stability_rows  # half a second to import

    rows = (
        (name, against, value, *_decimal(correlations), draws)
        for name, against, value, *correlations, draws in stability_rows(results.scores, study)
    )
    _write(path, ("score", "against", "value", "mean", "smallest", "largest", "draws"), rows)


def write_label_noise(results: Results, study: "ScoreStudy", path: Path) -> None:
    """Write how well each score finds wrong labels."""
    rows = (
        (score.name, score.hard, *_decimal((precision, area)))
        for score, precision, area in zip(results.scores.scores, study.precision, study.auc, strict=True)
    )
    _write(path, ("score", "hard", "precision", "auc"), rows)


def write_curves(results: Results, path: Path) -> None:
    """Write mean and standard deviation over seeds of every curve. The divisor is the number of seeds."""
    rows = (
        (metric, group, t, mean, std)
        for metric, curve in results.curves.items()
        for g, group in enumerate(results.groups)
        for t, mean, std in zip(
            results.iterations, _decimal(curve[..., g].mean(axis=0)), _decimal(curve[..., g].std(axis=0)), strict=True
        )
    )
    _write(path, ["metric", "group", "iteration", "mean", "std"], rows)


def write_cones(recording: Recording, found: Sequence[Cones], path: Path) -> None:
    """Write one row per cone of at least two examples and layer. `labels` counts them, the most frequent first."""
    rows = (
        (
            cones.seed,
            cones.layer,
            cones.frame.iteration,
            cone,
            size,
            label_counts(recording, members := cones.members(cone)),
            *_decimal(
                (
                    cones.smallest_cosine[cone],
                    cones.frame.cosine[0, members].mean(),
                    cones.frame.correct[members].mean(),
                )
            ),
        )
        for cones in found
        for cone, size in enumerate(cones.sizes)
        if size > 1
    )
    header = ("seed", "layer", "iteration", "cone", "size", "labels", "smallest_cosine", "mean_alignment", "accuracy")
    _write(path, header, rows)


def write_cone_members(recording: Recording, found: Sequence[Cones], path: Path) -> None:
    """Write one row per example in a cone, and layer. Cones of one example are included."""
    rows = (
        (cones.seed, cones.layer, cones.frame.iteration, cone, n, recording.ids[n], recording.labels[n])
        for cones in found
        for cone in range(len(cones.sizes))
        for n in cones.members(cone)
    )
    _write(path, ("seed", "layer", "iteration", "cone", "example", "id", "label"), rows)


def write_contention(recording: Recording, contention: Contention, path: Path) -> None:
    """Write one row per pair, the strongest first. If it was not tested, cells are empty and a reason is given."""
    rows = (
        (
            k,
            recording.seeds[pair.seed],
            pair.layer,
            pair.iteration,
            pair.last,
            pair.sightings,
            len(pair.left),
            len(pair.right),
            label_counts(recording, pair.left),
            label_counts(recording, pair.right),
            *_decimal((pair.cosine, pair.strength)),
            *_decimal(
                (
                    fight.accuracy_correlation,
                    fight.loss_correlation,
                    fight.matched_correlation,
                    fight.p,
                    fight.corrected,
                )
            ),
            str(fight.survives).lower() if fight.p is not None else "",
            fight.reason,
        )
        for k, fight in enumerate(contention.fights)
        for pair in (fight.pair,)
    )
    header = (
        *("pair", "seed", "layer", "iteration", "last_seen", "sightings"),
        *("left_size", "right_size", "left_labels", "right_labels", "cosine", "strength"),
        *("accuracy_correlation", "loss_correlation", "matched_correlation", "p", "p_corrected", "survives", "reason"),
    )
    _write(path, header, rows)


def write_label_opposition(recording: Recording, contention: Contention, path: Path) -> None:
    """Write one row for every two labels, including a label with itself, and layer.

    `share` is the share of pairs of their examples whose gradients are opposed, averaged over seeds and examined
    iterations.
    """
    names = recording.classes[1]
    rows = (
        (layer, names[a], names[b], *_decimal([share[a, b]]))
        for layer, share in contention.label_opposition.items()
        for a in range(len(names))
        for b in range(a, len(names))
    )
    _write(path, ("layer", "label", "other_label", "share"), rows)


def write_contention_members(recording: Recording, contention: Contention, path: Path) -> None:
    """Write one row per example on each side of each pair."""
    rows = (
        (k, side, n, recording.ids[n], recording.labels[n])
        for k, fight in enumerate(contention.fights)
        for side, group in (("left", fight.pair.left), ("right", fight.pair.right))
        for n in group
    )
    _write(path, ("pair", "side", "example", "id", "label"), rows)


def write_lineages(recording: Recording, found: Sequence[Lineages], path: Path) -> None:
    """Write one row per lineage and iteration at which it exists.

    `joined` counts members that were not in it when it was last seen, `left` those that were and no longer are, and
    `founders` those that were there at its birth.
    """
    header = ("seed", "layer", "lineage", "iteration", "size", "labels", "joined", "left", "founders")
    _write(path, header, (row for one in found for row in _lineage_rows(recording, one)))


def _lineage_rows(recording: Recording, one: Lineages) -> Iterator[tuple]:
    labels, names = recording.classes
    everyone, (first, _) = np.arange(len(labels)), one.span()
    sizes = one.sizes
    kept, founders, of_label = np.zeros_like(sizes), np.zeros_like(sizes), []
    last = np.full(one.count, -1)  # the cover at which each lineage was seen last
    before = np.zeros_like(sizes)  # and its members there
    for t, row in enumerate(one.lineage):
        there = row >= 0
        earlier = last[row[there]]
        stayed = (earlier >= 0) & (one.lineage[earlier, everyone[there]] == row[there])
        kept[t] = np.bincount(row[there][stayed], minlength=one.count)
        before[t] = np.where(last >= 0, sizes[last, np.arange(one.count)], 0)
        last[sizes[t] > 0] = t
        founding = one.lineage[first[row[there]], everyone[there]] == row[there]
        founders[t] = np.bincount(row[there][founding], minlength=one.count)
        counts = np.bincount(row[there] * len(names) + labels[there], minlength=one.count * len(names))
        of_label.append(counts.reshape(-1, len(names)))
    for lineage in range(one.count):
        for t in np.flatnonzero(sizes[:, lineage]):
            size, stayed = sizes[t, lineage], kept[t, lineage]
            left = before[t, lineage] - stayed
            words = _counted(names, of_label[t][lineage])
            yield (
                *(one.seed, one.layer, lineage, one.iterations[t]),
                *(size, words, size - stayed, left, founders[t, lineage]),
            )


def write_events(found: Sequence[Lineages], path: Path) -> None:
    """Write one row per event. `iteration` is that of the cover at which it is seen.

    `other` is the lineage that this one came from or went into. It is empty if there is none.
    """
    rows = (
        (
            *(one.seed, one.layer, one.iterations[event.step], event.kind, event.lineage),
            *("" if event.other < 0 else event.other, event.before, event.after, event.shared),
        )
        for one in found
        for event in one.events
    )
    _write(path, ("seed", "layer", "iteration", "event", "lineage", "other", "before", "after", "shared"), rows)


def write_persistence(found: Sequence[Persistence], path: Path) -> None:
    """Write how far cones stay together some covers later, compared with groups drawn at random.

    One row per layer and lag. `updates` is the lag in updates; it is empty if records are not evenly spaced.
    """
    rows = (
        (
            *(one.layer, lag, "" if one.updates is None else one.updates[lag], one.groups[lag]),
            *_decimal((one.together[lag], *one.interval[:, lag], one.by_chance[lag], *one.chance_interval[:, lag])),
        )
        for one in found
        for lag in range(len(one.groups))
    )
    shares = [f"{name}{end}" for name in ("together", "by_chance") for end in ("", "_low", "_high")]
    _write(path, ("layer", "lag", "updates", "groups", *shares), rows)


def write_continuity(found: Sequence[Lineages], path: Path) -> None:
    """Write which share of each cover's cones the next one continues, compared with groups drawn at random.

    One row per seed, layer and iteration. Shares are empty where there are no cones.
    """
    rows = (
        (one.seed, one.layer, one.iterations[t], np.count_nonzero(one.step == t), *_decimal(shares))
        for one in found
        for t, shares in enumerate(zip(one.continued, one.continued_by_chance, strict=True))
    )
    _write(path, ("seed", "layer", "iteration", "cones", "continued", "by_chance"), rows)


def write_lineage_members(found: Sequence[Lineages], path: Path) -> None:
    """Write one row per example in a lineage and iteration, as Parquet, because there may be millions."""
    import pyarrow as pa  # a third of a second, which no other table but that of scores needs
    from pyarrow import parquet

    kinds = {"seed": pa.int32(), "layer": pa.string(), "iteration": pa.int32(), "lineage": pa.int32()}
    schema = pa.schema({**kinds, "example": pa.int32()})
    with written_whole(path) as new, parquet.ParquetWriter(new, schema, compression="zstd") as writer:
        for one in found:  # a row group each, so that those of one seed and layer are found without the others
            t, example = np.nonzero(one.lineage >= 0)
            columns = [
                np.full(len(t), one.seed),
                np.repeat([one.layer], len(t)),
                *(one.iterations[t], one.lineage[t, example], example),
            ]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema))


def write_oscillation(recording: Recording, found: Oscillation, path: Path) -> None:
    """Write one row per pair, numbered as in `contention.csv`: every step, with its matched pairs. Times in records.

    Cells are empty if there is no value, or if it could not be compared.
    """
    steps = [f"{step.name}{of}" for step in STEPS for of in ("", "_matched", "_p", "_p_corrected", "_holds")]
    times = [f"{name}{of}" for name in TIMES for of in ("", "_matched")]
    holds = holding(found)
    rows = (
        (
            k,
            recording.seeds[pair.seed],
            pair.layer,
            pair.iteration,
            0 if found.courses[k] is None else len(found.records[k]),
            *(
                cell
                for m in range(len(STEPS))
                for cell in (
                    *_decimal(of[k, m] for of in (found.value, found.matched, found.p, found.corrected)),
                    "" if math.isnan(found.corrected[k, m]) else str(bool(holds[k, m])).lower(),
                )
            ),
            *_decimal(of[k, m] for m in range(len(TIMES)) for of in (found.times, found.matched_times)),
            found.reasons[k],
        )
        for k, pair in enumerate(found.pairs)
    )
    _write(path, ("pair", "seed", "layer", "iteration", "records", *steps, *times, "reason"), rows)


def write_group_dynamics(recording: Recording, results: Results, path: Path) -> None:
    """Write mean, standard deviation and quartiles over seeds of everything measured of groups.

    `group` is `all`, `batches`, `within` and `between` classes, two classes as `4/9`, or `risers` and `fallers`. The
    layer is empty for what does not belong to a layer. Mean and deviation are empty if a seed has no value; for
    quartiles that seed counts as infinite.
    """
    found, names = results.group_dynamics, recording.classes[1]
    curves = []
    for layer, measures in found.layers.items():
        curves += [
            ("m_coherence", layer, "all", measures.m_coherence),
            ("noise_scale", layer, "all", measures.noise_scale),
            ("gradient_confusion", layer, "batches", measures.gradient_confusion),
            ("smallest_cosine", layer, "batches", measures.smallest_cosine),
            ("stiffness", layer, "within", measures.stiffness_within),
            ("stiffness", layer, "between", measures.stiffness_between),
        ]
        curves += [
            ("stiffness", layer, f"{names[a]}/{names[b]}", measures.stiffness[..., a, b])
            for a in range(measures.stiffness.shape[-1])
            for b in range(a, measures.stiffness.shape[-1])
        ]
    curves += [("loss_change", "", group, curve) for group, curve in found.opposing.curves.items()]
    rows = (
        (metric, layer, group, t, *of_seeds)
        for metric, layer, group, curve in curves
        for t, *of_seeds in zip(
            found.checkpoints if layer else results.iterations[:-1],
            *map(_decimal, (curve.mean(axis=0), curve.std(axis=0), *quartiles(curve))),
            strict=True,
        )
    )
    statistics = ("mean", "std", "lower_quartile", "median", "upper_quartile")
    _write(path, ("metric", "layer", "group", "iteration", *statistics), rows)


def write_opposing_signals(recording: Recording, results: Results, path: Path) -> None:
    """Write one row per example: how often its loss was among the extreme ones, averaged over seeds."""
    opposing = results.group_dynamics.opposing
    columns = {
        "example": range(len(recording.labels)),
        "id": recording.ids,
        "label": recording.labels,
        "risen": _decimal(opposing.risen.mean(axis=0)),
        "fallen": _decimal(opposing.fallen.mean(axis=0)),
    }
    _write(path, list(columns), zip(*columns.values(), strict=True))


def label_counts(recording: Recording, members: Int[np.ndarray, " m"]) -> str:
    """Count the labels of a group, the most frequent first, as `4:131; 9:2`."""
    labels, names = recording.classes
    return _counted(names, np.bincount(labels[members], minlength=len(names)))


def _counted(names: Sequence[str], count: Int[np.ndarray, " c"]) -> str:
    order = np.argsort(-count, kind="stable")
    return "; ".join(f"{names[label]}:{count[label]}" for label in order if count[label])


def _decimal(values: Iterable[float | np.floating | None]) -> list[str]:
    return ["" if value is None or math.isnan(value) else f"{value:.9g}" for value in values]


def _texts(values: np.ndarray) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]


def _write(path: Path, header: Sequence[str], rows: Iterable[tuple]) -> None:
    with written_whole(path) as new, new.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
