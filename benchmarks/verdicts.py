"""Set the verdicts of several analyses beside each other, and draw their curves with the spread between them.

    python -m benchmarks.verdicts ANALYSIS... [--output=FIGURE]

Each ANALYSIS is a directory that `analyze` wrote: of other draws of the examples, of other seeds, or of another ranking
(`--rank_by`). The table is in Markdown; with --output, chunks are drawn as the mean over the analyses, and what lies
between the lowest and the highest.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

OUTPUT = flags.DEFINE_string("output", None, "Figure to draw, without its suffix; none if not given.")
METRICS = {
    "accuracy": "accuracy",
    "alignment": "alignment with the mean gradient",
    "gradient_norm": "gradient norm",
    "mean_gradient_share": "share of the mean gradient",
}


def cell(claim: dict) -> str:
    if claim["holds"] is None:
        return "open"
    unit = claim["unit"]
    shown = (
        "never" if claim["value"] is None else f"{claim['value']:.1%}" if unit == "share" else f"{claim['value']:.3g}"
    )
    barely = claim["support"] is not None and claim["support"] < 0.975
    return f"{'holds' if claim['holds'] else '**fails**'}{', barely' if barely else ''}: {shown}"


def table(analyses: Sequence[Path]) -> str:
    found = [{c["name"]: c for c in json.loads((path / "claims.json").read_text())} for path in analyses]
    names = list(dict.fromkeys(name for of in found for name in of))
    rows = [["claim", *(path.parent.name if path.name == "analysis" else path.name for path in analyses)]]
    rows += [["---"] * len(rows[0])]
    rows += [[name, *(cell(of[name]) if name in of else "" for of in found)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def curves(path: Path) -> dict[tuple[str, str], dict[int, float]]:
    """Read each curve, averaged over seeds, by metric and group."""
    found = defaultdict(dict)
    with (path / "curves.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["metric"], row["group"]][int(row["iteration"])] = float(row["mean"])
    return found


def draw(analyses: Sequence[Path], output: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from train_dynamics.plots.style import SEQUENCE, save, styled

    found = [curves(path) for path in analyses]
    with styled():
        figure = Figure(figsize=(12.5, 3.6))
        for axes, (metric, words) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
            for k, name in ((0, "chunk 0, most typical"), (5, "chunk 5"), (9, "chunk 9, least typical")):
                of = [one[metric, f"chunk_{k}"] for one in found]
                times = sorted(set.intersection(*map(set, of)))
                values = np.array([[one[t] for t in times] for one in of])
                color = matplotlib.colormaps[SEQUENCE](0.92 * k / 9)
                axes.fill_between(times, values.min(axis=0), values.max(axis=0), color=color, alpha=0.3, lw=0)
                axes.plot(times, values.mean(axis=0), color=color, label=name)
            axes.set(title=words, xlabel="iteration", xscale="symlog")
            axes.set_xlim(0, times[-1])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        save(figure, output)


def main(arguments: Sequence[str]) -> None:
    analyses = [Path(name) for name in arguments[1:]]
    if not analyses or any(not (path / "claims.json").is_file() for path in analyses):
        raise app.UsageError("name directories that analyze wrote, each with its claims.json")
    print(table(analyses))
    if OUTPUT.value:
        draw(analyses, Path(OUTPUT.value))


if __name__ == "__main__":
    app.run(main)
