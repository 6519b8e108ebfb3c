import csv
import dataclasses
import itertools
import json
import re
import shutil
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from pyarrow import parquet

from tests import oracles
from tests.conftest import SMALL, contents, run, silent, sketching
from train_dynamics.config import InputError
from train_dynamics.dynamics.confusion import fixed_batches
from train_dynamics.dynamics.scores.registry import SCORES
from train_dynamics.plots import film
from train_dynamics.recording.locks import locked
from train_dynamics.recording.reader import Recording
from train_dynamics.report import analysis, directory, writing
from train_dynamics.study import contention, groups, results
from train_dynamics.study.cones import ConeOptions
from train_dynamics.study.contention import ContentionOptions
from train_dynamics.training import sweep

FIGURES = ["accuracy", "chunk_accuracy", "alignment", "gradient_norm", "learning"]
FIGURES += ["examples_random", "examples_typical", "examples_atypical"]
FIGURES += ["coherence", "gradient_confusion", "stiffness", "class_stiffness", "opposing_signals", "opposing_examples"]
FIGURES += ["score_correlations", "score_extremes", "score_stability_seeds", "score_stability_iterations"]
FIGURES += [f"extremes_{score.name}" for score in SCORES if score.name not in ("holdout_retraining", "privacy")]
FIGURES += ["scatter", "cones", "cone_scatter", "cone_tracks", "label_opposition"]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def output(analysed):
    return analysed / "analysis"


@pytest.fixture
def history(small):
    """Whether each seed classifies each example correctly at each iteration."""
    return np.stack([small.predictions(t) == small.labels for t in range(17)], axis=1)


