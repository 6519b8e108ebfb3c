"""Lineages: by hand, against slow twins, and on planted groups."""

import csv
import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy.optimize import linear_sum_assignment

from tests.conftest import SMALL, silent
from train_dynamics import animate
from train_dynamics.config import InputError
from train_dynamics.dynamics import cones, lineages
from train_dynamics.plots import scatter
from train_dynamics.plots.lineage_drawings import lineage_drawings
from train_dynamics.plots.lineages import COLORS
from train_dynamics.recording.reader import Recording
from train_dynamics.report import analysis
from train_dynamics.report.lineage_section import lineages_section
from train_dynamics.study import lineages as study
from train_dynamics.study import motion, stored_lineages, tables
from train_dynamics.study.lineages import LineageOptions, find_lineages
from train_dynamics.training import sweep


def cover(*groups, count=12):
    """A cover whose cones are these, numbered as `clique_cover` does: the largest first."""
    cone = np.full(count, -1)
    for k, members in enumerate(groups):
        cone[list(members)] = k
    return cone


def random_cover(rng, count, groups):
    """Groups of very different sizes, some examples in none."""
    share = rng.dirichlet(np.full(groups + 1, 0.5))
    cone = rng.choice(groups + 1, count, p=share) - 1
    return cones._largest_first(cone)


def drifted(rng, cone, share):
    """The same cover with a share of the examples in other cones."""
    moved = cone.copy()
    chosen = rng.random(len(cone)) < share
    moved[chosen] = rng.permutation(cone[chosen])
    return cones._largest_first(moved)


def jaccards(before, after):
    """Of every two cones."""
    sets = [[set(np.flatnonzero(one == k)) for k in range(one.max() + 1)] for one in (before, after)]
    return np.array([[len(a & b) / len(a | b) for b in sets[1]] for a in sets[0]]).reshape(len(sets[0]), len(sets[1]))


def matched_weight(before, after):
    found = lineages.link(before, after)
    linked = np.flatnonzero(found >= 0)
    assert len(set(found[linked].tolist())) == len(linked)  # one successor each
    jaccard = jaccards(before, after)[found[linked], linked]
    assert (jaccard >= 1 / 3).all()
    return jaccard.sum()


def test_overlaps_are_those_of_sets(rng):
    before, after = random_cover(rng, 200, 9), random_cover(rng, 200, 7)
    found = {
        (a, b): shared for a, b, shared in zip(*map(np.ndarray.tolist, lineages.overlaps(before, after)), strict=True)
    }
    for a, b in itertools.product(range(before.max() + 1), range(after.max() + 1)):
        assert found.get((a, b), 0) == np.count_nonzero((before == a) & (after == b))


def test_the_best_for_all_is_not_the_best_for_each():
    before = cover(range(7), range(7, 12))
    after = cover([0, 1, 2, 3, 7, 8, 9], [4, 5, 6])
    np.testing.assert_allclose(jaccards(before, after), [[4 / 10, 3 / 7], [3 / 9, 0]])
    np.testing.assert_array_equal(lineages.link(before, after), [1, 0])
    before = cover(range(6), range(6, 10))
    after = cover([0, 1, 2, 3, 6, 7, 8], [4, 5])
    # 4/9 is the best for either of the two first, and leaves none for the others; 2/6 and 3/8 are more together.
    np.testing.assert_allclose(jaccards(before, after), [[4 / 9, 2 / 6], [3 / 8, 0]])
    np.testing.assert_array_equal(lineages.link(before, after), [1, 0])


@pytest.mark.parametrize("seed", range(6))
def test_links_are_those_of_the_hungarian_method(seed):
    rng = np.random.default_rng(seed)
    before = random_cover(rng, 400, 30)
    after = drifted(rng, before, 0.5)
    allowed = jaccards(before, after)
    allowed[allowed < 1 / 3] = 0
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    assert matched_weight(before, after) == pytest.approx(allowed[rows, columns].sum())


