"""Oscillation: by hand, against slow twins, and on planted turns and planted chance."""

import csv
import json

import numpy as np
import pytest

from tests.test_cones import factors, gradients
from train_dynamics.dynamics import oscillation
from train_dynamics.dynamics.contention import Pair
from train_dynamics.dynamics.oscillation import Course
from train_dynamics.recording.reader import Recording
from train_dynamics.report import analysis
from train_dynamics.study import oscillation as study
from train_dynamics.study.contention import Contention, ContentionOptions, Fight


def course(lead, own=None, step=None, norm=None, loss=None, accuracy=None):
    """A course of which what is not given is not known."""
    lead = np.array(lead, float)
    none = np.full_like(lead, np.nan)
    alone = [none if one is None else np.array(one, float) for one in (own, step)]
    sides = [np.stack([none, none]) if two is None else np.array(two, float) for two in (norm, loss, accuracy)]
    return Course(lead, *alone, *sides)


def pair(left, right, iteration=1, seed=0, layer="fc2", strength=1.0):
    return Pair(seed, layer, iteration, np.array(left), np.array(right), -1.0, strength, iteration)


def test_the_axis_is_the_difference_of_the_directions(rng):
    """Against the vectors themselves, for pairs with any third; all float64."""
    left, right, other = rng.normal(size=(3, 20, 6))
    axis = [a / np.linalg.norm(a) - b / np.linalg.norm(b) for a, b in zip(left, right, strict=True)]
    expected = [v @ u / np.linalg.norm(u) for v, u in zip(other, axis, strict=True)]
    norm = np.linalg.norm([left, right], axis=-1)
    to_other = np.stack([(left * other).sum(axis=1), (right * other).sum(axis=1)])
    product = (left * right).sum(axis=1)
    np.testing.assert_allclose(oscillation.along_axis(norm, product, to_other), expected)
    # Of the sum of the two: the difference of the lengths times the sine of half the angle between them.
    lead = oscillation.along_axis(norm, product, norm**2 + product)
    half_angle = np.arccos(product / norm.prod(axis=0)) / 2
    np.testing.assert_allclose(lead, (norm[0] - norm[1]) * np.sin(half_angle))


def test_a_group_without_a_gradient_has_no_direction():
    zero = np.array(0.0)
    assert oscillation.along_axis(np.array([0.0, 2.0]), zero, np.array([0.0, 6.0])) == -3
    assert oscillation.along_axis(np.array([0.0, 0.0]), zero, np.zeros(2)) == 0
    assert oscillation.along_axis(np.array([1.0, 2.0]), np.array(2.0), np.array([3.0, 6.0])) == 0  # the same direction


def test_steps_by_hand():
    found = course(
        lead=[1, 2, -1, 0, 1],  # the right one leads at 2 and, as if still, at 3
        own=[1, -1, -1, 5, 2],
        norm=[[3, 3, 1, 1, 2], [2, 1, 2, 1, 1]],
        loss=[[3, 2, 1, 2, 1], [1, 2, 3, 1, 2]],
        accuracy=[[0.5, 0.6, 0.6, 0.4, 0.6], [0.5, 0.4, 0.5, 0.5, 0.5]],
    )
    assert oscillation.carried(found) == 3 / 4  # at 0, 2 and 4; not at 1, and at 3 nobody leads
    # Leaders: left, left, right, right (a lead of 0 is not left's). Their losses change by -1, -1, -2, +1.
    assert oscillation.leader_falls(found) == 3 / 4
    assert oscillation.other_rises(found) == 3 / 4  # +1, +1, +1, -1
    assert oscillation.leader_gains(found) == 1  # +0.1, and three times nothing
    assert oscillation.other_loses(found) == 2 / 4  # -0.1, +0.1, -0.2, +0.2
    assert oscillation.other_grows(found) == 2 / 3  # of right, right, left, left: -1, +1, 0, +1
    assert oscillation.lead_changes(found) == 2
    assert np.isnan(oscillation.leader_gains(course(found.lead)))


def test_every_step_takes_many_pairs_at_once_and_each_as_if_alone(rng):
    many = Course(*rng.normal(size=(3, 40, 5)), *rng.normal(size=(3, 2, 40, 5)))
    for step in study.STEPS:
        alone = [step.statistic(Course(*(curve[..., g] for curve in many))) for g in range(5)]
        np.testing.assert_allclose(step.statistic(many), alone, atol=1e-12)


def test_which_group_is_called_left_does_not_matter(rng):
    one = Course(*rng.normal(size=(3, 60)), *rng.normal(size=(3, 2, 60)))
    other = Course(*(-curve for curve in one[:3]), *(curve[::-1] for curve in one[3:]))
    for step in study.STEPS:
        assert step.statistic(one) == pytest.approx(step.statistic(other)), step.name


