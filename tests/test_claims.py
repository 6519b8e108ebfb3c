"""Each claim on curves made so that it holds, fails, or cannot be decided."""

import dataclasses

import numpy as np
import pytest

from train_dynamics.dynamics.forgetting import Forgetting
from train_dynamics.study.claims import claims, reaches
from train_dynamics.study.results import Results

T, SEEDS = 300, 4


def curve(of_group) -> np.ndarray:
    """[s, t, group] from a function of iteration and group (0 all, 1 to 10 the chunks), alike for every seed."""
    t, g = np.meshgrid(np.arange(T + 1.0), np.arange(11.0), indexing="ij")
    return np.repeat(of_group(t, g)[None], SEEDS, axis=0)


def learned(t, g):
    """The share of a group that is learned; of the last chunk much later than of the one before."""
    return np.clip(0.11 + t / (10 + 4 * g + 60 * (g == 10)), 0, 1)


def results(**changes) -> Results:
    """Curves in which every claim holds, but for the changes."""
    curves = {
        "accuracy": curve(learned),
        "first_correct": curve(learned),
        "last_mistake": curve(lambda t, g: learned(t, g) * (1 - 0.01 * np.maximum(g - 1, 0))),
        "mean_gradient_share": curve(lambda t, g: np.where(g == 0, 1, (11 - g) / 55)),
        "alignment": curve(lambda t, g: 1 - g / 20),
        "gradient_norm": curve(lambda t, g: 1 + g),
    } | changes
    empty, none, dead = np.zeros(0), np.zeros(0, int), np.zeros(len(curves["accuracy"]), bool)
    return Results(np.arange(T + 1), empty, empty, none, none, dead, Forgetting(SEEDS, 1), curves)


def verdicts(found: Results) -> dict[str, bool | None]:
    return {claim.name: claim.holds for claim in claims(found, ("fc2",), 10)}


def test_all_hold_where_they_should():
    found = claims(results(), ("fc2",), 10)
    assert [claim.holds for claim in found] == [True] * 10, found
    for claim in found:  # all seeds alike: no spread
        assert claim.low == pytest.approx(claim.value) == claim.high
        assert claim.support == 1
    value = {claim.name: claim.value for claim in found}
    assert value["starts_at_chance"] == pytest.approx(0.11)
    assert value["learns_fast"] == 7  # 0.11 + 7 / 10
    assert value["typical_learned_early"] == 1
    assert value["typical_most_aligned"] == pytest.approx(0.05)
    assert value["norm_rises_with_chunk"] == pytest.approx(1)
    assert value["typical_not_forgotten"] == pytest.approx(0)
    assert value["atypical_learned_slowly"] == pytest.approx(43 / 14)  # 0.11 + 43 / 110 and + 14 / 34
    assert value["typical_dominate"] == pytest.approx(40 / 55)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("starts_at_chance", {"accuracy": curve(lambda t, g: 0.3 + 0 * t)}),
        ("learns_fast", {"accuracy": curve(lambda t, g: np.clip(t / (200 + g), 0, 1))}),
        ("learns_fast", {"accuracy": curve(lambda t, g: 0.5 + 0 * t)}),
        ("typical_learned_early", {"accuracy": curve(lambda t, g: np.clip(t / 100, 0, 1))}),
        ("learned_in_order", {"accuracy": curve(lambda t, g: np.clip(t / (100 - 5 * g), 0, 1))}),
        ("atypical_learned_slowly", {"accuracy": curve(lambda t, g: np.clip(t / (10 + g), 0, 1))}),
        ("typical_dominate", {"mean_gradient_share": curve(lambda t, g: np.where(g == 0, 1, g / 55))}),
        ("typical_most_aligned", {"alignment": curve(lambda t, g: g / 20)}),
        ("norm_rises_with_chunk", {"gradient_norm": curve(lambda t, g: np.where(g == 4, 0, g))}),
        ("uncertainty_widens", {"last_mistake": curve(lambda t, g: 0 * t)}),
        ("typical_not_forgotten", {"last_mistake": curve(lambda t, g: np.where(t < T, 0.9, 1))}),
    ],
)
def test_each_fails_where_it_should(name, changes):
    assert verdicts(results(**changes))[name] is False


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("norm_rises_with_chunk", {"accuracy": curve(lambda t, g: 0.1 + 0 * t)}, "never reaches 50 %"),
        ("learned_in_order", {"accuracy": curve(lambda t, g: 0.1 + 0 * t)}, "fewer than two chunks reach 80 %"),
        ("typical_not_forgotten", {"accuracy": curve(lambda t, g: 0.1 + 0 * t)}, "never reaches 95 %"),
    ],
)
def test_what_cannot_be_decided_is_left_open(name, changes, reason):
    (claim,) = (claim for claim in claims(results(**changes), ("fc2",), 10) if claim.name == name)
    assert (claim.holds, claim.value, claim.low) == (None, None, None)
    assert reason in claim.reason


def test_every_other_record_gives_the_same_verdicts():
    every = results()
    some = np.append(np.arange(0, T, 2), T)
    fewer = dataclasses.replace(every, iterations=some, curves={m: c[:, some] for m, c in every.curves.items()})
    for one, other in zip(claims(every, ("fc2",), 10), claims(fewer, ("fc2",), 10), strict=True):
        assert (one.name, one.holds) == (other.name, other.holds)
        assert one.value == pytest.approx(other.value, abs=1)  # an iteration