@pytest.mark.parametrize("seed", range(4))
def test_links_are_those_of_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    before = random_cover(rng, 20, 4)
    after = drifted(rng, before, 0.5)
    allowed = jaccards(before, after)
    allowed[allowed < 1 / 3] = 0
    padded = np.zeros((6, 6))
    padded[: allowed.shape[0], : allowed.shape[1]] = allowed
    best = max(padded[range(6), order].sum() for order in itertools.permutations(range(6)))
    assert matched_weight(before, after) == pytest.approx(best)


def test_links_do_not_depend_on_numbers_or_order(rng):
    before = random_cover(rng, 300, 12)
    after = drifted(rng, before, 0.3)
    order = rng.permutation(300)
    np.testing.assert_array_equal(lineages.link(before[order], after[order]), lineages.link(before, after))
    np.testing.assert_array_equal(lineages.link(before, before), np.arange(before.max() + 1))


def test_nothing_is_linked_to_nothing():
    nobody, all_alike = cover(), cover(range(12))
    assert lineages.link(nobody, nobody).tolist() == []
    assert lineages.link(nobody, all_alike).tolist() == [-1]
    assert lineages.link(all_alike, nobody).tolist() == []


def test_a_life_by_hand():
    """Two are born; one splits; the smaller grows and takes the piece in; one dies, with the other still there."""
    found = lineages.follow(
        [
            cover([0, 1, 2, 3, 4, 5], [8, 9]),
            cover([0, 1, 2, 3], [4, 5], [8, 9]),  # 0, 4 of 6 members stay; a new one is made of the other two
            cover([4, 5, 8, 9, 10], [0, 1, 2, 3]),  # 8 and 9, joined by 4 and 5, 2/5 with each: one of them ends
            cover([4, 5, 8, 9, 10]),
        ]
    )
    first, other = 0, found.lineage[2, 8]
    assert found.lineage[:, 0].tolist() == [first, first, first, -1]
    said = [(event.step, event.kind, event.before, event.after, event.shared) for event in found.events]
    assert said == [
        (0, "birth", 0, 6, 0),
        (0, "birth", 0, 2, 0),
        (1, "shrinkage", 6, 4, 4),
        (1, "split", 6, 2, 2),
        (2, "growth", 2, 5, 2),
        (2, "merge", 2, 5, 2),
        (3, "death", 4, 0, 0),
    ]
    split, merge = found.events[3], found.events[5]
    assert split.other == first and merge.other == other == found.events[4].lineage
    assert {merge.lineage, other} == {split.lineage, found.lineage[0, 8]}


def test_who_goes_apart_dies_and_who_comes_from_everywhere_is_born():
    before = cover(range(0, 4), range(4, 8), range(8, 12))
    after = cover([0, 4, 8, 1], [5, 9, 2, 6], [10, 3, 7, 11])  # two of four of one cone at most: shared by a third
    found = lineages.follow([before, after])
    assert lineages.link(before, after).tolist().count(-1) == 0  # 2 / 6 is enough
    apart = cover([0, 4, 8], [1, 5, 9], [2, 6, 10])
    found = lineages.follow([before, apart])
    assert [event.kind for event in found.events] == ["birth"] * 3 + ["birth"] * 3 + ["death"] * 3