def test_correlogram_against_its_definition(rng):
    x, y = rng.normal(size=(2, 30)).cumsum(axis=1)
    t = np.arange(30)
    x, y = (curve - np.polyval(np.polyfit(t, curve, 1), t) for curve in (x, y))
    lengths = np.sqrt((x @ x) * (y @ y))
    expected = [sum(x[k] * y[k + lag] for k in range(30) if 0 <= k + lag < 30) / lengths for lag in range(-7, 8)]
    np.testing.assert_allclose(oscillation.correlogram(x, y, 7), expected, atol=1e-12)
    assert np.isnan(oscillation.correlogram(x, np.ones(30), 3)).all()


def test_planted_turns_have_their_period_and_lag_and_chance_has_neither(rng):
    """Turns of 24 records; the loss is three records later than the lead."""
    t = np.arange(300)
    lead = np.sin(2 * np.pi * t / 24) + 0.3 * rng.normal(size=300) + 0.01 * t
    loss = np.sin(2 * np.pi * (t - 3) / 24) + 0.3 * rng.normal(size=300)
    height, period = oscillation.rhythm(lead)
    lag, found = oscillation.best_lag(lead, loss, 10)
    assert abs(period - 24) <= 1 and height > 0.6 and abs(lag - 3) <= 1 and found > 0.8
    assert oscillation.best_lag(lead, -loss, 10)[1] < -0.8
    lag, half_turn, value = oscillation.memory(lead, 30)
    assert 2 <= lag <= 5 and abs(half_turn - 12) <= 1 and value < -0.6
    chance = oscillation.rhythm(rng.normal(size=(300, 200)))[0]
    assert np.quantile(chance, 0.99) < 0.3
    assert np.isnan(oscillation.rhythm(np.ones(20))).all()


def star(turn, rng, noise):
    """A pair that takes turns, or is driven by chance, and 30 more pairs of chance."""
    t = np.arange(250)
    lead = rng.normal(size=(250, 31)).cumsum(axis=0)
    if turn:
        lead[:, 0] = 5 * np.sin(2 * np.pi * t / 25)
    # The loss of the leader falls as it should, that of the other rises: by a quarter of a turn the lead is behind.
    change = -lead * 0.1 + noise * rng.normal(size=lead.shape) if turn else rng.normal(size=lead.shape)
    loss = np.roll([change, -change], 1, axis=1).cumsum(axis=1)  # what changes after a record
    return Course(lead, lead, -change, np.abs(np.stack([lead, -lead])) + loss - loss.min(), loss, -loss)


def test_a_planted_star_has_every_step_and_chance_has_none(rng):
    compared = study._compare(star(True, rng, 0.01))
    names = [step.name for step in study.STEPS]
    value = dict(zip(names, compared[0], strict=True))
    assert value["leader_falls"] > 0.95 and value["other_rises"] > 0.95 and value["leader_gains"] > 0.95
    assert value["regularity"] > 0.7 and value["lead_changes"] in (19, 20) and value["step_decides"] > 0.9
    p = [study._compare(star(False, rng, 1.0))[2] for _ in range(40)]
    alarms = np.mean(np.array(p) <= 0.1, axis=0)
    assert (alarms <= 0.3).all(), dict(zip(names, alarms, strict=True))  # of 40: more come once in thousands of times


def test_one_record_against_dense_gradients(rng):
    """Sums over groups by a sparse matrix; float32, sums of a few products."""
    activation, cotangent = factors(rng, 30)
    dense = gradients(activation, cotangent).reshape(30, -1)
    loss, correct = rng.random(30).astype(np.float32), rng.random(30) < 0.5
    step = rng.normal(size=dense.shape[1]).astype(np.float32)
    followed = []
    for groups in (
        (np.array([[0, 1, 2], [8, 9, 10]]), np.array([[3, 4], [11, 12]])),
        ([np.array([5])], [np.arange(20, 29)]),
    ):
        followed.append(study._Followed(pair([0], [1]), 0, 1))
        followed[-1].groups = [np.array(side) for side in groups]
    members = study._membership(followed, 30)
    for parts in ((activation, cotangent), (dense.astype(np.float32),)):
        found = study._courses(members, parts, step, loss, correct)
        assert found.shape == (9, 3)
        for g, (left, right) in enumerate([([0, 1, 2], [3, 4]), ([8, 9, 10], [11, 12]), ([5], list(range(20, 29)))]):
            one, other = dense[left].sum(axis=0) / 30, dense[right].sum(axis=0) / 30
            axis = one / np.linalg.norm(one) - other / np.linalg.norm(other)
            axis /= np.linalg.norm(axis)
            expected = [dense.mean(axis=0) @ axis, (one + other) @ axis, step @ axis]
            expected += [np.linalg.norm(one), np.linalg.norm(other)]
            expected += [values[group].mean() for values in (loss, correct) for group in (left, right)]
            np.testing.assert_allclose(found[:, g], expected, rtol=1e-4, atol=1e-5)


