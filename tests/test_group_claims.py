"""Claims about groups of examples, on recordings made so that they hold or fail."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import SMALL, silent
from train_dynamics.dynamics.contention import Pair
from train_dynamics.recording.reader import Recording
from train_dynamics.study import group_claims
from train_dynamics.study.cones import ConeOptions
from train_dynamics.study.contention import Contention, ContentionOptions, Fight
from train_dynamics.study.group_claims import gain_by_mirror, moves, spread
from train_dynamics.study.motion import frames
from train_dynamics.training import sweep

DIGITS = tuple("0123456789")


def fight(seed, iteration, left, right, correlation, layer="fc2"):
    pair = Pair(seed, layer, iteration, np.array(left), np.array(right), -1.0, 1.0, iteration)
    return Fight(pair, loss_correlation=correlation)


def verdicts(recording, fights=None):
    contention = fights and Contention(ContentionOptions(), np.array([1]), fights, {})
    found = group_claims.group_claims(recording, np.full((3, 17), 0.6), ConeOptions(), contention)
    return {claim.name: claim for claim in found}


@pytest.fixture
def digits(small, monkeypatch):
    """The small recording as if it were of ten digits: examples 0 to 9 are 0, 10 to 19 are 1, and so on."""
    monkeypatch.setattr(Recording, "labels", np.repeat(np.arange(5), 10))
    small.class_names = DIGITS
    return small


def test_movement_is_the_mean_change_of_norm(small):
    found = verdicts(small)
    for which, name in ((True, "right_move_left"), (False, "wrong_move_right")):
        changes = []
        for seed in small.seeds:
            shown = list(frames(small, int(seed), small.iterations))
            for before, after in itertools.pairwise(shown):
                changes += (after.norm[0] - before.norm[0])[before.correct == which].tolist()
        assert found[name].value == pytest.approx(np.mean(changes), rel=1e-6)
        assert found[name].holds == (np.mean(changes) < 0 if which else np.mean(changes) > 0)
        assert found[name].low <= found[name].value <= found[name].high


def test_spread_is_that_of_all_pairs(rng):
    inputs = rng.normal(size=(7, 4))
    slow = np.mean([np.square(inputs[i] - inputs[j]).sum() for i in range(7) for j in range(7) if i != j])
    assert spread(inputs) == pytest.approx(slow)


def test_a_cone_of_like_images_has_one_style_and_a_cone_of_any_has_not(digits, monkeypatch, rng):
    images = rng.normal(size=(50, 4, 4, 1)).astype(np.float32)
    for alike in (True, False):
        here = images.copy()
        if alike:
            here[:10] = images[0]  # the members of the cone; all others of their label are none
        monkeypatch.setattr(Recording, "labels", np.repeat([0, 1], 25))
        monkeypatch.setattr(Recording, "data", SimpleNamespace(inputs=here))
        monkeypatch.setattr(group_claims, "has_pictures", lambda data: True)
        cone = np.where(np.arange(50) < 10, 0, -1)
        monkeypatch.setattr(group_claims, "cover", lambda directions, options, cone=cone: (cone, None))
        found = verdicts(digits)
        assert (found["cones_of_one_label"].value, found["cones_of_one_label"].holds) == (1, True)
        ratio = spread(here[:10].reshape(10, -1)) / spread(here[:25].reshape(25, -1))
        assert found["cones_of_one_style"].value == pytest.approx(ratio)
    mixed = np.where((np.arange(50) > 20) & (np.arange(50) < 35), 0, -1)
    monkeypatch.setattr(group_claims, "cover", lambda directions, options: (mixed, None))
    found = verdicts(digits)
    assert found["cones_of_one_label"].holds is False and found["cones_of_one_style"].holds is None


def test_fights_are_counted_by_label_and_seed(digits):
    twos, fours, ones = range(20, 23), range(40, 43), range(10, 13)
    fights = [fight(0, 40, twos, ones, -0.9), fight(1, 10, ones, twos, 0.2), fight(2, 50, fours, ones, -0.1)]
    found = verdicts(digits, fights)
    assert (found["clusters_oscillate"].value, found["clusters_oscillate"].holds) == (0.5, True)  # two after 30
    assert found["fights_1_2"].value == pytest.approx((2 - 1 / 41) / 3) and found["fights_1_2"].holds
    assert found["fights_4_9"].value == pytest.approx(-1 / 41 / 3) and not found["fights_4_9"].holds
    assert found["mirrored_2_6"].holds is None and "no pair in contention of 2 and 6" in found["mirrored_2_6"].reason
    assert not set(verdicts(digits)) & {"clusters_oscillate", "fights_1_2"}  # not looked for


def test_each_layer_has_claims_of_its_own(tmp_path, device, monkeypatch):
    layers = ("fc1", "fc2")
    sweep.train(dataclasses.replace(SMALL, layers=layers), tmp_path / "two", device, log=silent)
    recording = Recording(tmp_path / "two")
    recording.class_names = DIGITS
    monkeypatch.setattr(Recording, "labels", np.repeat(np.arange(5), 10))
    found = verdicts(recording, [fight(0, 40, range(20, 23), range(10, 13), -0.9, "fc1")])
    alone = ("right_move_left", "cones_of_one_label", "clusters_oscillate", "fights_1_2", "mirrored_2_6")
    assert {f"{name}_{layer}" for name in alone for layer in layers} <= set(found) and not set(alone) & set(found)
    for k, layer in enumerate(layers):
        changes = []
        for seed in recording.seeds:
            for before, after in itertools.pairwise(frames(recording, int(seed), recording.iterations)):
                changes += (after.norm[k] - before.norm[k])[before.correct].tolist()
        assert found[f"right_move_left_{layer}"].value == pytest.approx(np.mean(changes), rel=1e-5)
        assert all(found[f"{name}_{layer}"].sentence.endswith(f" in {layer}.") for name in alone)
    assert found["fights_1_2_fc1"].value == pytest.approx(1 / 3) and found["fights_1_2_fc2"].value is None
    assert found["clusters_oscillate_fc1"].holds and found["clusters_oscillate_fc2"].holds is None


def test_mirrors(rng):
    left = rng.normal(size=(5, 6, 6, 1))
    assert gain_by_mirror(left, left[:, :, ::-1]) > 0.5 > -0.5 > gain_by_mirror(left, left)


def test_moves_by_hand():
    right, wrong = moves(np.array([[2.0, 1.0], [1.5, 3.0]]), np.array([[True, False], [True, True]]))
    assert right.tolist() == [-0.5, 1] and wrong.tolist() == [2, 1]
