"""The page of an analysis: one self-contained HTML file."""

import dataclasses
import math
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import jinja2
import numpy as np

from train_dynamics import __version__
from train_dynamics.config import flag_name, pluralise
from train_dynamics.recording.reader import Recording
from train_dynamics.report.found import found
from train_dynamics.report.sections import Section
from train_dynamics.study.claims import EARLY, LEARNED, RESAMPLES, SURE, Claim, reaches
from train_dynamics.study.cones import ConeOptions
from train_dynamics.study.contention import Contention, ContentionOptions
from train_dynamics.study.lineages import LineageOptions
from train_dynamics.study.results import Results, metric_name
from train_dynamics.study.scores import ScoreOptions
from train_dynamics.study.tables import DEFAULT_PARTS, files_of_parts

FEW_SEEDS = 5  # four have 35 different resamples, five 126
FLAGS = {
    ConeOptions: {"cosine": "cone_cosine", "cover": "cone_cover", "seed": "cone_seed", "iteration": "cone_iteration"},
    ContentionOptions: {
        "opposed_to": "opposed_to",
        "smallest": "smallest_group",
        "checkpoints": "contention_checkpoints",
        "examples": "contention_examples",
    },
    LineageOptions: {"covers": "lineage_covers"},
    ScoreOptions: {"iteration": "score_iteration", "checkpoints": "score_checkpoints"},
}


def page(
    recording: Recording,
    results: Results,
    claims: Sequence[Claim],
    sections: Sequence[Section],
    options: Sequence[ConeOptions | ContentionOptions | ScoreOptions | LineageOptions] = (),
    parts: Collection[str] = DEFAULT_PARTS,
    contention: Contention | None = None,
) -> str:
    """Put everything on one page that needs no other file and no network.

    Args:
        recording: The recording.
        results: What was computed from it.
        claims: Claims of the study, measured.
        sections: The sections to show.
        options: Options of the analysis, for the command that repeats it.
        parts: Parts of the analysis, for that command and for the list of tables.
        contention: The pairs that were found. None if they were not looked for.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("train_dynamics.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    num_seeds, open_together = len(recording.seeds), _open_together(claims)
    own = ", ".join(path.resolve().name for path in recording.paths)  # where the data have no name
    return environment.get_template("page.html.j2").render(
        recording=recording,
        summary=_summary(recording, results),
        found=found(recording, results, contention),
        chunks=(table := _chunk_table(recording, results)),
        rows=list(zip(*table.values(), strict=True)),
        name=own if recording.config.dataset == "arrays" else recording.config.dataset,
        claims=[claim for claim in claims if claim.reason not in open_together],
        open_together=open_together,
        gradient_unit=results.gradient_unit,
        resamples=RESAMPLES,
        distinct=math.comb(2 * num_seeds - 1, num_seeds) if 1 < num_seeds < FEW_SEEDS else None,
        sure=SURE,
        ranked_by=results.ranked_by_words,
        number=_number,
        sections=sections,
        commands=_commands(recording, options, parts, results.given),
        tables=[name for name in files_of_parts(recording, parts) if name.endswith(".csv")],
        settings=_settings(recording),
        versions={**recording.versions, "analysed with train-dynamics": __version__},
    )


def _open_together(claims: Sequence[Claim]) -> dict[str, list[str]]:
    """Group the sentences of open claims that share a reason, if several do."""
    reasons = Counter(claim.reason for claim in claims if claim.holds is None)
    return {
        reason: [claim.sentence for claim in claims if claim.reason == reason]
        for reason, count in reasons.items()
        if count > 1
    }


def _settings(recording: Recording) -> dict[str, str]:
    """List the configuration by flag. For a user's own loop: what the loop told."""
    config = recording.config
    if not recording.of_loop:
        return {f"--{flag_name(name)}": _plain(value) for name, value in config.to_dict().items()}
    told = {name: getattr(config, name) for name in ("layers", "gradient_layout", "learning_rate")}
    batch_size = recording.batch_size or "unknown"
    found = {"loss": config.model, "seeds": tuple(recording.seeds.tolist()), "batch_size": batch_size, **told}
    return {name: _plain(value) for name, value in found.items()}


