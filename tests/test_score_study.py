"""Which scores agree, are stable and find wrong labels; their tables and figures; one seed, and few examples."""

import csv
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from pyarrow import parquet

from tests import oracles
from tests.conftest import SMALL, silent, sketching
from train_dynamics.dynamics.label_noise import auc, precision_at_noise_rate, roc
from train_dynamics.dynamics.rank_correlation import families, spearman, spearman_matrix
from train_dynamics.dynamics.scores.registry import SCORES
from train_dynamics.dynamics.scores.score import FurtherScore
from train_dynamics.plots import score_figures
from train_dynamics.plots import scores as score_plots
from train_dynamics.recording.reader import Recording
from train_dynamics.report import analysis
from train_dynamics.report.score_section import scores_section
from train_dynamics.study import results
from train_dynamics.study.contention import ContentionOptions
from train_dynamics.study.score_agreement import stability_rows, study_scores, summary
from train_dynamics.study.scores import ScoreOptions
from train_dynamics.training import sweep

FIRST = ["example", "id", "label", "agr", "rank", "chunk", "first_correct", "last_mistake", "forgotten", "true_label"]
COMPUTED = [score for score in SCORES if not isinstance(score, FurtherScore)]  # what needs no further training
NAMES = [score.name for score in COMPUTED]
MOST = ("scores", "groups", "motion", "cones", "contention")  # the others say nothing of what is asked here
COLUMNS = FIRST + [score.name for score in SCORES if score.name not in FIRST]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def recorded(path, device, **change) -> Recording:
    sweep.train(dataclasses.replace(SMALL, **change), path, device, log=silent)
    return Recording(path)


@pytest.fixture(scope="module")
def found(small_once):
    return results.compute(Recording(small_once))


@pytest.fixture(scope="module")
def study(found):
    return study_scores(found.scores, np.zeros(50, bool))


# Numbers.


def test_spearman_by_hand_and_by_definition(rng):
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])) == pytest.approx(0.5)
    a, b = rng.integers(0, 6, (4, 30)).astype(float), rng.integers(0, 4, (4, 30)).astype(float)  # with ties
    expected = [[oracles.spearman(x, y) for y in a] for x in a]
    np.testing.assert_allclose(spearman_matrix(a), expected, atol=1e-12)
    np.testing.assert_allclose(spearman(a, b), [oracles.spearman(x, y) for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(spearman(a, b[0]), [oracles.spearman(x, b[0]) for x in a])


def test_spearman_knows_order_alone(rng):
    a, b = rng.normal(size=(2, 40))
    assert spearman(a, b) == pytest.approx(float(spearman(np.exp(a), b**3)))
    assert spearman(a, a) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)


def test_what_has_no_order_has_no_correlation():
    a = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [np.nan, 1.0, 2.0], [3.0, 2.0, 1.0]])
    found = spearman_matrix(a)
    assert np.isnan(found[1:3]).all() and np.isnan(found[:, 1:3]).all()
    assert found[0, 3] == pytest.approx(-1)
    assert np.isnan(spearman(a, a[0])).tolist() == [False, True, True, False]


def test_families_stand_together(rng):
    base = rng.normal(size=(3, 200))
    rankings = np.stack([base[k % 3] + 0.1 * rng.normal(size=200) for k in range(9)])
    rankings[4] = 1
    order = families(spearman_matrix(rankings))
    assert sorted(order) == list(range(9)) and order[-1] == 4  # what has no order comes last
    kinds = [k % 3 for k in order[:-1]]
    assert sum(a != b for a, b in itertools.pairwise(kinds)) == 2
    for count in (1, 2):
        np.testing.assert_array_equal(families(spearman_matrix(rankings[:count])), np.arange(count))


