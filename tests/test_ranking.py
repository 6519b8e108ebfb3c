"""Examples ranked by what another analysis found."""

import csv

import numpy as np
import pytest

from tests.conftest import silent
from train_dynamics.config import InputError
from train_dynamics.recording.reader import Recording
from train_dynamics.report import analysis
from train_dynamics.study.ranking import read_ranking
from train_dynamics.study.results import compute


@pytest.fixture
def tables(analysed):
    return analysed / "analysis"


def column(path, name):
    with path.open(newline="") as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


def test_its_own_agreement_ranks_as_without(small, tables):
    given = read_ranking(small, f"{tables / 'scores.csv'}:agr")
    found, own = compute(small, None, False, given=given), compute(small, None, False)
    np.testing.assert_array_equal(found.rank, own.rank)
    assert (own.ranked_by, found.ranked_by) == ("agr", "given") and found.ranked_by_words.startswith("agr of ")
    for metric, curve in own.curves.items():
        np.testing.assert_array_equal(found.curves[metric], curve)


def test_of_a_score_that_is_low_for_hard_examples_the_hard_ones_come_last(small, tables):
    path = tables / "scores.csv"
    given = read_ranking(small, f"{path}:confidence")
    np.testing.assert_array_equal(given.values, -column(path, "confidence"))
    found = compute(small, None, False, given=given)
    assert column(path, "confidence")[found.rank.argmax()] == column(path, "confidence").min()


def test_an_analysis_says_what_it_ranks_by_and_keeps_the_scores(small, tables, tmp_path):
    given = read_ranking(small, f"{tables / 'scores.csv'}:el2n")
    output = tmp_path / "out"
    analysis.analyze(Recording(small.path), output, parts=(), log=silent, given=given)
    np.testing.assert_array_equal(column(output / "scores.csv", "agr"), column(tables / "scores.csv", "agr"))
    order = column(output / "scores.csv", "rank").argsort()
    assert (np.diff(column(tables / "scores.csv", "el2n")[order]) >= 0).all()
    assert "ranked by el2n of " in (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("scores.csv", "must be FILE:COLUMN"),
        ("missing.csv:agr", "cannot be read: No such file"),
        ("{out}/scores.csv:beauty", "has no column beauty; it has example, id"),
        ("{out}/curves.csv:iteration", "is not of the 50 examples"),
        ("{out}/scores.csv:holdout_retraining", "has not a number for each example"),
    ],
)
def test_mistakes_get_a_line(small, tables, where, message):
    with pytest.raises(InputError, match=message) as error:
        read_ranking(small, where.format(out=tables))
    assert str(error.value).startswith("--rank_by=") and "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["inf", "1"])
def test_a_column_must_order_examples(small, tmp_path, value):
    lines = ["id,mine", *(f"{name},{value}" for name in small.ids)]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match="must have a finite number for each example, and not the same for all"):
        read_ranking(small, f"{tmp_path / 'mine.csv'}:mine")