@pytest.mark.parametrize("patience", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_every_life_has_one_beginning_and_at_most_one_end(seed, patience):
    rng = np.random.default_rng(seed)
    covers = [random_cover(rng, 150, 12)]
    for _ in range(9):
        covers.append(drifted(rng, covers[-1], rng.choice([0.1, 0.5, 0.9])))
    lineage, events = lineages.follow(covers, patience)
    assert (np.diff(np.bincount(lineage[lineage >= 0])) <= 0).all()  # the largest first
    for name in range(lineage.max() + 1):
        there = np.flatnonzero((lineage == name).any(axis=1))
        assert np.diff(there).max(initial=1) <= patience + 1
        begun = [event.step for event in events if event.lineage == name and event.kind in ("birth", "split")]
        ended = [event.step for event in events if event.lineage == name and event.kind in ("merge", "death")]
        assert begun == [there[0]]
        assert ended == ([there[-1] + 1] if there[-1] < 9 else [])

    def seen_last(name, step):
        return next((row for row in lineage[:step][::-1] if (row == name).any()), lineage[0]) == name

    for event in events:
        old = event.other if event.kind == "split" else event.lineage
        before = seen_last(old, event.step)
        now = lineage[event.step] == (event.other if event.kind == "merge" else event.lineage)
        assert event.before == (0 if event.kind == "birth" else np.count_nonzero(before))
        assert event.after == (0 if event.kind == "death" else np.count_nonzero(now))
        if event.kind not in ("birth", "death"):
            assert event.shared == np.count_nonzero(before & now)
    for row, one in zip(lineage, covers, strict=True):  # the same division under other names
        assert len({*zip(row.tolist(), one.tolist(), strict=True)}) == len({*row.tolist()}) == len({*one.tolist()})
        np.testing.assert_array_equal(row < 0, one < 0)


@pytest.mark.parametrize("patience", range(4))
def test_who_is_missing_may_come_back(patience):
    whole, elsewhere = cover(range(6), range(6, 12)), cover(range(6, 12))
    lineage, events = lineages.follow([whole, elsewhere, elsewhere, whole], patience)
    back = patience >= 2  # missing from two covers
    assert (lineage[3, 0] == lineage[0, 0]) == back
    assert [event.kind for event in events] == ["birth"] * 2 + ([] if back else ["death", "birth"])


def test_a_lineage_that_another_took_the_place_of_takes_it_back():
    whole, part = cover(range(9)), cover(range(3, 5))  # 2 / 9: the two are another lineage, out of the first
    lineage, events = lineages.follow([whole, part, whole])
    assert [row.max() for row in lineage] == [0, 1, 0]
    assert [(event.step, event.kind, event.lineage, event.other) for event in events] == [
        (0, "birth", 0, -1),
        (1, "split", 1, 0),
        (2, "merge", 1, 0),
    ]


def test_groups_drawn_have_sizes_and_labels_of_the_cones(rng):
    labels, cone = rng.integers(0, 3, 120), random_cover(rng, 120, 6)
    drawn = lineages.shuffled(cone, labels, rng)
    assert (drawn != cone).any()
    np.testing.assert_array_equal(drawn < 0, cone < 0)
    for k in range(cone.max() + 1):
        assert sorted(labels[drawn == k]) == sorted(labels[cone == k])
    alone = cones._largest_first(np.where(labels == 0, 0, -1))  # one cone that is a whole label has no other
    np.testing.assert_array_equal(lineages.shuffled(alone, labels, rng), alone)


def test_together_is_the_share_in_the_fullest_cone(rng):
    groups, one = random_cover(rng, 200, 8), random_cover(rng, 200, 5)
    expected = [
        max(np.count_nonzero(one[groups == k] == c) for c in range(one.max() + 1)) / np.count_nonzero(groups == k)
        for k in range(groups.max() + 1)
    ]
    np.testing.assert_allclose(lineages.together(groups, one), expected)
    np.testing.assert_allclose(lineages.together(groups, groups), 1)


def test_half_life_by_hand():
    everyone = np.ones(4, bool)
    assert lineages.half_life(np.array([1.0, 2.0, 3.0, 4.0]), everyone) == 2
    # At 1 one of 4 ends, 3/4; one is lost sight of at 2; at 3 one of two ends, 3/8.
    assert lineages.half_life(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, True])) == 3
    assert lineages.half_life(np.array([1.0, 2.0]), np.zeros(2, bool)) == np.inf
    assert np.isnan(lineages.half_life(np.empty(0), np.empty(0, bool)))