def contention_of(*pairs):
    return Contention(ContentionOptions(), np.arange(0), [Fight(one) for one in pairs], {})


def test_pairs_of_a_recording_are_followed_through_their_own_records(small, monkeypatch):
    """Of seeds and spans of their own; by the plain reading of gradients, losses and weights."""
    monkeypatch.setattr(study, "FEWEST_CHANGES", 3)
    monkeypatch.setattr(study, "WINDOW", 8)
    pairs = [pair(range(4), range(4, 9), 2), pair([1, 2], [30, 31], 5, seed=2), pair([1, 2], [3, 4], 14)]
    found = study.follow_oscillation(small, contention_of(*pairs))
    assert [len(span) for span in found.records] == [9, 9, 3] and found.courses[2] is None
    assert found.reasons[2] == "3 records or fewer after it was found"
    for one, span, seen in zip(pairs[:2], found.records, found.courses, strict=False):
        for place, record in enumerate(span):
            dense = small.gradients("fc2", record)[one.seed].reshape(50, -1).astype(float)
            left, right = (dense[group].sum(axis=0) / 50 for group in (one.left, one.right))
            axis = left / np.linalg.norm(left) - right / np.linalg.norm(right)
            axis /= np.linalg.norm(axis)
            weights = [small.parameters(t)["fc2"]["kernel"][one.seed].ravel() for t in (record, record + 1)]
            expected = [dense.mean(axis=0) @ axis, (left + right) @ axis, (weights[0] - weights[1]) @ axis]
            # float32 gradients, of which differences are taken
            np.testing.assert_allclose([curve[place] for curve in seen[:3]], expected, rtol=1e-3, atol=1e-6)
            loss, correct = small.loss(record)[one.seed], small.correct(record)[one.seed]
            for side, group in enumerate((one.left, one.right)):
                assert seen.loss[side, place] == pytest.approx(loss[group].mean(), rel=1e-5)
                assert seen.accuracy[side, place] == pytest.approx(correct[group].mean())
    for k, step in enumerate(study.STEPS):
        assert found.value[0, k] == pytest.approx(float(step.statistic(found.courses[0])), nan_ok=True)


def test_only_the_strongest_are_followed_where_all_would_take_too_long(small, monkeypatch):
    monkeypatch.setattr(study, "FEWEST_CHANGES", 3)
    pairs = contention_of(*(pair([1, 2], [3, 4], t) for t in (10, 4, 14)))
    monkeypatch.setattr(study, "MOST_WORK", 200 * 4 * 50 * 6)  # six records of four examples of 5 x 10 weights
    found = study.follow_oscillation(small, pairs)
    assert found.courses[0] is not None and found.courses[1] is None
    assert [reason[:6] for reason in found.reasons] == ["too fe", "others", "3 reco"]


def test_the_last_record_knows_no_step(small, monkeypatch):
    monkeypatch.setattr(study, "FEWEST_CHANGES", 3)
    found = study.follow_oscillation(small, contention_of(pair(range(4), range(4, 9), 10)))
    assert np.isnan(found.courses[0].step).tolist() == [False] * 6 + [True]
    assert not np.isnan(found.value[0, [step.name for step in study.STEPS].index("step_decides")])


def test_controls_are_like_the_pair_and_p_is_corrected_by_step(monkeypatch):
    p = np.array([[0.04, 0.01], [np.nan, np.nan], [0.01, 0.5], [0.03, 0.01]])
    # sorted: 0.01 * 3 / 1, 0.03 * 3 / 2, 0.04 * 3 / 3, and none above a later one; 0.01 * 3 / 2 twice
    expected = [[0.04, 0.015], [np.nan, np.nan], [0.03, 0.5], [0.04, 0.015]]
    np.testing.assert_allclose(study._corrected(p), expected)
    assert np.isnan(study._corrected(np.full((2, 2), np.nan))).all()


def oscillation_of(value, corrected, seeds):
    """Pairs with these values of the first step, and none of the others."""
    count, steps = len(value), len(study.STEPS)
    columns = [np.full((count, steps), np.nan) for _ in range(4)]
    columns[0][:, 0], columns[3][:, 0] = value, corrected
    columns[1][:, 0] = np.where(np.isnan(corrected), np.nan, 0.5)
    times = [np.full((count, len(study.TIMES)), np.nan) for _ in range(2)]
    pairs = [pair([0], [1], seed=seed) for seed in seeds]
    return study.Oscillation(pairs, [range(9)] * count, [None] * count, *columns, *times, [""] * count)