def test_wrong_labels_by_hand():
    noisy = np.array([True, True, False, False])
    # The hardest is wrong; the second place goes to a wrong or to a right label: (1 + 1/2) / 2.
    assert precision_at_noise_rate(np.array([3.0, 2.0, 2.0, 1.0]), noisy) == 0.75
    assert auc(np.array([3.0, 2.0, 2.0, 1.0]), noisy) == 0.875  # of four pairs one is a tie
    assert auc(np.array([4.0, 3.0, 2.0, 1.0]), noisy) == precision_at_noise_rate(np.array([4.0, 3, 2, 1]), noisy) == 1
    assert auc(np.array([1.0, 2.0, 3.0, 4.0]), noisy) == precision_at_noise_rate(np.array([1.0, 2, 3, 4]), noisy) == 0
    assert auc(np.zeros(4), noisy) == precision_at_noise_rate(np.zeros(4), noisy) == 0.5  # a score that says nothing


def test_wrong_labels_by_definition(rng):
    for _ in range(5):
        difficulty, noisy = rng.integers(0, 4, 7).astype(float), rng.random(7) < 0.4
        noisy[:2] = True, False
        assert precision_at_noise_rate(difficulty, noisy) == pytest.approx(oracles.precision(difficulty, noisy))
        assert auc(difficulty, noisy) == pytest.approx(oracles.auc(difficulty, noisy))
        taken, found = roc(difficulty, noisy)
        assert np.trapezoid(found, taken) == pytest.approx(auc(difficulty, noisy))
        assert (taken[0], found[0], taken[-1], found[-1]) == (0, 0, 1, 1)


def test_without_wrong_labels_or_values_there_is_no_measure():
    values = np.arange(4.0)
    for noisy in (np.zeros(4, bool), np.ones(4, bool)):
        assert np.isnan(auc(values, noisy))
    assert np.isnan(precision_at_noise_rate(values, np.zeros(4, bool)))
    unknown = np.array([1.0, np.nan, 2.0, 3.0])
    noisy = np.array([True, False, False, False])
    assert np.isnan(auc(unknown, noisy)) and np.isnan(precision_at_noise_rate(unknown, noisy))


def test_summary_leaves_out_what_is_not_known():
    found = summary(np.array([[0.5, 1.0], [np.nan, 0.5], [np.nan, np.nan]]))
    np.testing.assert_array_equal(found, [[0.75, 0.5, np.nan], [0.5, 0.5, np.nan], [1, 0.5, np.nan]])


# A whole study.


def test_all_is_turned_so_that_high_is_hard(found, study):
    names = [score.name for score in found.scores.scores]
    assert names == NAMES
    a, b = names.index("cumulative_confidence"), names.index("cumulative_loss")  # low and high are hard
    expected = oracles.spearman(-found.scores.values[names[a]], found.scores.values[names[b]])
    assert study.correlations[a, b] == pytest.approx(expected) and expected > 0.5
    assert sorted(study.order) == list(range(len(names)))


def test_stability_against_seeds(found, study):
    assert study.sizes == (1, 2, 3) and study.of_draws.shape == (len(NAMES), 3, 20)
    agr, loss = NAMES.index("agr"), NAMES.index("loss")
    assert np.isnan(study.of_draws[agr, 0]).all()  # one seed agrees with nobody
    values = found.scores.of_seeds["loss"]
    alone = [oracles.spearman(values[s], values.mean(axis=0)) for s in range(3)]
    for draw in study.of_draws[loss, 0]:
        assert min(abs(draw - value) for value in alone) < 1e-9
    means = np.nanmean(study.of_draws[loss], axis=1)
    assert means[0] < means[2] < 1
    np.testing.assert_array_equal(study_scores(found.scores, np.zeros(50, bool)).of_draws, study.of_draws)