def test_too_short_a_recording_decides_nothing_about_later_iterations():
    short = results()
    for metric, values in short.curves.items():
        short.curves[metric] = 0.1 * values[:, :30]
    short = dataclasses.replace(short, iterations=np.arange(30))
    found = {claim.name: claim for claim in claims(short, ("fc2",), 10)}
    for name, needed in (("learns_fast", 100), ("typical_learned_early", 50), ("typical_most_aligned", 50)):
        assert found[name].holds is None
        assert found[name].reason == f"needs {needed} iterations; the recording has 29"


def test_the_interval_is_that_of_a_mean_over_seeds(rng):
    starts = rng.normal(0.1, 0.02, 100)
    accuracy = np.repeat(curve(lambda t, g: 0 * t)[:1], 100, axis=0) + starts[:, None, None]
    changes = {metric: np.repeat(values[:1], 100, axis=0) for metric, values in results().curves.items()}
    claim = claims(results(**{**changes, "accuracy": accuracy}), ("fc2",), 10)[0]
    error = starts.std() / 100**0.5
    # A 95 % interval of a mean of many values; its ends are estimated from 1,000 draws, to about a tenth of the error.
    assert claim.low == pytest.approx(starts.mean() - 1.96 * error, abs=0.3 * error)
    assert claim.high == pytest.approx(starts.mean() + 1.96 * error, abs=0.3 * error)


def test_the_support_of_a_verdict_is_the_share_of_resamples_that_share_it():
    """Of two seeds, one starts at chance: three quarters of the resamples have the other, and fail as both do."""
    changes = {metric: values[:2].copy() for metric, values in results().curves.items()}
    changes["accuracy"][:, 0] = np.array([0.1, 0.3])[:, None]
    claim = claims(results(**changes), ("fc2",), 10)[0]
    assert claim.holds is False and claim.value == pytest.approx(0.2)
    assert claim.support == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 1000) ** 0.5)  # four standard errors
    alone = {metric: values[:1] for metric, values in changes.items()}
    assert claims(results(**alone), ("fc2",), 10)[0].support is None


def test_a_resample_that_leaves_a_claim_open_does_not_support_it():
    """Of two seeds, the top tenth of one reaches 90 % only: a quarter of the resamples have it alone, half its mean."""
    changes = {metric: values[:2].copy() for metric, values in results().curves.items()}
    changes["accuracy"][1, :, 1] = changes["last_mistake"][1, :, 1] = np.minimum(changes["accuracy"][1, :, 1], 0.9)
    claim = {claim.name: claim for claim in claims(results(**changes), ("fc2",), 10)}["typical_not_forgotten"]
    assert claim.holds is True and claim.low == claim.high == pytest.approx(0, abs=1e-9)
    assert claim.support == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 1000) ** 0.5)  # four standard errors
    assert claim.barely and not dataclasses.replace(claim, support=0.98).barely


def test_a_value_on_the_bound_is_not_decided_by_rounding():
    """However the seeds are added up: three times 0.95 has another last bit than once."""
    for num_seeds in (2, 3, 5, 7, 10):
        changes = {metric: np.repeat(values[:1], num_seeds, axis=0) for metric, values in results().curves.items()}
        changes["accuracy"] = np.repeat(curve(lambda t, g: np.where(t < 50, 0.1, 0.95))[:1], num_seeds, axis=0)
        for claim in claims(results(**changes), ("fc2",), 10):
            if claim.name in ("learns_fast", "typical_learned_early"):
                assert (claim.holds, claim.support, claim.low) == (True, 1, claim.high)
        at_eighty = np.repeat(curve(lambda t, g: np.where(t < 50, 0.1, 0.8))[:1], num_seeds, axis=0)
        claim = claims(results(**{**changes, "accuracy": at_eighty}), ("fc2",), 10)[1]
        assert (claim.value, claim.support) == (50, 1)


def test_a_ranking_by_how_examples_were_learned_decides_nothing_about_how_they_are():
    changes = {metric: values[:1] for metric, values in results().curves.items()}
    found = claims(dataclasses.replace(results(**changes), agr=None), ("fc2",), 10)
    assert [claim.name for claim in found if claim.holds is not None] == ["starts_at_chance", "learns_fast"]
    assert {claim.reason for claim in found} == {
        "",
        "needs at least two seeds, because their agreement ranks the examples",
    }


@pytest.mark.parametrize(("dead", "decided"), [(2, True), (3, False), (4, False)])
def test_dead_networks_agree_on_nothing(dead, decided):
    found = claims(dataclasses.replace(results(), indifferent=np.arange(SEEDS) < dead), ("fc2",), 10)
    open_claims = [claim for claim in found if claim.holds is None]
    assert SEEDS == 4 and len(open_claims) == (0 if decided else len(found) - 2)
    assert {claim.reason for claim in open_claims} <= {
        "needs at least two networks that distinguish examples, because their agreement ranks the examples"
    }


def test_layers_have_claims_of_their_own():
    found = results()
    for layer in ("fc2", "fc3"):
        for metric in ("alignment", "gradient_norm", "mean_gradient_share"):
            found.curves[f"{layer}/{metric}"] = found.curves[metric]
    found.curves["fc3/alignment"] = -found.curves["fc3/alignment"]
    holds = {claim.name: claim.holds for claim in claims(found, ("fc2", "fc3"), 10)}
    assert holds["typical_most_aligned_fc2"] is True
    assert holds["typical_most_aligned_fc3"] is False


def test_reaches_by_hand():
    assert reaches(np.array([0.1, 0.8, 0.7]), 0.8) == 1
    assert reaches(np.array([0.9]), 0.8) == 0
    assert reaches(np.array([0.1]), 0.8) is None