def test_planted_groups_live_and_groups_by_chance_do_not(rng):
    """Six groups of one label keep nine tenths of their members from cover to cover; shuffled ones were never one."""
    covers = [np.repeat(np.arange(6), 50)]
    for _ in range(11):
        covers.append(drifted(rng, covers[-1], 0.1))
    found = study.followed(3, "fc2", np.arange(0, 120, 10), covers, np.zeros(300, int))
    assert found.count == 6
    assert (found.continued == 1).all() and (found.continued_by_chance < 0.2).all()
    assert (found.together[:, 0] == 1).all() and (found.by_chance[:, 0] < 0.5).all()
    assert (np.count_nonzero(~np.isnan(found.together), axis=1) == 12 - found.step).all()
    lifetime, ended = found.lifetimes()
    assert lifetime.tolist() == [110] * 6 and not ended.any()
    assert (found.stayed(found.by_chance)[0] == 0).all()
    lived, ended = found.stayed(found.together)
    for step, share, time, over in zip(found.step, found.together, lived, ended, strict=True):
        gone = [lag for lag in range(10 - step) if (share[lag : lag + 3] < 0.5).all()]
        assert (time, over) == ((10 * gone[0], True) if gone else (10 * np.flatnonzero(share >= 0.5).max(), False))
    assert study.half_life([found.lifetimes()]) == (np.inf, None, None)


def test_groups_that_dissolve_are_gone_at_once(rng):
    first, labels = np.repeat(np.arange(20), 15), np.zeros(300, int)
    covers = [first, *(lineages.shuffled(first, labels, rng) for _ in range(5))]
    found = study.followed(7, "fc2", np.arange(6), covers, labels)  # a seed of chance other than the covers'
    assert np.nanmax(found.continued) == 0
    assert found.count == 120 == len(found.together)
    assert found.step.tolist() == [step for step in range(6) for _ in range(20)]
    real, chance = (found.stayed(share) for share in (found.together, found.by_chance))
    early = found.step < 3  # then two covers more
    assert set(real[0][early].tolist()) == {1} and real[1].tolist() == early.tolist()
    assert set(chance[0].tolist()) == {0} and chance[1].tolist() == (found.step < 4).tolist()


def test_half_lives_of_seeds_are_those_of_all_their_lineages(rng):
    of_seeds = [(rng.integers(0, 9, m).astype(float), rng.random(m) < 0.7) for m in (30, 50, 0, 20)]
    found = study.half_life(of_seeds)
    together = [np.concatenate(values) for values in zip(*of_seeds, strict=True)]
    assert found.value == lineages.half_life(*together)
    resampled = []
    for chosen in np.random.default_rng(1).integers(0, 4, (1000, 4)):
        some = [np.concatenate([of_seeds[s][k] for s in chosen]) for k in (0, 1)]
        resampled.append(lineages.half_life(*some))
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    assert abs(found.low - low) <= 1 and abs(found.high - high) <= 1  # of other resamples


def test_means_over_seeds_and_their_intervals():
    mean, (low, high) = study.mean_over_seeds(np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]]))
    np.testing.assert_array_equal(mean, [2, 5, np.nan])
    np.testing.assert_array_equal(low, [1, 5, np.nan])
    np.testing.assert_array_equal(high, [3, 5, np.nan])


@pytest.fixture
def found(small_path):
    return find_lineages(Recording(small_path), LineageOptions(cosine=0.6, smallest=3, covers=6))


def test_lineages_of_a_recording(small_path, found):
    recording = Recording(small_path)
    assert [(one.seed, one.layer) for one in found] == [(0, "fc2"), (1, "fc2"), (2, "fc2")]
    assert found[0].iterations.tolist() == [0, 3, 6, 9, 12, 15]  # every third of 17 records
    for s, one in enumerate(found):
        for row, t in zip(one.lineage, one.iterations, strict=True):
            directions = cones.directions(*(part[s % len(part)] for part in recording.vectors("fc2", t)))
            cone = cones.clique_cover(cones.near(directions, 0.6), cones.nonzero(directions))
            sizes = np.bincount(cone[cone >= 0])
            expected = {frozenset(np.flatnonzero(cone == k)) for k in np.flatnonzero(sizes >= 3)}
            assert {frozenset(np.flatnonzero(row == k)) for k in np.unique(row[row >= 0])} == expected
    again = find_lineages(recording, LineageOptions(cosine=0.6, smallest=3, covers=6))
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.by_chance, other.by_chance)