def test_scores_rank_all_examples_by_agreement_of_the_trained_networks(small, output):
    table = rows(output / "scores.csv")
    assert list(table[0])[:6] == ["example", "id", "label", "agr", "rank", "chunk"]
    assert [int(row["example"]) for row in table] == list(range(50))
    assert [int(row["id"]) for row in table] == small.ids.tolist()
    assert [int(row["label"]) for row in table] == small.labels.tolist()
    agr = np.array([float(row["agr"]) for row in table])
    # Of float32 probabilities, which sum to 1 only to rounding.
    np.testing.assert_allclose(agr, oracles.agreement(small.probabilities(16)), rtol=1e-4, atol=1e-7)
    rank = np.array([int(row["rank"]) for row in table])
    assert sorted(rank) == list(range(50))
    assert (np.diff(agr[np.argsort(rank)]) >= 0).all()
    assert [int(row["chunk"]) for row in table] == [r // 5 for r in rank]


def test_scores_tell_when_an_example_was_learned_and_forgotten(history, output):
    for n, row in enumerate(rows(output / "scores.csv")):
        expected = np.mean([oracles.forgetting(history[s, :, n]) for s in range(3)], axis=0)
        found = [float(row[name]) for name in ("first_correct", "last_mistake", "forgotten")]
        np.testing.assert_allclose(found, expected, rtol=1e-8)  # tables hold nine digits


def test_every_curve_against_its_definition(small, history, output):
    table = rows(output / "curves.csv")
    assert list(table[0]) == ["metric", "group", "iteration", "mean", "std"]
    metrics = ["accuracy", "alignment", "gradient_norm", "mean_gradient_share", "first_correct", "last_mistake"]
    assert len(table) == len(metrics) * 11 * 17
    found = {(row["metric"], row["group"], int(row["iteration"])): row for row in table}
    chunk = np.array([int(row["chunk"]) for row in rows(output / "scores.csv")])
    members = {"all": np.arange(50), **{f"chunk_{k}": np.flatnonzero(chunk == k) for k in range(10)}}
    for t in (0, 5, 16):
        gradients = small.gradients("fc2", t)
        norm, cosine = np.array([oracles.alignment(gradients[s]) for s in range(3)]).transpose(1, 0, 2)
        for group, chosen in members.items():
            of_seeds = {
                "accuracy": [history[s, t, chosen].mean() for s in range(3)],
                "alignment": [cosine[s, chosen].mean() for s in range(3)],
                "gradient_norm": [norm[s, chosen].mean() for s in range(3)],
                "mean_gradient_share": [
                    (cosine[s, chosen] * norm[s, chosen]).sum() / (cosine[s] * norm[s]).sum() for s in range(3)
                ],
                "first_correct": [oracles.first_correct_share(history[s][:, chosen], t) for s in range(3)],
                "last_mistake": [oracles.last_mistake_share(history[s][:, chosen], t) for s in range(3)],
            }
            for metric, values in of_seeds.items():
                row = found[metric, group, t]
                # Gradients are summed in float32.
                assert float(row["mean"]) == pytest.approx(np.mean(values), rel=1e-5, abs=1e-6), (metric, group)
                assert float(row["std"]) == pytest.approx(np.std(values), rel=1e-4, abs=1e-6), (metric, group)


def test_every_measure_of_groups_against_its_definition(small, output):
    table = rows(output / "group_dynamics.csv")
    statistics = ["mean", "std", "lower_quartile", "median", "upper_quartile"]
    assert list(table[0]) == ["metric", "layer", "group", "iteration", *statistics]
    assert len(table) == (6 + 55) * 17 + 3 * 16
    found = {(row["metric"], row["group"], int(row["iteration"])): row for row in table}
    assert {row["layer"] for row in table if row["metric"] != "loss_change"} == {"fc2"}
    batches = fixed_batches(50, 16)
    for t in (0, 5, 16):
        gradients = small.gradients("fc2", t)
        opposed = [oracles.confusion(gradients[s][batches].mean(axis=1)) for s in range(3)]
        by_class = np.stack([oracles.stiffness(gradients[s], small.labels, 10) for s in range(3)])
        of_seeds = {
            ("m_coherence", "all"): [oracles.m_coherence(gradients[s]) for s in range(3)],
            ("noise_scale", "all"): [oracles.noise_scale(gradients[s]) for s in range(3)],
            ("gradient_confusion", "batches"): [bound for bound, _ in opposed],
            ("smallest_cosine", "batches"): [cosine for _, cosine in opposed],
            **{("stiffness", f"{a}/{b}"): by_class[:, a, b] for a in range(10) for b in range(a, 10)},
        }
        for (metric, group), values in of_seeds.items():
            row = found[metric, group, t]
            middle = sorted(np.nan_to_num(values, nan=np.inf))[1]  # of three seeds
            assert (
                row["median"] == ""
                if np.isinf(middle)
                else float(row["median"]) == pytest.approx(middle, rel=1e-3, abs=1e-5)
            )
            if np.isnan(values).any():
                assert row["mean"] == row["std"] == ""
                continue
            # Gradients are summed in float32, and the noise scale is a ratio of differences.
            assert float(row["mean"]) == pytest.approx(np.mean(values), rel=1e-3, abs=1e-5), (metric, group, t)
            assert float(row["std"]) == pytest.approx(np.std(values), rel=1e-2, abs=1e-5), (metric, group, t)
    change = small.loss(8) - small.loss(7)
    values = {"risers": change.max(axis=1), "fallers": change.min(axis=1), "all": change.mean(axis=1)}  # groups of one
    for group, of_group in values.items():
        assert float(found["loss_change", group, 7]["mean"]) == pytest.approx(of_group.mean(), rel=1e-5)
    changes = np.stack([small.loss(t + 1) - small.loss(t) for t in range(16)])
    signals = rows(output / "opposing_signals.csv")
    for name, extreme in (("risen", changes.argmax(axis=-1)), ("fallen", changes.argmin(axis=-1))):
        counts = np.bincount(extreme.ravel(), minlength=50) / 3
        np.testing.assert_allclose([float(row[name]) for row in signals], counts, rtol=1e-8)  # tables hold nine digits


def test_group_measures_of_few_checkpoints_many_classes_and_one_batch(tmp_path, small, device, monkeypatch, sketches):
    monkeypatch.setattr(groups, "MOST_CHECKPOINTS", 4)
    monkeypatch.setattr(groups, "MOST_CLASSES", 9)
    found = results.compute(small).group_dynamics
    assert found.checkpoints.tolist() == [0, 5, 11, 16]
    assert found.layers["fc2"].stiffness.shape == (3, 4, 0, 0)
    assert found.layers["fc2"].m_coherence[1, 3] == pytest.approx(
        oracles.m_coherence(small.gradients("fc2", 16)[1]), rel=1e-3
    )
    config = dataclasses.replace(SMALL, batch_size=50, record_every=2, num_seeds=2)
    sweep.train(config, tmp_path / "whole", device, log=silent)
    analysis.analyze(Recording(tmp_path / "whole"), tmp_path / "out", parts=["groups"])
    table = rows(tmp_path / "out" / "group_dynamics.csv")
    assert {row["mean"] for row in table if row["group"] == "batches"} == {""}  # one batch has no other
    assert [row["iteration"] for row in table if row["group"] == "risers"] == ["0", "2"]
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert "coherence" in drawn and not drawn & {"gradient_confusion", "class_stiffness"}


def test_layers_and_layouts(tmp_path, device):
    config = dataclasses.replace(SMALL, hidden_sizes=(7, 6), layers=("fc1", "fc3"), epochs=1)
    curves = {}
    for layout in ("factored", "dense"):
        path = tmp_path / layout
        sweep.train(dataclasses.replace(config, gradient_layout=layout), path, device, log=silent)
        found = results.compute(Recording(path))
        curves[layout] = found.curves
        for layer, measures in found.group_dynamics.layers.items():
            named = zip(measures._fields, measures, strict=True)
            curves[layout] |= {f"{layer}/{name}": values for name, values in named if name != "stiffness"}
            curves[layout] |= {f"{layer}/stiffness": measures.stiffness.reshape(3, 5, -1)}
    of_layers = {f"fc{k}/{metric}" for k in (1, 3) for metric in ("alignment", "gradient_norm", "mean_gradient_share")}
    of_layers |= {f"fc{k}/{name}" for k in (1, 3) for name in groups.Measures._fields}
    assert set(curves["dense"]) == {"accuracy", "first_correct", "last_mistake"} | of_layers
    for metric, curve in curves["dense"].items():
        # Sums in float32; the noise scale divides by what is left of them in a difference, here a few hundredths.
        rounding = 1e-3 if metric.endswith("noise_scale") else 1e-4
        np.testing.assert_allclose(curves["factored"][metric], curve, rtol=rounding, atol=1e-5)
    # fc1, whose activation is the images, against one example at a time: a mean over 50 sums of 784 float32 squares.
    norm, cosine = oracles.alignment(Recording(tmp_path / "factored").gradients("fc1", 2)[1])
    np.testing.assert_allclose(curves["factored"]["fc1/gradient_norm"][1, 2, 0], np.mean(norm), rtol=1e-5)
    np.testing.assert_allclose(curves["factored"]["fc1/alignment"][1, 2, 0], np.mean(cosine), atol=1e-5)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_pictures(output, name):
    data = (output / "figures" / f"{name}.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 600 and height > 400
    assert len(list((output / "figures").glob("*.png"))) == len(FIGURES)
    assert "</svg>" in (output / "figures" / f"{name}.svg").read_text()


def test_two_analyses_do_not_write_into_one_directory_at_once(small, output, tmp_path):
    shutil.copytree(output, tmp_path / "out")
    before = contents(tmp_path / "out")
    refused = pytest.raises(InputError, match=r"--output=.*/out: is being written by another analysis; wait for it")
    with locked(tmp_path / "out", InputError("taken")), refused:
        analysis.analyze(small, tmp_path / "out", parts=[], log=silent)
    assert contents(tmp_path / "out") == before
    analysis.analyze(small, tmp_path / "out", parts=[], log=silent)


def test_an_interrupted_analysis_says_what_it_left(small_path, tmp_path):
    copy = shutil.copytree(small_path, tmp_path / "copy")
    command = [sys.executable, "-m", "train_dynamics.analyze", f"--recording={copy}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        assert process.stdout.readline().startswith("Writing figures and tables")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=300)[1] == (
            f"analyze: interrupted; {copy / 'analysis'} may be incomplete, and the same command makes it whole\n"
        )
    assert process.returncode == 130


def test_damaged_ids_are_found_before_anything_is_written(small_path, tmp_path):
    shutil.copytree(small_path, tmp_path / "copy")
    ids = tmp_path / "copy" / "dataset" / "ids.npy"
    ids.write_bytes(ids.read_bytes()[:-1] + b"?")
    done = run("analyze", "--recording=copy", "--output=results", "--parts=", cwd=tmp_path)
    assert done.returncode == 1 and "ids.npy is damaged" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_the_command_writes_into_the_recording_or_elsewhere(analysed, tmp_path):
    lines = (analysed.parent / "said").read_text().splitlines()
    assert lines[0] == "Reading 17 records of 3 seeds in copy"
    assert lines[1] == "Writing figures and tables into copy/analysis"
    assert lines[-1] == "Results of copy are in copy/analysis; open copy/analysis/report.html in a browser"
    assert json.loads((analysed / "analysis" / "analysis.json").read_text())["recording"] == "copy"
    before = contents(analysed)
    done = run("analyze", f"--recording={analysed}", f"--output={tmp_path / 'other'}", "--parts=motion", drawn=True)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "other" / "report.html").is_file()
    assert contents(analysed) == before
    whole, study = contents(analysed / "analysis"), contents(tmp_path / "other")
    alike = {f"figures/{name}{kind}" for name in (*FIGURES[:8], "scatter") for kind in directory.KINDS}
    alike |= {"curves.csv", "scatter.mp4"}
    assert alike <= set(study) and {name: study[name] for name in alike} == {name: whole[name] for name in alike}
    claims = [json.loads(files["claims.json"]) for files in (study, whole)]
    assert claims[0] == claims[1][: len(claims[0])]  # those about groups need cones


def test_cones_are_tables_too(small, output):
    found = rows(output / "cones.csv")
    members = rows(output / "cone_members.csv")
    assert int(found[0]["iteration"]) == (small.num_records - 1)  # the small network never learns half
    frame = small.gradients("fc2", 16)[0]
    mean = frame.mean(axis=0)
    correct = small.predictions(16)[0] == small.labels
    for row in found:
        cone = [int(member["example"]) for member in members if member["cone"] == row["cone"]]
        assert len(cone) == int(row["size"]) > 1
        counts = sorted(row["labels"].split("; "))
        assert counts == sorted(f"{k}:{n}" for k, n in enumerate(np.bincount(small.labels[cone])) if n)
        cosines = [oracles.cosine(frame[a], frame[b]) for a in cone for b in cone if a != b]
        # Cosines are of float32 gradients: sums of 50 products, each of which rounds by 6e-8 at most.
        assert float(row["smallest_cosine"]) == pytest.approx(min(cosines), abs=1e-5) and min(cosines) > 0.95 - 1e-5
        assert float(row["mean_alignment"]) == pytest.approx(
            np.mean([oracles.cosine(frame[n], mean) for n in cone]), abs=1e-5
        )
        assert float(row["accuracy"]) == pytest.approx(correct[cone].mean())
    assert [int(member["id"]) for member in members] == [small.ids[int(member["example"])] for member in members]
    assert len(members) == sum(g.any() for g in frame)


def test_fights_are_tables_and_pictures_and_old_pictures_go(small, small_path, tmp_path, monkeypatch, sketches):
    """With a wide threshold the small networks fight; without one, what was drawn of fights is gone."""
    monkeypatch.setattr(contention, "FEWEST_CHANGES", 3)
    recording = Recording(small_path)
    wide = ContentionOptions(cosine=0.3, smallest=2, checkpoints=4)
    analysis.analyze(recording, tmp_path / "out", ConeOptions(), wide, parts=["contention"])
    found = rows(tmp_path / "out" / "contention.csv")
    assert found and {row["survives"] for row in found} <= {"true", "false", ""}
    members = rows(tmp_path / "out" / "contention_members.csv")
    for k, row in enumerate(found):
        assert int(row["pair"]) == k
        groups = [
            [int(m["example"]) for m in members if (m["pair"], m["side"]) == (str(k), s)] for s in ("left", "right")
        ]
        assert [len(group) for group in groups] == [int(row["left_size"]), int(row["right_size"])]
        gradients = small.gradients("fc2", int(row["iteration"]))[int(row["seed"])]
        means = [gradients[group].mean(axis=0) for group in groups]  # this and what follows is of float32
        assert float(row["cosine"]) == pytest.approx(oracles.cosine(*means), abs=1e-5)
        lengths = [np.linalg.norm(gradients[group].sum(axis=0)) / 50 for group in groups]
        assert float(row["strength"]) == pytest.approx(min(lengths), rel=1e-4)
        assert (row["p"] == "") == (row["reason"] != "")
    opposed = np.zeros((10, 10))
    checkpoints = contention.spread_checkpoints(small.iterations, 4)
    for gradients in (gradients for t in checkpoints for gradients in small.gradients("fc2", t)):
        for n, m in itertools.permutations(range(50), 2):
            opposed[small.labels[n], small.labels[m]] += oracles.cosine(gradients[n], gradients[m]) < -0.3
    count = np.bincount(small.labels, minlength=10)
    share = rows(tmp_path / "out" / "label_opposition.csv")
    assert [(row["label"], row["other_label"]) for row in share] == [
        (str(a), str(b)) for a in range(10) for b in range(a, 10)
    ]
    for row in share:
        a, b = int(row["label"]), int(row["other_label"])
        pairs = len(checkpoints) * 3 * count[a] * (count[b] - (a == b))
        assert float(row["share"]) == pytest.approx(opposed[a, b] / pairs if pairs else 0)
    strengths = [float(row["strength"]) for row in found]
    assert strengths == sorted(strengths, reverse=True)
    report = (tmp_path / "out" / "report.html").read_text()
    assert f"{len(found)} pairs found." in report and "in contention: " in report
    drawn = set((tmp_path / "out" / "figures").glob("contention_*.png"))
    assert 1 <= len(drawn) <= 3
    (tmp_path / "out" / "figures" / "mine.png").write_text("mine")
    with sketching(blank=True):
        analysis.analyze(
            recording, tmp_path / "out", ConeOptions(), ContentionOptions(checkpoints=3), parts=["contention"]
        )
    assert not set((tmp_path / "out" / "figures").glob("contention_*"))
    assert (tmp_path / "out" / "figures" / "mine.png").read_text() == "mine"
    assert "no pair was found" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("parts", [[], *([part] for part in analysis.PARTS), ["motion", "groups"]], ids=",".join)
def test_parts_are_as_in_the_whole_and_leave_nothing_of_others(output, small_path, tmp_path, blanks, parts):
    shutil.copytree(output, tmp_path / "out")
    (tmp_path / "out" / "mine.csv").write_text("mine")
    said = []
    analysis.analyze(Recording(small_path), tmp_path / "out", parts=parts, log=said.append)
    others = [part for part in analysis.DEFAULT_PARTS if part not in parts]
    gone = [name for part in others for name in analysis.PARTS[part] if name != "label_noise.csv"]
    assert said[2] == f"Removed from the earlier analysis in {tmp_path / 'out'}: {', '.join(gone)}"
    about = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert about["parts"] == [part for part in analysis.PARTS if part in parts]
    files = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    own = {"analysis.json", "claims.json", "curves.csv", "scores.csv", "scores.parquet", "report.html", "mine.csv"}
    assert files == own | {name for part in parts for name in analysis.PARTS[part]} - {"label_noise.csv"}
    others = {"analysis.json", "report.html", "mine.csv", "claims.json", *analysis.PARTS["oscillation"]}
    for name in files - others - (set() if "scores" in parts else {"scores.csv", "scores.parquet"}):
        assert (tmp_path / "out" / name).read_bytes() == (output / name).read_bytes(), name
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {name for stem in FIGURES[:8] for name in (f"{stem}.png", f"{stem}.svg")} <= figures
    assert figures == {file.removeprefix("figures/") for file in about["files"] if file.startswith("figures/")}
    assert {file for file in about["files"] if "/" not in file} == files - {"mine.csv", "analysis.json"}
    some, whole = rows(tmp_path / "out" / "scores.csv"), rows(output / "scores.csv")
    columns = list(whole[0]) if "scores" in parts else ["agr", "rank", "chunk", "first_correct", "last_mistake"]
    assert [[row[name] for name in columns] for row in some] == [[row[name] for name in columns] for row in whole]
    if "scores" not in parts:
        assert {row["loss"] for row in some} == {""}
        field = parquet.read_schema(tmp_path / "out" / "scores.parquet").field
        assert field("loss").metadata[b"missing"] == b"scores were not asked for"
        assert b"missing" not in field("agr").metadata and b"missing" not in field("first_correct").metadata
    text = (tmp_path / "out" / "report.html").read_text()
    titles = {"scores": "Scores", "groups": "Groups of examples", "motion": "Gradients in motion", "cones": "Cones"}
    titles |= {"contention": "Contention", "lineages": "Lineages of cones"}
    titles |= {"oscillation": "Do the groups in contention take turns?"}
    for part, title in titles.items():
        assert (f"<h2>{title}" in text) == (part in parts)
    assert {name for name in re.findall(r"<code>([\w.]+)</code>", text)} <= files
    assert f"train_dynamics.analyze --parts={','.join(about['parts'])} --recording=DIR" in text


def test_the_study_alone_of_a_single_seed_has_its_ranking(tmp_path, device, blanks):
    sweep.train(dataclasses.replace(SMALL, num_seeds=1), tmp_path / "single", device, log=silent)
    recording = Recording(tmp_path / "single")
    analysis.analyze(recording, tmp_path / "some", parts=())
    analysis.analyze(recording, tmp_path / "whole", parts=("scores",))
    some, whole = rows(tmp_path / "some" / "scores.csv"), rows(tmp_path / "whole" / "scores.csv")
    assert [row["rank"] for row in some] == [row["rank"] for row in whole]
    means = [[float(row["cumulative_loss"]) for row in table] for table in (some, whole)]
    np.testing.assert_allclose(*means, rtol=1e-6)  # sums in float64 and in float32
    assert {row["agr"] for row in some} == {""}


def test_dead_networks_are_told(small, tmp_path, monkeypatch, blanks):
    probabilities = small.probabilities(small.num_iterations)
    probabilities[:2] = probabilities[:2, :1]
    monkeypatch.setattr(small, "probabilities", lambda t: probabilities)
    said = []
    analysis.analyze(small, tmp_path / "out", parts=(), log=said.append)
    assert "Dead networks, which at the end give every example the same probabilities: 2 of 3 seeds" in said
    assert "3, 2 of them dead" in (tmp_path / "out" / "report.html").read_text()


def test_an_analysis_cut_short_leaves_nothing_old_by_its_new_tables(small_path, tmp_path, monkeypatch, blanks):
    recording, report = Recording(small_path), tmp_path / "out" / "report.html"
    analysis.analyze(recording, tmp_path / "out", parts=("groups", "cones"))
    assert report.is_file() and (tmp_path / "out" / "cones.csv").is_file()

    def cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing, "claims", cut)
        analysis.analyze(recording, tmp_path / "out", ConeOptions(cosine=0.5), parts=("cones",))
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"analysis.json", "curves.csv", "figures", "scores.csv", "scores.parquet"}  # of the one cut short
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(film, "film", cut)  # all other figures are drawn by then
        analysis.analyze(recording, tmp_path / "new")
    analysis.analyze(recording, tmp_path / "new", parts=())
    assert {path.stem for path in (tmp_path / "new" / "figures").iterdir()} == set(FIGURES[:8])
    (tmp_path / "new" / "cones.csv").write_text("mine")
    analysis.analyze(recording, tmp_path / "new", parts=())
    assert (tmp_path / "new" / "cones.csv").read_text() == "mine"


def test_several_layers_and_stars(tmp_path, device, sketches):
    config = dataclasses.replace(SMALL, hidden_sizes=(6, 5), layers=("fc2", "fc3"), gradient_layout="dense")
    sweep.train(config, tmp_path / "deep", device, log=silent)
    output = tmp_path / "out"
    options = ContentionOptions(cover="star", checkpoints=2)
    parts = ["groups", "motion", "cones", "contention"]  # scores are not drawn by layer
    analysis.analyze(Recording(tmp_path / "deep"), output, ConeOptions(cover="star"), options, parts=parts)
    assert {row["layer"] for row in rows(output / "cones.csv")} == {"fc2", "fc3"}
    for layer in ("fc2", "fc3"):
        for name in ("cones", "cone_scatter", "cone_tracks", "label_opposition"):
            assert (output / "figures" / f"{layer}_{name}.png").is_file()