def test_resampling_is_by_the_mean_of_the_drawn_seeds(small, found):
    counts = np.array([[2.0, 1.0, 0.0]])
    for score in found.scores.scores:
        value = found.scores.resampled(score, counts)
        if score.name == "agr":
            expected = oracles.agreement(small.probabilities(16)[:2])
            np.testing.assert_allclose(value[0], expected, rtol=1e-4, atol=1e-7)  # of float32 probabilities
        else:
            seeds = found.scores.of_seeds[score.name]
            np.testing.assert_allclose(value[0], (2 * seeds[0] + seeds[1]) / 3)


def test_stability_against_stopping(found, study):
    for k, score in enumerate(found.scores.scores):
        values = found.scores
        for point, value in enumerate(study.of_checkpoints[k]):
            early, last = values.stopped[score.name][point], values.values[score.name]
            if np.isnan(early).any() or np.ptp(early) == 0:
                assert np.isnan(value)
            else:
                assert value == pytest.approx(oracles.spearman(early, last), abs=1e-9)
        assert study.of_checkpoints[k, -1] == pytest.approx(1)
    table = list(stability_rows(found.scores, study))
    assert len(table) == len(NAMES) * (3 + 10)
    assert table[0][:3] == ("agr", "seeds", 1) and np.isnan(table[0][3]) and table[0][-1] == 0
    assert table[3][:3] == ("agr", "iterations", 2)


# Tables.


@pytest.fixture(scope="module")
def output(small_once, tmp_path_factory):
    output = tmp_path_factory.mktemp("scores") / "results"
    with sketching():
        analysis.analyze(Recording(small_once), output, parts=["scores"])
    return output


def test_both_tables_of_scores_say_the_same(found, output):
    table, columns = rows(output / "scores.csv"), parquet.read_table(output / "scores.parquet")
    assert list(table[0]) == columns.column_names == COLUMNS
    for name in COLUMNS:
        values = np.array(columns[name].to_pylist(), float)  # None, of a score that is missing, as NaN
        np.testing.assert_allclose([float(row[name] or "nan") for row in table], values, rtol=1e-8)  # nine digits
    for name in NAMES:
        np.testing.assert_allclose(columns[name].to_numpy(), found.scores.values[name], rtol=1e-12)


def test_parquet_says_what_its_columns_are(output):
    schema = parquet.read_schema(output / "scores.parquet")
    assert schema.metadata[b"key"] == b"id"
    for name in ("example", "id", "label", "rank"):
        assert str(schema.field(name).type).startswith("int")
    for score in COMPUTED:
        field = schema.field(score.name)
        assert str(field.type) == "double"
        expected = {"hard": score.hard, "unit": score.unit, "formula": score.formula, "source": score.source}
        assert {key.decode(): value.decode() for key, value in field.metadata.items()} == expected
    assert schema.field("privacy").metadata[b"missing"] == b"run train_dynamics.further first"
    for name in set(FIRST) - set(NAMES):
        assert schema.field(name).metadata[b"about"]


def test_correlations_and_stability_are_tables(study, output):
    table = rows(output / "score_correlations.csv")
    assert [row["score"] for row in table] == NAMES
    values = [[float(row[name] or "nan") for name in NAMES] for row in table]
    np.testing.assert_allclose(values, study.correlations, rtol=1e-8)  # nine digits
    table = rows(output / "score_stability.csv")
    assert list(table[0]) == ["score", "against", "value", "mean", "smallest", "largest", "draws"]
    assert table[0] == dict(zip(table[0], ["agr", "seeds", "1", "", "", "", "0"], strict=True))
    assert not (output / "label_noise.csv").exists()