def test_a_recording_without_cones(small_path):
    for one in find_lineages(Recording(small_path), LineageOptions(smallest=51, covers=4)):
        assert one.count == 0 and one.events == [] and one.sizes.shape == (4, 0)
        assert np.isnan(one.continued).all() and one.together.shape == (0, study.LAGS + 1)


def test_of_many_examples_some_are_followed(small_path, monkeypatch):
    monkeypatch.setattr(study, "MOST_FOLLOWED", 30)
    one, *_ = find_lineages(Recording(small_path), LineageOptions(cosine=0.5, smallest=2, covers=3))
    assert 0 < np.count_nonzero((one.lineage >= 0).any(axis=0)) <= 30


@pytest.mark.parametrize(
    ("options", "words"), [({"smallest": 1}, "--smallest_group=1"), ({"covers": 1}, "--lineage_covers=1")]
)
def test_what_cannot_be_is_said(options, words):
    with pytest.raises(InputError, match=words):
        LineageOptions(**options)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_tables_of_lineages(small, found, tmp_path):
    lineage = found[0].lineage.copy()
    lineage[2, lineage[2] == 0] = -1  # the largest is missing once
    found = [dataclasses.replace(found[0], lineage=lineage), *found[1:]]
    tables.write_lineages(small, found, tmp_path / "lineages.csv")
    table = rows(tmp_path / "lineages.csv")
    names = ["seed", "layer", "lineage", "iteration", "size", "labels", "joined", "left", "founders"]
    assert list(table[0]) == names
    known = {(int(row["seed"]), int(row["lineage"]), int(row["iteration"])): row for row in table}
    assert len(known) == len(table) == sum(np.count_nonzero(one.sizes) for one in found)
    for one in found:
        for t, k in zip(*np.nonzero(one.sizes), strict=True):
            row = known[one.seed, k, one.iterations[t]]
            members = set(np.flatnonzero(one.lineage[t] == k))
            earlier = np.flatnonzero(one.sizes[:t, k])
            before = set(np.flatnonzero(one.lineage[earlier[-1]] == k)) if len(earlier) else set()
            first = set(np.flatnonzero(one.lineage[one.span()[0][k]] == k))
            counts = [len(members), len(members - before), len(before - members), len(members & first)]
            assert [int(row[name]) for name in ("size", "joined", "left", "founders")] == counts
            assert row["labels"] == tables.label_counts(small, np.array(sorted(members)))


def test_tables_of_events_and_persistence(found, tmp_path):
    tables.write_events(found, tmp_path / "events.csv")
    table = rows(tmp_path / "events.csv")
    assert len(table) == sum(len(one.events) for one in found)
    event, row = found[0].events[-1], table[len(found[0].events) - 1]
    assert (row["iteration"], row["event"], row["lineage"]) == (
        str(found[0].iterations[event.step]),
        event.kind,
        str(event.lineage),
    )
    assert {row["other"] == "" for row in table if row["event"] in ("split", "merge")} <= {False}
    tables.write_continuity(found, tmp_path / "continuity.csv")
    table = rows(tmp_path / "continuity.csv")
    assert len(table) == 3 * 5 and table[0]["cones"] == str(np.count_nonzero(found[0].sizes[0]))
    assert float(table[6]["by_chance"]) == pytest.approx(found[1].continued_by_chance[1])
    (of_layer,) = study.persistence(found)
    tables.write_persistence([of_layer], tmp_path / "persistence.csv")
    table = rows(tmp_path / "persistence.csv")
    assert [int(row["updates"]) for row in table] == [0, 3, 6, 9, 12, 15]
    for lag, row in enumerate(table):
        of_seeds = [np.mean([x for x in one.together[:, lag] if not np.isnan(x)]) for one in found]
        assert float(row["together"]) == pytest.approx(np.mean(of_seeds), rel=1e-8)  # tables hold nine digits
        assert float(row["together_low"]) <= float(row["together"]) <= float(row["together_high"])
        assert int(row["groups"]) == sum(np.count_nonzero(one.step + lag < 6) for one in found)
    assert table[0]["together"] == "1"