def test_verdicts_count_what_is_true_and_more_so_than_matched():
    found = oscillation_of([0.6, 0.7, 0.4, 0.9, 0.2], [0.01, 0.2, 0.01, np.nan, 0.9], [0, 0, 1, 1, 1])
    first, *rest = study.verdicts(found, 2)
    assert (first.name, first.pairs, first.true, first.compared, first.holds) == ("carried", 5, 3, 4, 1)
    assert first.share == 0.25 and first.median == 0.6 and first.matched == pytest.approx(0.5)
    # 0.1 and 0.2 more than matched in one seed, -0.1 and -0.3 in the other: -0.025 on average
    assert first.difference == pytest.approx(-0.025)
    assert first.low == pytest.approx(-0.2) and first.high == pytest.approx(0.15)  # of a seed alone
    assert all((verdict.pairs, verdict.holds, verdict.share, verdict.median) == (0, 0, None, None) for verdict in rest)
    alone = study.verdicts(oscillation_of([0.6], [0.01], [0]), 1)[0]
    assert (alone.share, alone.difference, alone.low, alone.high) == (1, pytest.approx(0.1), None, None)
    nothing = study.verdicts(oscillation_of([], [], []), 3)[0]
    assert (nothing.pairs, nothing.share, nothing.low) == (0, None, None)


def test_sketches_know_no_step_and_regressions_no_accuracy(small, monkeypatch):
    layer = small.contents.layers["fc2"]._replace(layout="sketch")
    monkeypatch.setattr(Recording, "kept", lambda recording, name: layer)
    assert study._weights(small, "fc2", range(3)) is None


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_analysis_has_tables_pictures_and_a_section(small_path, tmp_path, monkeypatch, sketches):
    monkeypatch.setattr(study, "FEWEST_CHANGES", 3)
    wide = ContentionOptions(cosine=0.3, smallest=2, checkpoints=4)
    output = tmp_path / "out"
    analysis.analyze(Recording(small_path), output, contention_options=wide, parts=["contention", "oscillation"])
    found, pairs = rows(output / "oscillation.csv"), rows(output / "contention.csv")
    assert [[row[name] for name in ("pair", "seed", "layer", "iteration")] for row in found] == [
        [row[name] for name in ("pair", "seed", "layer", "iteration")] for row in pairs
    ]
    for row in found:
        followed = 17 - int(row["iteration"])
        assert row["records"] == str(followed if followed > 4 else 0)
        assert (row["carried"] == "") == (followed <= 4) and (row["carried_p"] == "") == (row["reason"] != "")
        holds = row["carried_p_corrected"] and str(
            float(row["carried"]) > 0.5 and float(row["carried_p_corrected"]) <= 0.05
        )
        assert row["carried_holds"] == holds.lower()
    said = json.loads((output / "oscillation.json").read_text())
    first = said["steps"][0]
    assert first["name"] == "carried" and first["pairs"] == sum(row["carried"] != "" for row in found)
    assert first["true"] == sum(float(row["carried"] or 0) > 0.5 for row in found)
    assert first["compared"] == sum(row["carried_p"] != "" for row in found)
    assert set(said["times"]) == set(study.TIMES)
    report = (output / "report.html").read_text()
    assert "take turns?" in report and "oscillation.csv" in report
    assert {path.stem for path in (output / "figures").glob("oscillation_*.png")} == {
        "oscillation_steps",
        "oscillation_pair",
    }
    analysis.analyze(Recording(small_path), output, contention_options=wide, parts=["oscillation"])
    assert not (output / "contention.csv").exists() and rows(output / "oscillation.csv") == found


def test_where_nothing_can_be_said_that_is_said(small_path, tmp_path, sketches):
    wide, output = ContentionOptions(cosine=0.3, smallest=2, checkpoints=4), tmp_path / "out"
    analysis.analyze(Recording(small_path), output, contention_options=wide, parts=["oscillation"])
    assert "was found with more than 30 records left" in (output / "report.html").read_text()
    assert {row["reason"] for row in rows(output / "oscillation.csv")} == {"30 records or fewer after it was found"}
    analysis.analyze(Recording(small_path), output, parts=["oscillation"])
    assert "There is no pair in contention" in (output / "report.html").read_text()
    assert rows(output / "oscillation.csv") == []
    assert all(step["pairs"] == 0 for step in json.loads((output / "oscillation.json").read_text())["steps"])