@pytest.mark.slow
def test_wrong_labels_that_were_recorded_are_looked_for(tmp_path, device, sketches):
    recording = recorded(tmp_path / "noisy", device, label_noise=0.2)
    assert recording.noisy.sum() == 10
    analysis.analyze(recording, tmp_path / "out", parts=["scores"])
    table, scores = rows(tmp_path / "out" / "label_noise.csv"), rows(tmp_path / "out" / "scores.csv")
    assert [row["score"] for row in table] == NAMES
    for row, score in zip(table, COMPUTED, strict=True):
        values = score.difficulty(np.array([float(of[score.name]) for of in scores]))
        assert (row["hard"], float(row["auc"])) == (score.hard, pytest.approx(oracles.auc(values, recording.noisy)))
    assert (tmp_path / "out" / "figures" / "label_noise.png").is_file()
    text = (tmp_path / "out" / "report.html").read_text()
    assert "10 labels were flipped" in text and "precision at noise rate" in text
    # Another analysis into the same place, of a recording whose labels are right, leaves nothing of it.
    clean = recorded(tmp_path / "clean", device)
    with sketching(blank=True):
        analysis.analyze(clean, tmp_path / "out", parts=["scores"])
    assert not (tmp_path / "out" / "label_noise.csv").exists()
    assert not (tmp_path / "out" / "figures" / "label_noise.png").exists()


# Few seeds, few examples.


def test_one_seed_ranks_by_its_mean_loss(tmp_path, device):
    recording = recorded(tmp_path / "single", device, num_seeds=1)
    found = results.compute(recording)
    assert found.agr is None and found.ranked_by == "cumulative_loss"
    assert found.scores.missing["agr"] == "agreement needs two seeds or more"
    mean = np.mean([recording.loss(t)[0] for t in recording.iterations], axis=0, dtype=np.float64)
    np.testing.assert_array_equal(np.argsort(found.rank), np.argsort(mean, kind="stable"))
    np.testing.assert_allclose(found.scores.values["cumulative_loss"], mean, rtol=1e-6)  # a sum of 17 in float32


@pytest.mark.slow
def test_one_seed_is_analysed(tmp_path, device, sketches):
    recording = recorded(tmp_path / "single", device, num_seeds=1)
    analysis.analyze(recording, tmp_path / "out", parts=["scores"])
    table = rows(tmp_path / "out" / "scores.csv")
    assert list(table[0]) == COLUMNS and {row["agr"] for row in table} == {""}
    assert sorted(int(row["rank"]) for row in table) == list(range(50))
    column = parquet.read_table(tmp_path / "out" / "scores.parquet")["agr"]
    assert column.null_count == 50
    field = parquet.read_schema(tmp_path / "out" / "scores.parquet").field("agr")
    assert field.metadata[b"missing"] == b"agreement needs two seeds or more"
    assert not list((tmp_path / "out" / "figures").glob("score_stability_seeds*"))
    text = (tmp_path / "out" / "report.html").read_text()
    words = re.sub('base64,[^"]*', "", text)
    assert "agr is missing: agreement needs two seeds or more" in words and "AGR" not in words
    assert "one seed: no interval" in text
    for claim in json.loads((tmp_path / "out" / "claims.json").read_text()):
        assert claim["low"] is claim["high"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("examples", "seeds"), [(2, 1), (9, 3)])
def test_fewer_examples_than_chunks(tmp_path, device, sketches, examples, seeds):
    recording = recorded(tmp_path / "few", device, num_examples=examples, batch_size=1, epochs=2, num_seeds=seeds)
    analysis.analyze(recording, tmp_path / "out", contention_options=ContentionOptions(checkpoints=2), parts=MOST)
    table = rows(tmp_path / "out" / "scores.csv")
    assert sorted(int(row["chunk"]) for row in table) == list(range(examples))  # a chunk each
    assert {row["group"] for row in rows(tmp_path / "out" / "curves.csv")} == {
        "all",
        *(f"chunk_{k}" for k in range(examples)),
    }
    claims = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert {claim["reason"] for claim in claims if "in cone" not in claim["measured"]} >= {"needs 10 examples or more"}
    assert all(claim["reason"] for claim in claims[:10])


