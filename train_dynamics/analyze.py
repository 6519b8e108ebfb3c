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
    "Directory that train_dynamics.train or a Recorder recorded into; or several, with commas, of the same examples "
    "and different seeds, which are read as one.",
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Directory for the results, new, empty or of an earlier analysis; 'analysis' inside the recording if empty.",
)
PARTS = flags.DEFINE_list(
    "parts",
    list(analysis.DEFAULT_PARTS),
    "What to look at beside the curves, examples and claims of the study, comma separated; --parts= for nothing else, "
    "in a quarter of the time. There is also 'oscillation', which takes as long as all others. An analysis replaces "
    "the earlier one in its directory. 'histories', measures of every example at every record, are stored in the "
    "recording, wherever the results are.",
)
EXPORT = flags.DEFINE_list(
    "export",
    [],
    "Where to write curves, figures and tables too, comma separated: tensorboard, as event files in the directory "
    "'tensorboard' of the results; wandb or trackio, as a run that is named as the recording is. Each needs its "
    "package: tensorboardX, wandb or trackio. WANDB_MODE=offline keeps a run of wandb on this machine.",
)
CONE_COSINE = flags.DEFINE(
    NumberParser(float),
    "cone_cosine",
    0.95,
    "How near the gradients of a cone are to each other, and how opposed those in contention.",
)
CONE_COVER = flags.DEFINE_string(
    "cone_cover", "clique", "clique: every two members of a cone are that near; star: each to the one in the middle."
)
CONE_SEED = flags.DEFINE(
    NumberParser(int), "cone_seed", None, "Seed whose cones are shown; the first one if not given."
)
CONE_ITERATION = flags.DEFINE(
    NumberParser(int),
    "cone_iteration",
    None,
    "Iteration whose cones are shown; if not given, the first at which that seed classifies half of the examples "
    "correctly, of two classes three quarters: at the start all gradients are alike, at the end most have nearly "
    "vanished.",
)
OPPOSED_TO = flags.DEFINE_string(
    "opposed_to",
    "centre",
    "A group in contention with a cone opposes its centre, which is the mean direction of its members, or every one of "
    "its members: centre or members.",
)
SMALLEST_GROUP = flags.DEFINE(
    NumberParser(int),
    "smallest_group",
    10,
    "Fewest examples on either side of a contention, and in a cone that is followed.",
)
CONTENTION_CHECKPOINTS = flags.DEFINE(
    NumberParser(int),
    "contention_checkpoints",
    16,
    "At how many iterations of every seed to look for contention.",
)
CONTENTION_EXAMPLES = flags.DEFINE(
    NumberParser(int),
    "contention_examples",
    None,
    "Among how many examples, drawn at random, to look for contention; all if not given. Every two are compared, so "
    "that half as many take a quarter of the time.",
)
flags.DEFINE_alias("contention_looks", "contention_checkpoints")  # as it was called
LINEAGE_COVERS = flags.DEFINE(
    NumberParser(int),
    "lineage_covers",
    LineageOptions.covers,
    "At how many records of every seed, at most, to look for cones that are followed: at every k-th one.",
)
SCORE_ITERATION = flags.DEFINE(
    NumberParser(int),
    "score_iteration",
    None,
    "Iteration at which the scores defined early in training (EL2N, GraNd) are read; if not given, a tenth of the run.",
)
SCORE_CHECKPOINTS = flags.DEFINE(
    NumberParser(int),
    "score_checkpoints",
    10,
    "At how many evenly spread iterations to replay stored parameters for the scores that need it, and to look what "
    "all scores would be had recording stopped there.",
)
flags.DEFINE_alias("score_looks", "score_checkpoints")
RANK_BY = flags.DEFINE_string(
    "rank_by",
    None,
    "What to rank examples by instead of their agreement: FILE:COLUMN, a score in the scores.csv of another analysis "
    "of the same examples. With that of other seeds, the ranking knows nothing of the networks whose curves are drawn.",
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