def test_stored_lineages_name_the_cones_that_continue_them(small, found, tmp_path):
    assert stored_lineages.read_lineages(small, tmp_path) is None
    about = {"recording": "mine", "config": small.config.to_dict()}
    (tmp_path / "analysis.json").write_text(json.dumps(about))
    tables.write_lineage_members(found, tmp_path / "cone_lineage_members.parquet")
    stored = stored_lineages.read_lineages(small, tmp_path)
    for one in found:
        for step, t in enumerate(one.iterations):
            cover = one.lineage[step]
            if (cover < 0).all():
                continue
            np.testing.assert_array_equal(stored.at(one.seed, one.layer, int(t) + 1), cover)  # the nearest
            names, cone = np.unique(cover[cover >= 0], return_inverse=True)
            shown = np.full(50, -1)
            shown[cover >= 0] = cone
            np.testing.assert_array_equal(stored.of_cones(one.seed, one.layer, int(t), shown), names)
    assert stored.of_cones(0, "fc2", 3, np.zeros(50, int)).tolist() == [-1]  # all of them are too many
    assert (stored.at(9, "fc2", 3) == -1).all()  # of no such seed
    (tmp_path / "cone_lineage_members.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"--analysis=.* has a damaged cone_lineage_members.parquet"):
        stored_lineages.read_lineages(small, tmp_path)
    (tmp_path / "analysis.json").write_text(json.dumps({**about, "config": {**about["config"], "epochs": 9}}))
    with pytest.raises(InputError, match="is an analysis of another recording, mine"):
        stored_lineages.read_lineages(small, tmp_path)


def test_the_film_has_the_colours_of_lineages():
    view = scatter.View(("fc2",), np.array([4.0]), "about")
    norm, cosine = np.array([[0.5, 2.0, 3.0]]), np.array([[0.3, -0.5, 0.0]])
    frame = motion.Frame(7, norm, cosine, np.ones(1), np.ones(3, bool))
    asked = []

    def lineage(t, layer):
        asked.append((t, layer))
        return np.array([3, -1, 20])  # the last is of none of the largest

    plain = scatter.Painter(view)
    painter = scatter.Painter(view, lineages=lineage)
    picture, usual = painter.paint(frame), plain.paint(frame)
    assert asked == [(7, "fc2")]
    box = painter._scaffold.panels[0].bbox

    def found_at(picture, norm, cosine):
        row = painter.shape[0] - (box.y0 + (cosine + 1) / 2 * box.height)
        return picture[int(row), int(box.x0 + np.sqrt(norm / 4) * box.width), :3].astype(float)

    red, green = (np.array(to_rgb(shade)) for shade in ("#d62728", scatter.GREEN))
    for norm, cosine, shade in ((0.5, 0.3, red), (2.0, -0.5, green)):
        opaque = scatter.ALPHA if shade is red else 1 - (1 - scatter.ALPHA) ** scatter.FAINT
        ground = found_at(painter._empty, norm, cosine)
        expected = ground + opaque * (255 * shade - ground)
        # Ink comes in levels, and a point is half a pixel beside.
        np.testing.assert_allclose(found_at(picture, norm, cosine), expected, atol=12)
        assert (found_at(usual, norm, cosine) != found_at(picture, norm, cosine)).any()


def test_what_the_film_cannot_show_is_said(small, tmp_path):
    for kind, words in ((".gif", r"colours films that end in .mp4 only, not .gif"), (".mp4", "has no lineages")):
        with pytest.raises(InputError, match=words):
            animate.lineages_of(small, str(tmp_path), kind)
    assert animate.lineages_of(small, None, ".gif") is None


def test_colours_are_those_of_the_page():
    source = (Path(__file__).parent.parent / "explorer" / "src" / "colours.ts").read_text()
    listed = source.split("LINEAGES: Rgb[] = [")[1].split("]")[0]
    assert tuple(f"#{color}" for color in re.findall(r'"(\w{6})"', listed)) == COLORS


def analysed(recording, output, **options):
    said = []
    options = LineageOptions(**{"cosine": 0.6, "smallest": 3, "covers": 6} | options)
    analysis.analyze(recording, output, lineage_options=options, parts=["lineages"], log=said.append)
    drawn = {path.stem for path in (output / "figures").glob("*.png")}
    return (output / "report.html").read_text(), drawn, said


def test_the_page_tells_of_lineages(small, found, tmp_path, sketches):
    text, drawn, _ = analysed(small, tmp_path / "out")
    assert {"cone_lineages", "lineage_persistence"} <= drawn
    total = sum(one.count for one in found)
    assert "<h2>Lineages of cones" in text and f"In fc2, {total} lineages of 3 seeds: " in text
    assert "--parts=lineages --lineage_covers=6" in text
    for name in ("cone_lineages.csv", "cone_events.csv", "lineage_persistence.csv", "lineage_continuity.csv"):
        assert f"<code>{name}</code>" in text and len(rows(tmp_path / "out" / name)) > 3


def test_a_page_without_cones(small, tmp_path, blanks):
    text, drawn, _ = analysed(small, tmp_path / "out", smallest=51)
    assert "In fc2 there is no such cone." in text and not drawn & {"cone_lineages", "lineage_persistence"}
    assert rows(tmp_path / "out" / "cone_lineages.csv") == rows(tmp_path / "out" / "cone_events.csv") == []
    stored = stored_lineages.read_lineages(small, tmp_path / "out")
    assert (stored.at(0, "fc2", 3) == -1).all()


def test_several_layers_have_lineages_of_their_own(tmp_path, device, blanks):
    config = dataclasses.replace(SMALL, hidden_sizes=(6, 5), layers=("fc2", "fc3"), gradient_layout="dense", epochs=1)
    sweep.train(config, tmp_path / "deep", device, log=silent)
    text, drawn, _ = analysed(Recording(tmp_path / "deep"), tmp_path / "out", cover="star", covers=3)
    assert {"fc2_cone_lineages", "fc3_cone_lineages", "fc2_lineage_persistence"} <= drawn
    assert "In fc2, " in text and "In fc3, " in text
    assert {row["layer"] for row in rows(tmp_path / "out" / "cone_events.csv")} == {"fc2", "fc3"}


def test_one_seed_of_a_regression_of_numbers(tmp_path, device, sketches):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", inputs=rng.normal(size=(40, 3)), labels=rng.normal(size=40))
    config = dataclasses.replace(SMALL, dataset=str(tmp_path / "data.npz"), num_examples=None, num_seeds=1, epochs=2)
    sweep.train(config, tmp_path / "run", device, log=silent)
    text, drawn, _ = analysed(Recording(tmp_path / "run"), tmp_path / "out")
    assert {"cone_lineages", "lineage_persistence"} <= drawn
    assert "lineages of 1 seed" in text and "95 % over seeds" not in text and "label:count" not in text


def test_records_that_are_not_evenly_spread_are_counted_in_covers(small, tmp_path, rng):
    covers = [np.repeat(np.arange(5), 10)]
    for _ in range(5):
        covers.append(drifted(rng, covers[-1], 0.1))
    found = [study.followed(0, "fc2", np.array([0, 1, 2, 4, 8, 16]), covers, small.labels)]
    (of_layer,) = study.persistence(found)
    assert of_layer.updates is None and found[0].lifetimes()[0].tolist() == [16] * 5
    tables.write_persistence([of_layer], tmp_path / "persistence.csv")
    assert [(row["lag"], row["updates"]) for row in rows(tmp_path / "persistence.csv")] == [
        (str(k), "") for k in range(6)
    ]
    assert "5 covers later, " in lineages_section(small, 10, 0, found, [of_layer], []).words
    *_, drawing = lineage_drawings(small, found, [of_layer], 0)
    assert drawing.figure.axes[0].get_xlabel() == "covers later"
