"""Analyse a recording: rank its examples, follow how they are learned, and find who pulls together and who fights.

python -m train_dynamics.analyze --recording=recordings/mini_mnist
"""

import sys
from pathlib import Path

from absl import flags

from train_dynamics.commands import NumberParser, define_code_flags, print_line, run
from train_dynamics.config import InputError
from train_dynamics.recording.code import may_run
from train_dynamics.recording.reader import opened
from train_dynamics.recording.remote import Url, check_local
from train_dynamics.report import analysis
from train_dynamics.study.cones import ConeOptions
from train_dynamics.study.contention import ContentionOptions
from train_dynamics.study.lineages import LineageOptions
from train_dynamics.study.ranking import read_ranking
from train_dynamics.study.scores import ScoreOptions

RECORDING = flags.DEFINE_string(
    "recording",
    "recordings/mini_mnist",
    "Directory of the recording; or several, comma separated, with the same examples and different seeds, which "
    "are read as one.",
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Directory for the results. It must be new, empty, or hold an earlier analysis, which is replaced. Default: "
    "'analysis' inside the recording.",
)
PARTS = flags.DEFINE_list(
    "parts",
    list(analysis.DEFAULT_PARTS),
    "Parts to compute in addition to the curves, examples and claims of the study, comma separated. --parts= "
    "computes none of them, in a fifth of the time. 'oscillation' is not on by default, because it takes as long "
    "as all others together. 'histories', the measures of every example at every record, are stored inside the "
    "recording, wherever the results go.",
)
EXPORT = flags.DEFINE_list(
    "export",
    [],
    "Also write curves, figures and tables to these, comma separated: tensorboard (event files in the directory "
    "'tensorboard' of the results), wandb or trackio (a run named after the recording). Each needs its package: "
    "tensorboardX, wandb or trackio. WANDB_MODE=offline keeps a wandb run on this machine.",
)
CONE_COSINE = flags.DEFINE(
    NumberParser(float),
    "cone_cosine",
    0.95,
    "Smallest cosine between the gradients of a cone. Gradients in contention have a cosine below minus this.",
)
CONE_COVER = flags.DEFINE_string(
    "cone_cover",
    "clique",
    "clique: every two members of a cone reach --cone_cosine. star: every member reaches it with the centre of "
    "the cone.",
)
CONE_SEED = flags.DEFINE(NumberParser(int), "cone_seed", None, "Seed whose cones are shown. Default: the first seed.")
CONE_ITERATION = flags.DEFINE(
    NumberParser(int),
    "cone_iteration",
    None,
    "Iteration whose cones are shown. Default: the first at which that seed classifies half of the examples "
    "correctly (three quarters if there are two classes). Earlier, all gradients are alike; at the end, most have "
    "nearly vanished.",
)
OPPOSED_TO = flags.DEFINE_string(
    "opposed_to",
    "centre",
    "What a group in contention with a cone opposes. centre: the mean direction of the cone's members. members: "
    "every one of them.",
)
SMALLEST_GROUP = flags.DEFINE(
    NumberParser(int),
    "smallest_group",
    10,
    "Fewest examples on either side of a contention, and in a cone that is followed over time.",
)
CONTENTION_CHECKPOINTS = flags.DEFINE(
    NumberParser(int),
    "contention_checkpoints",
    16,
    "Number of iterations, per seed, at which to look for contention.",
)
CONTENTION_EXAMPLES = flags.DEFINE(
    NumberParser(int),
    "contention_examples",
    None,
    "Number of examples, drawn at random, among which to look for contention. Every two are compared, so half as "
    "many take a quarter of the time. Default: all.",
)
flags.DEFINE_alias("contention_looks", "contention_checkpoints")  # as it was called
LINEAGE_COVERS = flags.DEFINE(
    NumberParser(int),
    "lineage_covers",
    LineageOptions.covers,
    "Largest number of records, per seed, at which to look for cones to follow. They are evenly spaced.",
)
SCORE_ITERATION = flags.DEFINE(
    NumberParser(int),
    "score_iteration",
    None,
    "Iteration at which to compute the scores that are defined early in training (EL2N, GraNd). Default: a tenth "
    "of the run.",
)
SCORE_CHECKPOINTS = flags.DEFINE(
    NumberParser(int),
    "score_checkpoints",
    10,
    "Number of evenly spaced iterations at which to run the networks again, for the scores that need it, and to "
    "compute every score as if recording had stopped there.",
)
flags.DEFINE_alias("score_looks", "score_checkpoints")
RANK_BY = flags.DEFINE_string(
    "rank_by",
    None,
    "Rank examples by this instead of their agreement: FILE:COLUMN, a score in the scores.csv of another analysis "
    "of the same examples. If that analysis used other seeds, the ranking is independent of the networks whose "
    "curves are drawn.",
)
MODEL, LOSS = define_code_flags(" for the scores that need it")


def main() -> None:
    """Run the command."""
    recording = opened(RECORDING.value)
    remote = any(isinstance(path, Url) for path in recording.paths)
    if not OUTPUT.value and (remote or not recording.path.is_dir()):
        where = "a recording is read from a URL, where nothing is written" if remote else "several recordings are read"
        raise InputError.flag("output", "", f"must name a directory for the results where {where}")
    if OUTPUT.value:
        check_local(OUTPUT.value, "output")
    output = Path(OUTPUT.value) if OUTPUT.value else recording.path / "analysis"
    parts, networks = [part for part in PARTS.value if part], None
    runs = may_run(recording, MODEL.value, LOSS.value) and not recording.replayable
    if runs and "scores" in parts and recording.contents.classes and recording.finished:
        from train_dynamics.training.replay import for_command  # takes seconds to import

        networks = for_command(recording, MODEL.value, LOSS.value)
    try:
        analysis.analyze(
            recording,
            output,
            ConeOptions(CONE_COSINE.value, CONE_COVER.value, CONE_SEED.value, CONE_ITERATION.value),
            ContentionOptions(
                CONE_COSINE.value,
                CONE_COVER.value,
                OPPOSED_TO.value,
                SMALLEST_GROUP.value,
                CONTENTION_CHECKPOINTS.value,
                CONTENTION_EXAMPLES.value,
            ),
            ScoreOptions(SCORE_ITERATION.value, SCORE_CHECKPOINTS.value),
            LineageOptions(CONE_COSINE.value, CONE_COVER.value, SMALLEST_GROUP.value, LINEAGE_COVERS.value),
            parts,
            log=print_line,
            networks=networks,
            export=[target for target in EXPORT.value if target],
            given=None if RANK_BY.value is None else read_ranking(recording, RANK_BY.value),
        )
    except KeyboardInterrupt:
        print(f"analyze: interrupted; {output} may be incomplete, and the same command makes it whole", file=sys.stderr)
        sys.exit(130)
    print_line(f"Results of {recording.path} are in {output}; open {output / 'report.html'} in a browser")


if __name__ == "__main__":
    run("analyze", main)