def test_one_record_after_the_start(tmp_path, device, sketches):
    """The shortest recording there is."""
    recording = recorded(tmp_path / "short", device, epochs=1, batch_size=50, record_every=99)
    assert recording.iterations.tolist() == [0, 1]
    found = results.compute(recording, ScoreOptions(checkpoints=3)).scores
    assert "agr" not in found.missing and found.study.checkpoints.tolist() == [1]
    assert found.missing["vog"] == "a variance needs two checkpoints or more"
    analysis.analyze(recording, tmp_path / "out", score_options=ScoreOptions(checkpoints=3), parts=["scores"])
    assert (tmp_path / "out" / "figures" / "extremes_loss.png").is_file()
    assert not (tmp_path / "out" / "figures" / "extremes_vog.png").exists()


# Figures.


def test_number_map_draws_every_number():
    values = np.array([[1.0, -0.25], [np.nan, 0.504]])
    figure = score_plots.number_map(values, ["a", "b"], ["1", "2"], "title", "seeds", diverging=True)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["1", "-.25", ".50"]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), values)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_bars_are_sorted_and_chance_is_drawn():
    figure = score_plots.noise_bars(
        ["a", "b", "c"], np.array([0.5, 0.9, np.nan]), np.array([0.6, 0.8, np.nan]), 0.1, "t"
    )
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [0.8, 0.6, 0] and left.lines[0].get_xdata()[0] == 0.5
    assert [bar.get_width() for bar in right.patches] == [0.9, 0.5, 0] and right.lines[0].get_xdata()[0] == 0.1
    assert [label.get_text() for label in left.get_yticklabels()] == ["b", "a", "c"]


def test_ends_are_the_extremes(found):
    for score in (COMPUTED[NAMES.index("loss")], COMPUTED[NAMES.index("confidence")]):
        easy, hard = score_figures.ends(score, found, 5)
        values = found.scores.values[score.name]
        order = np.argsort(values if score.hard == "high" else -values)
        assert easy.tolist() == order[:5].tolist() and hard.tolist() == order[::-1][:5].tolist()


@pytest.mark.parametrize(("count", "side", "channels"), [(64, 28, 1), (3, 32, 3), (10, 100, 3)])
def test_extremes_show_images_and_labels(rng, count, side, channels):
    images = rng.integers(0, 256, (count, side, side, channels)).astype(np.uint8)
    labels = ["a long name of a class" if n % 2 else "7" for n in range(count)]
    figure = score_plots.extremes(images, images[::-1], (labels, labels), ("easy", "hard"), "title " * 30)
    assert len(figure.axes) == 2
    for axes, expected in zip(figure.axes, (images[0], images[-1]), strict=True):
        picture = axes.images[0].get_array()
        times = 2 if side < 56 else 1
        shown = picture[_first_image(picture, side if side < 56 else 100, times)]
        wanted = expected if channels == 3 else 255 - expected[..., 0]
        np.testing.assert_array_equal(shown[::times, ::times], wanted)
        assert picture[: 14 if side < 56 else 25].min() < 128  # a label above


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_extremes_can_show_what_each_score_is(rng, score):
    images = rng.integers(0, 256, (1, 28, 28, 1)).astype(np.uint8)
    figure = score_plots.extremes(images, images, (["0"], ["1"]), ("easy", "hard"), score_figures.extremes_title(score))
    FigureCanvasAgg(figure).draw()
    assert any(score.name in text.get_text() for text in figure.findobj(Text))


def _first_image(picture, side, times):
    height = side * times
    band, margin = height // 4, height // 8
    return slice(band, band + height), slice(margin, margin + height)


def test_the_section_names_what_is_missing(tmp_path, device):
    found = results.compute(recorded(tmp_path / "r", device, record_every=3))
    section = scores_section(found, study_scores(found.scores, np.zeros(50, bool)), [])
    assert "first_learned_in_batch, forgetting_in_batch are missing: batches can only be looked at if" in section.words
    assert len(section.rows) == len(NAMES) - 2