def _summary(recording: Recording, results: Results) -> dict[str, str]:
    dead = np.count_nonzero(results.indifferent)
    gradients = len(recording.seeds) * recording.num_records * len(recording.labels) * len(recording.layers)
    if "accuracy" in results.curves:
        accuracy = results.curves["accuracy"][..., 0]
        learned = reaches(accuracy.mean(axis=0), LEARNED)
        told = {
            "final training accuracy": f"{accuracy[:, -1].mean():.1%}"
            + (f" ± {accuracy[:, -1].std():.1%}" if len(accuracy) > 1 else ""),
            "first at 80 % after": "never"
            if learned is None
            else pluralise(int(results.iterations[learned]), "update"),
        }
    else:
        loss = results.curves["loss"][..., 0]
        told = {"loss at the start": f"{loss[:, 0].mean():.3g}", "loss at the end": f"{loss[:, -1].mean():.3g}"}
    return {
        **told,
        "seeds": f"{len(recording.seeds)}" + (f", {dead} of them dead" if dead else ""),
        "examples": f"{len(recording.labels):,}",
        "records of each seed": f"{recording.num_records:,}",
        "gradients recorded": f"{gradients:,}",
    }


def _chunk_table(recording: Recording, results: Results) -> dict[str, list[str]]:
    """Make one row per chunk, under the names of its columns."""
    mean = {metric: curve[..., 1:].mean(axis=0) for metric, curve in results.curves.items()}
    columns = {"chunk": [str(k) for k in range(results.num_chunks)]}
    if results.forgetting is None:
        columns["final loss"] = [f"{x:.3g}" for x in mean["loss"][-1]]
    else:
        columns |= _learned_columns(results, mean)
    layers = recording.layers
    for layer in layers:
        cosine = mean[metric_name(layers, layer, "alignment")][:EARLY].mean(axis=0)
        norm = mean[metric_name(layers, layer, "gradient_norm")][-1]
        columns[f"alignment in {layer}, first {EARLY}"] = [f"{x:.3f}" for x in cosine]
        columns[f"final norm in {layer}"] = [f"{x:.3g}" for x in norm]
    return columns


def _learned_columns(results: Results, mean: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Tell for each chunk when it was learned, and how often forgotten."""
    forgotten = results.forgetting.forgotten.mean(axis=0)
    return {
        "final accuracy": [f"{x:.1%}" for x in mean["accuracy"][-1]],
        "reaches 80 % at": [
            "never" if (t := reaches(c, LEARNED)) is None else f"{results.iterations[t]:,}" for c in mean["accuracy"].T
        ],
        "times from right to wrong, an example": [
            f"{forgotten[results.chunk == k].mean():.2f}" for k in range(results.num_chunks)
        ],
    }


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "never"
    if unit == "share":
        return f"{value:.1%}".replace("-0.0%", "0.0%")
    return f"{value:,.0f}" if abs(value) >= 10 and np.isclose(value, round(value)) else f"{value:.3g}"


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else "" if value is None else str(value)


def _commands(
    recording: Recording,
    options: Sequence[ConeOptions | ContentionOptions | ScoreOptions | LineageOptions],
    parts: Collection[str],
    given: str,
) -> list[str]:
    """Return the shortest commands that make this recording and this page again."""
    of_command = {} if recording.of_loop else {"train": _flags(recording.config, {})}
    if recording.further is not None and "scores" in parts:
        settings = recording.further.settings.items()
        of_command["further"] = [f"--{name}={_plain(value)}" for name, value in settings if value is not None]
    chosen = [] if set(parts) == set(DEFAULT_PARTS) else [f"--parts={_plain(tuple(parts))}"]
    if given:
        column, _, file = given.partition(" of ")
        chosen.append(f"--rank_by={file}:{column}")
    of_command["analyze"] = [*chosen, *(flag for of in options for flag in _flags(of, FLAGS[type(of)]))]
    return [
        shlex.join(["python", "-m", f"train_dynamics.{name}", *given, "--recording=DIR"])
        for name, given in of_command.items()
    ]


def _flags(options: Any, names: dict[str, str]) -> list[str]:
    """List the flags of a dataclass's fields that differ from their defaults."""
    return [
        f"--{names.get(field.name) or flag_name(field.name)}={_plain(getattr(options, field.name))}"
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default and (not names or field.name in names)
    ]
