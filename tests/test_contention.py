"""Contention: by hand, against slow twins, and on planted fights and planted peace."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from tests import oracles
from tests.test_cones import factors, gradients
from train_dynamics.config import InputError
from train_dynamics.dynamics import cones, contention
from train_dynamics.dynamics.contention import Pair
from train_dynamics.dynamics.tiles import tiles
from train_dynamics.recording.reader import Recording
from train_dynamics.study import contention as contention_study
from train_dynamics.study.contention import ContentionOptions, Fight, find_contention, opposition, spread_checkpoints


def pair(left, right, iteration=1, seed=0, layer="fc2", strength=1.0):
    return Pair(seed, layer, iteration, np.array(left), np.array(right), -1.0, strength, iteration)


def test_opponents_are_those_of_the_definition(rng):
    activation = np.abs(rng.normal(size=5)) + 0.2 * rng.normal(size=(60, 5))
    cotangent = np.repeat([1, -1], 30)[:, None] * rng.normal(size=3) + 0.5 * rng.normal(size=(60, 3))
    dense = gradients(activation, cotangent)
    directions = cones.directions(activation, cotangent)
    members = np.arange(0, 9)
    units = [g / max(np.linalg.norm(g), 1e-30) for g in dense]
    centre = np.mean([units[n] for n in members], axis=0)
    to_centre = [oracles.cosine(g, centre) < -0.7 for g in dense]
    np.testing.assert_array_equal(contention.opponents(directions, members, 0.7), to_centre)
    to_members = [all(oracles.cosine(g, dense[n]) < -0.2 for n in members) for g in dense]
    np.testing.assert_array_equal(contention.opponents(directions, members, 0.2, "members"), to_members)
    assert 0 < sum(to_centre) < 30 and 0 < sum(to_members) < 30


def test_sightings_of_the_same_groups_are_one_pair():
    first, mirrored = pair([1, 2, 3, 4], [7, 8]), pair([7, 8], [2, 3])
    drifted = pair([3, 4, 5], [7, 8, 9], iteration=2, strength=9.0)
    further = pair([4, 5, 6], [7, 8], iteration=4)  # like the latest sighting, no longer like the first
    (found,) = contention.merge([[first, mirrored], [drifted], [further]])
    assert (found.iteration, found.last, found.sightings, found.strength) == (1, 4, 3, 1.0)
    np.testing.assert_array_equal(found.left, [1, 2, 3, 4])


def test_other_groups_seeds_layers_and_gaps_are_other_pairs():
    first = pair([1, 2], [7, 8])
    others = [pair([3, 9], [7, 8]), pair([1, 2], [7, 8], seed=1), pair([1, 2], [7, 8], layer="fc3")]
    assert len(contention.merge([[first, *others]])) == 4
    assert len(contention.merge([[first], [], [pair([1, 2], [7, 8], iteration=3)]])) == 2
    strengths = [p.strength for p in contention.merge([[first, pair([3], [4], strength=2.0)]])]
    assert strengths == [2.0, 1.0]


def test_group_gradient_is_the_mean(rng):
    activation, cotangent = factors(rng, 10)
    dense = gradients(activation, cotangent)
    members = np.array([1, 4, 5])
    expected = np.mean([dense[n] for n in members], axis=0).ravel()
    # Sums of three in float32, and here none of them cancels.
    np.testing.assert_allclose(contention.group_gradient((activation, cotangent), members), expected, rtol=1e-5)
    np.testing.assert_allclose(contention.group_gradient((dense.reshape(10, -1),), members), expected, rtol=1e-5)


def test_matched_groups_match(rng):
    labels, norm = rng.integers(0, 3, 600), rng.random(600)
    directions = cones.directions(rng.normal(size=(600, 4)))
    by_label = [np.flatnonzero(labels == k) for k in range(3)]
    left, right = by_label[0][:12], np.concatenate([by_label[1][:7], by_label[0][12:15]])
    matched = contention.matched_groups(left, right, contention.norm_bins(labels, norm), directions, 200, rng)
    one, other = (drawn.groups[drawn.draws] for drawn in matched)
    assert one.shape == (200, 12) and other.shape == (200, 10)
    bin_of = np.empty(600, int)
    for of_label in by_label:
        order = of_label[np.argsort(norm[of_label])]
        bin_of[order] = np.arange(len(order)) * 5 // len(order)

    def strata(group):
        return sorted(zip(labels[group].tolist(), bin_of[group].tolist(), strict=True))

    for a, b in zip(one, other, strict=True):
        assert strata(a) == strata(left) and strata(b) == strata(right)
        drawn = np.concatenate([a, b])
        assert len(np.unique(drawn)) == 22 and not np.isin(drawn, [*left, *right]).any()
    assert len(np.unique(one)) > 50  # by chance

    def coherence(groups):
        return np.mean([cones.cosines(directions, group, group).mean() for group in groups])

    thrown_together = rng.permuted(np.tile(by_label[0], (200, 1)), axis=1)[:, :12]
    assert coherence(one) > coherence(thrown_together) + 0.3  # they hang together
    everyone = np.flatnonzero(labels == 2)
    assert contention.matched_groups(everyone, right, contention.norm_bins(labels, norm), directions, 5, rng) is None


def test_antiphase_is_the_correlation_of_changes(rng):
    left, right = rng.random((2, 40, 3))
    expected = [np.corrcoef(np.diff(left[:, g]), np.diff(right[:, g]))[0, 1] for g in range(3)]
    np.testing.assert_allclose(contention.antiphase(left, right), expected)
    assert np.isnan(contention.antiphase(np.ones(5), right[:5, 0]))


def test_p_values_by_hand():
    assert contention.p_value(-0.9, np.linspace(-0.5, 0.5, 99)) == 0.01
    assert contention.p_value(0.6, np.linspace(-0.5, 0.5, 99)) == 1


def test_p_values_are_corrected_over_all_pairs_tested():
    p = [0.04, None, 0.01, 0.03, 0.5]
    found = contention_study._corrected([Fight(pair([1], [2]), p=value) for value in p])
    # sorted: 0.01 * 4 / 1, 0.03 * 4 / 2, 0.04 * 4 / 3, 0.5 * 4 / 4, and none above a later one
    assert [fight.corrected for fight in found] == [pytest.approx(0.16 / 3), None, 0.04, pytest.approx(0.16 / 3), 0.5]
    assert [fight.survives for fight in found] == [False, False, True, False, False]
    assert contention_study._corrected([]) == []


def test_means_of_groups(rng):
    values, groups = rng.random((50, 7)).astype(np.float32), rng.permuted(np.tile(np.arange(50), (9, 1)), axis=1)[:, :6]
    expected = values[groups].mean(axis=1).T  # in float32, as what is found
    np.testing.assert_allclose(contention_study._means(values, groups), expected, rtol=1e-5)


def test_opposition_counts_pairs_and_finds_suspects(rng, monkeypatch):
    monkeypatch.setattr("train_dynamics.dynamics.tiles.TILE", 5)
    labels, directions = rng.integers(0, 3, 30), cones.directions(rng.normal(size=(30, 2)))
    cosine = cones.cosines(directions, slice(None), slice(None))
    expected = np.zeros((3, 3))
    for k in range(3):
        for m in range(3):
            pairs = [(a, b) for a in range(30) for b in range(30) if a != b and (labels[a], labels[b]) == (k, m)]
            expected[k, m] = np.mean([cosine[a, b] < -0.8 for a, b in pairs])
    share, suspected = opposition(directions, tiles(directions), labels, 3, 0.8, -0.7)
    np.testing.assert_allclose(share, expected)
    np.testing.assert_array_equal(suspected, (cosine < -0.7).any(axis=1))
    lonely, _ = opposition(directions, tiles(directions), np.repeat([0, 2], [29, 1]), 3, 0.8, -0.7)
    assert not lonely[1].any() and not lonely[:, 1].any() and lonely[2, 2] == 0  # no pairs, not NaN


def test_checkpoints_cover_the_run():
    for iterations, count in [(1410, 16), (3, 20), (1, 1), (1, 5)]:
        found = spread_checkpoints(np.arange(iterations + 1), count)
        assert found[0] >= 0 and found[-1] <= iterations and 1 <= len(found) <= count
    assert len(spread_checkpoints(np.arange(101), 0)) == 0


@pytest.fixture
def planted(small_path, monkeypatch):
    """A recording of 300 examples of two labels, most of whose losses go their own ways for 200 iterations.

    Something is planted in the second seed and the second layer; all others are noise.
    """

    def plant(loss, factors):
        noise = np.random.default_rng(1)
        others = tuple(noise.normal(size=factor.shape).astype(np.float32) for factor in factors)
        recording = Recording(small_path)
        monkeypatch.setattr(Recording, "labels", np.repeat([0, 1], 150))
        recording.iterations = np.arange(201)
        recording.seeds = np.array([4, 5])
        recording.config = dataclasses.replace(recording.config, layers=("fc1", "fc2"))
        planted = {"fc1": [others, others], "fc2": [others, factors]}
        monkeypatch.setattr(contention_study, "read_factors", lambda recording, layer, t: planted[layer])
        arrays = {
            "loss": np.stack([noise.random(loss.shape, np.float32), loss]),
            "prediction": np.stack([noise.integers(0, 2, (201, 300)), np.zeros((201, 300), int)]),
        }
        block = SimpleNamespace(iterations=np.arange(201), read=arrays.get)
        monkeypatch.setattr(Recording, "blocks", lambda recording: iter([block]))
        return recording

    return plant


def opposed_factors(rng):
    """Two groups of 20 with opposed gradients, of different labels and any norm; all others at random."""
    activation = np.abs(rng.normal(size=(300, 8))).astype(np.float32)
    cotangent = rng.normal(size=(300, 10)).astype(np.float32)
    code, push = np.abs(rng.normal(size=8)), rng.normal(size=10)
    for n, sign in [*zip(range(20), [1] * 20, strict=True), *zip(range(150, 170), [-1] * 20, strict=True)]:
        norm = np.linalg.norm(activation[n]) * np.linalg.norm(cotangent[n])
        activation[n], cotangent[n] = code, sign * push * norm / np.linalg.norm(code) / np.linalg.norm(push)
    return activation, cotangent


def test_a_planted_fight_survives_and_planted_peace_does_not(rng, planted):
    seen = {}
    for fights in (True, False):
        loss = rng.random((201, 300)).astype(np.float32)
        if fights:
            swing = rng.normal(size=(201, 1))
            loss[:, :20] += swing
            loss[:, 150:170] -= swing
        recording = planted(loss, opposed_factors(rng))
        found = find_contention(recording, ContentionOptions(checkpoints=2))
        (fight,) = [fight for fight in found.fights if fight.pair.iteration == 67]
        assert (fight.pair.seed, fight.pair.layer) == (1, "fc2")
        assert {tuple(fight.pair.left), tuple(fight.pair.right)} == {tuple(range(20)), tuple(range(150, 170))}
        assert fight.pair.cosine == pytest.approx(-1, abs=1e-5)  # this and all below are of float32
        assert fight.pair.last == 133 and fight.pair.sightings == 2
        # Twenty by twenty of the pairs of one seed of two, and a few of the others that happen to be as opposed.
        assert found.label_opposition["fc2"][0, 1] == pytest.approx(400 / 150**2 / 2, rel=0.1)
        seen[fights] = fight
    assert seen[True].survives and seen[True].p == 0.001 and seen[True].loss_correlation < -0.8
    assert abs(seen[True].matched_correlation) < 0.2
    assert not seen[False].survives and seen[False].p > 0.05


def test_strength_is_what_the_smaller_group_adds_to_the_mean(rng, planted):
    activation, cotangent = opposed_factors(rng)
    recording = planted(rng.random((201, 300)).astype(np.float32), (activation, cotangent))
    (fight,) = find_contention(recording, ContentionOptions(checkpoints=1)).fights
    dense = gradients(activation, cotangent)
    lengths = [np.linalg.norm(sum(dense[n] for n in group) / 300) for group in (range(20), range(150, 170))]
    assert fight.pair.strength == pytest.approx(min(lengths), rel=1e-5)


def test_of_many_examples_some_are_compared(rng, planted):
    recording = planted(rng.random((201, 300)).astype(np.float32), opposed_factors(rng))
    options = ContentionOptions(checkpoints=1, examples=250)
    (fight,) = find_contention(recording, options).fights
    among = set(contention_study.drawn(300, 250).tolist())
    assert len(among) == 250
    assert {frozenset(fight.pair.left.tolist()), frozenset(fight.pair.right.tolist())} == {
        frozenset(among & set(group)) for group in (range(20), range(150, 170))
    }
    assert 0 < contention_study.longest_search(recording, options) < 60


def test_every_pair_that_can_be_is_tested_and_the_reason_said_where_not(rng, planted, monkeypatch):
    loss = rng.random((201, 300)).astype(np.float32)
    recording = planted(loss, opposed_factors(rng))
    monkeypatch.setattr(contention, "SAME", 2.0)  # so that every sighting is a pair of its own
    fights = find_contention(recording, ContentionOptions(checkpoints=9)).fights
    assert len({fight.pair.iteration for fight in fights}) == 9
    for fight in fights:
        after = loss[fight.pair.iteration + 1 :]
        if fight.pair.iteration > 170:
            assert fight.reason == "30 records or fewer after it was found" and fight.loss_correlation is None
            assert fight.p is None and not fight.survives
            continue
        changes = [np.diff(after[:, group].mean(axis=1)) for group in (fight.pair.left, fight.pair.right)]
        assert fight.loss_correlation == pytest.approx(np.corrcoef(*changes)[0, 1], abs=1e-5)
        assert fight.accuracy_correlation is None  # nobody's prediction changes
        assert fight.reason == "" and 0.001 <= fight.p <= fight.corrected <= 1


def test_losses_that_stand_still_and_too_few_to_compare_with_are_said(rng, planted):
    flat = planted(np.ones((201, 300), np.float32), opposed_factors(rng))
    (fight,) = find_contention(flat, ContentionOptions(checkpoints=1)).fights
    assert fight.reason == "the loss of a group does not change" and not fight.survives
    everyone = pair(np.arange(150), fight.pair.right, iteration=100)
    loss, correct, factors = rng.random((300, 100)), rng.random((100, 300)) < 0.5, opposed_factors(rng)
    fight = contention_study._test(flat, everyone, loss, correct, np.zeros(300, int), cones.directions(*factors))
    assert "too few other examples" in fight.reason and fight.p is None
    changes = [np.diff(correct[:, group].mean(axis=1)) for group in (everyone.left, everyone.right)]
    assert fight.accuracy_correlation == pytest.approx(np.corrcoef(*changes)[0, 1])


def test_matched_groups_keep_false_alarms_rare(rng):
    """Groups that hang together but do not fight: p below 0.1 comes about one time in ten."""
    labels, norm = np.repeat([0, 1], 300), rng.random(600)
    alarms = 0
    for _ in range(60):
        code = rng.normal(size=(600, 3))  # examples with like codes have like directions and like losses
        directions = cones.directions(code)
        loss = rng.normal(size=(80, 3)) @ code.T + rng.normal(size=(80, 600))
        near = cones.cosines(directions, np.array([0, 300]), slice(None))
        near[0, 300:] = near[1, :300] = -2
        left, right = np.argsort(-near, axis=1)[:, :15]
        matched = contention.matched_groups(left, right, contention.norm_bins(labels, norm), directions, 99, rng)
        controls = contention.antiphase(*(loss[:, of.groups[of.draws]].mean(axis=-1) for of in matched))
        observed = float(contention.antiphase(loss[:, left].mean(axis=1), loss[:, right].mean(axis=1)))
        alarms += contention.p_value(observed, controls) <= 0.1
    assert alarms <= 14  # of 60: more come once in a thousand times at a rate of one in ten


def test_a_recording_without_a_fight_says_so(small_path):
    found = find_contention(Recording(small_path), ContentionOptions(checkpoints=3))
    assert found.fights == [] and found.checkpoints.tolist() == [4, 8, 12]
    assert set(found.label_opposition) == {"fc2"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"opposed_to": "all"}, "opposed_to=all"),
        ({"smallest": 1}, "smallest_group=1"),
        ({"checkpoints": -1}, "checkpoints=-1"),
        ({"examples": 19}, "contention_examples=19"),
    ],
)
def test_what_cannot_be_is_said(options, words):
    with pytest.raises(InputError, match=words):
        ContentionOptions(**options)


@pytest.mark.parametrize("cover", ["clique", "star"])
def test_no_opponent_is_further_from_all_members_than_the_bound(cover):
    """So an iteration without such an example needs no cover."""
    rng = np.random.default_rng(0)
    tried = 0
    for _ in range(300):
        angle = rng.uniform(0, 0.6)
        directions = cones.directions(np.array([1, 0, 0]) + angle * rng.normal(size=(12, 3)) * [0, 1, 1])
        directions = cones.directions(np.concatenate([directions[0][:6], -directions[0][6:]]))
        block = cones.cosines(directions, slice(0, 6), slice(0, 6))
        if block.min() < 0.9 if cover == "clique" else block.min(axis=1).max() < 0.9:
            continue
        for n in np.flatnonzero(contention.opponents(directions, np.arange(6), 0.9)):
            tried += 1
            least = cones.cosines(directions, np.array([n]), slice(0, 6)).min()
            assert least < contention.least_to_member(0.9, cover)
    assert tried > 50


def test_pairs_of_several_layers_and_seeds_are_each_followed_once_by_their_own_losses(rng, planted):
    loss = rng.random((201, 300)).astype(np.float32)
    recording = planted(loss, opposed_factors(rng))
    groups = np.arange(20), np.arange(150, 170)
    pairs = [pair(*groups, 67, seed, layer) for layer in ("fc1", "fc2") for seed in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        fights = contention_study._follow(recording, pairs, threads)
    assert [(fight.pair.layer, fight.pair.seed) for fight in fights] == [(p.layer, p.seed) for p in pairs]
    changes = [np.diff(loss[68:, group].mean(axis=1)) for group in groups]
    own = np.corrcoef(*changes)[0, 1]
    assert [fight.loss_correlation == pytest.approx(own, abs=1e-5) for fight in fights] == [False, True, False, True]
    assert fights[1].p != fights[3].p  # their controls hang together in their own layer
