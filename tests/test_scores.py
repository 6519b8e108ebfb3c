"""Every score against its definition written slowly, in closed form on toy networks, and at its edges."""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from tests import oracles
from tests.conftest import SMALL, silent
from train_dynamics.config import InputError
from train_dynamics.data.batches import batch_indices
from train_dynamics.dynamics.agreement import agreement, resampled_agreement
from train_dynamics.dynamics.scores import cartography, cumulative, forgetting, learned, vog
from train_dynamics.dynamics.scores.curvature import CURVATURE, curvature
from train_dynamics.dynamics.scores.ensemble import confidence
from train_dynamics.dynamics.scores.grand import GRAND
from train_dynamics.dynamics.scores.margin import margin
from train_dynamics.dynamics.scores.network import forward, gradient_norm, input_gradient
from train_dynamics.dynamics.scores.registry import SCORES
from train_dynamics.dynamics.scores.relu import ReluNetwork
from train_dynamics.dynamics.scores.score import (
    FurtherScore,
    Latest,
    Mean,
    Records,
    ReplayedScore,
    StreamedScore,
    Study,
)
from train_dynamics.dynamics.scores.tracin import TRACIN
from train_dynamics.recording.reader import Recording
from train_dynamics.study import results, scores
from train_dynamics.study.scores import ScoreOptions, ScorePass
from train_dynamics.training import sweep

ROOT = Path(__file__).parents[1]
BY_NAME = {score.name: score for score in SCORES}
NEED_TRAINING = {score.name for score in SCORES if isinstance(score, FurtherScore)}


def layer(kernel, bias=None) -> dict[str, np.ndarray]:
    kernel = np.asarray(kernel, np.float64)
    return {"kernel": kernel, "bias": np.zeros(kernel.shape[1]) if bias is None else np.asarray(bias, np.float64)}


def random_network(rng, *widths: int) -> dict[str, dict[str, np.ndarray]]:
    pairs = itertools.pairwise(widths)
    return {f"fc{k + 1}": layer(rng.normal(size=pair), rng.normal(size=pair[1])) for k, pair in enumerate(pairs)}


def study(iterations, seeds=1, examples=1, epoch=3, early=0, at=None) -> Study:
    iterations = np.asarray(iterations)
    return Study(seeds, examples, iterations, epoch, early, iterations[-1:] if at is None else at, 0.5)


def records(iterations, correct=None, prediction=None, batch=None, **signals) -> Records:
    """Records of which a test says only what matters."""
    iterations = np.asarray(iterations)
    shape = next(np.shape(value) for value in (correct, prediction, *signals.values()) if value is not None)
    zero = np.zeros(shape, np.float32)
    return Records(
        iterations,
        np.asarray(signals.get("loss", zero), np.float32),
        zero.astype(np.uint8) if prediction is None else np.asarray(prediction),
        zero.astype(bool) if correct is None else np.asarray(correct, bool),
        np.asarray(signals.get("margin", zero), np.float32),
        np.asarray(signals.get("error_norm", zero), np.float32),
        np.asarray(signals.get("gradient_norm", zero), np.float32),
        np.full((*shape[:2], 1), -1) if batch is None else np.asarray(batch),
    )


def fed(accumulator, all_records: Records, *lengths: int):
    """Feed an accumulator in parts."""
    start = 0
    for length in lengths or (len(all_records.iterations),):
        accumulator.add(all_records.part(start, start + length))
        start += length
    assert start == len(all_records.iterations)
    return accumulator


@pytest.fixture(scope="module")
def found(small_once):
    return results.compute(Recording(small_once)).scores


@pytest.fixture(scope="module")
def again(small_once):
    """Probabilities, [s, t, n, c], of every record computed again in float64, one example at a time."""
    recording = Recording(small_once)
    images = recording.inputs()
    probabilities = np.empty((3, 17, 50, 10))
    for t in range(17):
        parameters = recording.parameters(t)
        for s in range(3):
            of_seed = {name: {part: value[s] for part, value in of.items()} for name, of in parameters.items()}
            for n in range(50):
                probabilities[s, t, n] = oracles.softmax(oracles.forward(of_seed, images[n])[1])
    return probabilities


def test_scores_from_probabilities_against_their_definitions(small, found, again):
    assert set(found.missing) == NEED_TRAINING and found.study.early == 2
    assert found.study.checkpoints.tolist() == [2, 3, 5, 6, 8, 10, 11, 13, 14, 16]
    for s, seed in enumerate(small.seeds):
        batches = batch_indices(SMALL, int(seed), 50, 0, 16)
        for n, label in enumerate(small.labels):
            presentations = [t for t in range(16) if n in batches[t]]
            assert len(presentations) == 4
            expected = oracles.scores_of(again[s, :, n], int(label), presentations, early=2)
            values = {name: found.of_seeds[name][s, n] for name in expected}
            # Of losses and margins below 10 in float32, which rounds them by 5e-7, and of e to them.
            assert values == pytest.approx(expected, rel=1e-4, abs=1e-5), (s, n)


def test_gradient_scores_against_one_example_at_a_time(small, found):
    rate = small.config.learning_rate
    at_end = np.zeros((3, 50))
    # Here and below, norms are of float32 gradients, and positive: they are right to a few of its roundings.
    for t in range(17):
        gradients = small.gradients("fc2", t)
        norms = np.array([[np.linalg.norm(gradients[s, n]) for n in range(50)] for s in range(3)])
        at_end += rate * norms**2
        if t == 2:
            np.testing.assert_allclose(found.of_seeds["grand_recorded"], norms, rtol=1e-5)
    np.testing.assert_allclose(found.of_seeds["tracin_recorded"], at_end, rtol=1e-5)
    whole = np.zeros((3, 50))
    for t in found.study.checkpoints:
        for s in range(3):
            norms = whole_norms(small, s, int(t))
            whole[s] += rate * np.square(norms)
            if t == 2:
                np.testing.assert_allclose(found.of_seeds["grand"][s], norms, rtol=1e-5)
    np.testing.assert_allclose(found.of_seeds["tracin"], whole, rtol=1e-5)


def of_seed(recording: Recording, s: int, t: int) -> dict[str, dict[str, np.ndarray]]:
    return {name: {part: v[s] for part, v in of.items()} for name, of in recording.parameters(t).items()}


def whole_norms(recording: Recording, s: int, t: int) -> list[float]:
    parameters, images = of_seed(recording, s, t), recording.inputs()
    return [whole_norm(parameters, image, label) for image, label in zip(images, recording.labels, strict=True)]


def whole_norm(parameters: dict[str, dict[str, np.ndarray]], image: np.ndarray, label: int) -> float:
    """Of kernels by the chain rule; a bias is a kernel whose input is always 1."""
    inputs, _ = oracles.forward(parameters, image)
    kernels = oracles.backward(parameters, image, label)
    total = 0.0
    for a, gradient in zip(inputs, (kernels[name] for name in sorted(kernels)), strict=True):
        largest = np.abs(a).argmax()
        bias = gradient[largest] / a[largest] if a[largest] else None
        if bias is None:  # no input is active: the output's bias alone has a gradient
            bias = oracles.softmax(oracles.forward(parameters, image)[1]) - np.eye(10)[label]
        total += np.sum(gradient**2) + np.sum(bias**2)
    return float(np.sqrt(total))


def test_replayed_scores_against_their_definitions(small, found):
    checkpoints = [of_seed(small, 2, int(t)) for t in found.study.checkpoints]
    expected = oracles.vog(checkpoints, small.inputs(), small.labels)
    # Computed in float32, and then measured by the small spread within a class.
    np.testing.assert_allclose(found.of_seeds["vog"][2], expected, rtol=1e-3, atol=1e-4)
    for n in range(0, 50, 10):
        exact = np.mean([oracles.whole_curvature(weights, small.inputs()[n]) for weights in checkpoints])
        assert found.of_seeds["curvature"][2, n] == pytest.approx(exact, rel=1e-4)  # of float32 products


@pytest.mark.parametrize("widths", [(4, 3), (4, 5, 3), (4, 6, 5, 3)])
def test_replay_against_finite_differences(rng, widths):
    weights = random_network(rng, *widths)
    images, labels = rng.normal(size=(6, 4)), rng.integers(0, 3, 6)
    norms = [oracles.whole_gradient_norm(weights, image, label) for image, label in zip(images, labels, strict=True)]
    # Differences of losses below 10, right to 2e-15, over steps of 2e-6: 1e-9 for each of up to 83 weights and biases.
    np.testing.assert_allclose(gradient_norm(weights, images, labels), norms, rtol=1e-6, atol=1e-8)
    bent = [oracles.input_curvature(weights, image, label) for image, label in zip(images, labels, strict=True)]
    # Steps of 1e-4 leave an error of their square; the chain rule in another order, that of float64.
    np.testing.assert_allclose(curvature(weights, images), bent, rtol=1e-5)
    for label in range(3):  # the label plays no part
        assert oracles.input_curvature(weights, images[0], label) == pytest.approx(bent[0], rel=1e-5)
    slopes = [oracles.logit_gradient(weights, image, label) for image, label in zip(images, labels, strict=True)]
    np.testing.assert_allclose(input_gradient(weights, images, labels), slopes, rtol=1e-10, atol=1e-12)


def test_slices_give_what_the_whole_gives(rng, monkeypatch):
    checkpoints = [ReluNetwork(random_network(rng, 4, 5, 3)) for _ in range(3)]
    images, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    bent, varied = checkpoints[0].curvature(images, labels), vog.vog(checkpoints, images, labels)
    monkeypatch.setattr("train_dynamics.dynamics.scores.network.SLICE_BYTES", 200)
    np.testing.assert_allclose(checkpoints[0].curvature(images, labels), bent, rtol=1e-12)
    np.testing.assert_allclose(vog.vog(checkpoints, images, labels), varied, rtol=1e-12)


def test_a_network_that_knows_nothing_in_closed_form():
    # p = 1/4 each: |p - y|^2 = 9/16 + 3/16 = 3/4; the gradient of the kernel is x (p - y), of the bias p - y.
    weights = {"fc1": layer(np.zeros((2, 4)))}
    images = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(gradient_norm(weights, images, np.array([0, 1])), [(0.75 * 26) ** 0.5, 0.75**0.5])
    np.testing.assert_array_equal(curvature(weights, images), 0)
    np.testing.assert_allclose(forward(weights, images).probabilities, 0.25)


def test_curvature_of_a_logistic_curve():
    # z = (w x, 0): the loss bends by w^2 p (1 - p), and the trace of a 1 x 1 matrix squared is its square.
    weights = {"fc1": layer([[2.0, 0.0]])}
    p = 1 / (1 + np.exp(-2 * 0.3))
    np.testing.assert_allclose(curvature(weights, np.array([[0.3]])), [(4 * p * (1 - p)) ** 2])


def test_vog_of_linear_networks_by_hand():
    # dz/dx is the label's column: (0, 0) and then (2, 4) for label 0, alike for label 1 but at the second pixel.
    first = {"fc1": layer([[0.0, 0.0], [0.0, 0.0]])}
    second = {"fc1": layer([[2.0, 6.0], [4.0, 0.0]])}
    images, labels = np.zeros((3, 2)), np.array([0, 0, 1])
    raw = vog.vog([ReluNetwork(first), ReluNetwork(second)], images, labels)
    assert np.isnan(raw[0]).all()  # one checkpoint varies in nothing
    np.testing.assert_array_equal(raw[1], 0)  # a linear network has the same gradient for a whole class
    np.testing.assert_allclose(input_gradient(second, images, labels), [[2, 4], [2, 4], [6, 0]])


def test_vog_of_a_class_that_differs_by_rounding_is_0(rng):
    """Examples of one gradient, of which a mean over a thousand may be off in the last bits."""
    kernels = [rng.normal(size=(784, 10)).astype(np.float32) for _ in range(3)]
    checkpoints = [ReluNetwork({"fc1": {"kernel": kernel, "bias": np.zeros(10, np.float32)}}) for kernel in kernels]
    images = rng.normal(size=(1000, 784)).astype(np.float32)
    np.testing.assert_array_equal(vog.vog(checkpoints, images, np.arange(1000) % 10)[1:], 0)


def test_vog_is_normalised_by_class(rng):
    checkpoints = [ReluNetwork(random_network(rng, 4, 8, 3)) for _ in range(4)]
    images, labels = rng.normal(size=(60, 4)), np.arange(60) % 3
    for row in vog.vog(checkpoints, images, labels)[1:]:
        for label in range(3):
            np.testing.assert_allclose([row[labels == label].mean(), row[labels == label].std()], [0, 1], atol=1e-9)


def test_grand_and_tracin_of_one_checkpoint(rng):
    weights = random_network(rng, 4, 5, 3)
    images, labels = rng.normal(size=(6, 4)), rng.integers(0, 3, 6)
    norms = gradient_norm(weights, images, labels)
    about, network = study([0, 1]), ReluNetwork(weights)
    np.testing.assert_allclose(GRAND.compute([network], images, labels, about), norms[None])
    twice = TRACIN.compute([network, network], images, labels, about)
    np.testing.assert_allclose(twice, [0.5 * norms**2, norms**2])  # a learning rate of one half
    mean = CURVATURE.compute([network, network], images, labels, about)
    np.testing.assert_allclose(mean, np.repeat(curvature(weights, images)[None], 2, axis=0))


def test_margin_is_the_difference_of_logits(rng):
    logits = 5 * rng.normal(size=(40, 6))
    p = np.array([oracles.softmax(row) for row in logits])
    expected = logits[:, 2] - np.delete(logits, 2, axis=1).max(axis=1)
    found = margin(-np.log(p[:, 2]), np.delete(p, 2, axis=1).max(axis=1))
    np.testing.assert_allclose(found, expected)
    vanished = np.zeros(1, np.float32)  # another class in float32
    np.testing.assert_allclose(margin(vanished, vanished), 87.3, atol=0.1)
    signals = records([0], loss=-np.log(p[:, 2])[None, None], margin=expected[None, None])
    # Losses and margins below 32, which float32 rounds by 1e-6, and e to them.
    np.testing.assert_allclose(confidence(signals)[0, 0], p.max(axis=1), rtol=1e-5)


def test_confidence_of_a_label_that_has_vanished():
    # p of the label is e^-200, of another class 1: the product of the two in float32 would be 0 times infinity.
    np.testing.assert_allclose(confidence(records([0], loss=[[[200.0]]], margin=[[[-200.0]]])), 1)


HISTORY = np.array(
    [
        [1, 1, 1, 1, 1, 1],  # always right
        [0, 0, 0, 0, 0, 0],  # never right
        [0, 1, 0, 1, 0, 1],  # forgotten twice
        [0, 0, 0, 1, 1, 0],  # forgotten at the end
    ],
    bool,
)
# Two epochs of two batches and a last record after which there is no update; each example is looked at in turn.
BATCH = np.array([[0, 1], [2, 3], [3, 2], [1, 0], [0, 2], [-1, -1]])


@pytest.mark.parametrize("lengths", [(6,), (1,) * 6, (2, 3, 1)])
def test_forgetting_by_hand(lengths):
    every = records(np.arange(6), correct=HISTORY.T[None])
    about = study(np.arange(6), examples=4, epoch=2)
    # Never right counts as often as was looked.
    values = fed(forgetting.ForgettingEveryRecord(about), every, *lengths).value()
    np.testing.assert_array_equal(values, [[0, 6, 2, 1]])
    np.testing.assert_array_equal(fed(forgetting.FirstCorrect(about), every, *lengths).value(), [[0, 6, 1, 3]])
    np.testing.assert_array_equal(fed(learned.LearnedForGood(about), every, *lengths).value(), [[0, 6, 5, 6]])
    np.testing.assert_array_equal(fed(Mean(about, lambda r: r.correct), every, *lengths).value(), [[1, 0, 0.5, 1 / 3]])


@pytest.mark.parametrize("lengths", [(6,), (1,) * 6, (2, 3, 1)])
def test_forgetting_in_batch_by_hand(lengths):
    about = study(np.arange(6), examples=4, epoch=2)
    every = records(np.arange(6), correct=HISTORY.T[None], batch=BATCH[None])
    # Example 2 is looked at in records 1, 2 and 4: right, wrong, wrong. Example 3 in 1 and 2: wrong, wrong.
    values = fed(forgetting.ForgettingInBatch(about), every, *lengths).value()
    np.testing.assert_array_equal(values, [[0, 2, 1, 2]])
    np.testing.assert_array_equal(fed(forgetting.FirstLearnedInBatch(about), every, *lengths).value(), [[0, 2, 0, 2]])


def test_an_example_not_yet_looked_at_has_no_value():
    about = study(np.arange(6), examples=4, epoch=2)
    first = records(np.arange(6), correct=HISTORY.T[None], batch=BATCH[None]).part(0, 1)
    for kind in (forgetting.ForgettingInBatch, forgetting.FirstLearnedInBatch):
        np.testing.assert_array_equal(np.isnan(fed(kind(about), first).value()), [[False, False, True, True]])


@pytest.mark.parametrize("lengths", [(9,), (1,) * 9, (2, 4, 3)])
def test_streamed_counts_against_step_by_step(rng, lengths):
    correct = rng.random((3, 9, 40)) < rng.random((3, 1, 40)) ** 0.3
    prediction = rng.integers(0, 3, (3, 9, 40)).astype(np.uint8)
    iterations = np.array([0, 1, 2, 4, 8, 9, 12, 20, 21])
    about, every = study(iterations, 3, 40), records(iterations, correct, prediction)
    first = fed(forgetting.FirstCorrect(about), every, *lengths).value()
    events = fed(forgetting.ForgettingEveryRecord(about), every, *lengths).value()
    settled = fed(learned.IterationLearned(about), every, *lengths).value()
    for_good = fed(learned.LearnedForGood(about), every, *lengths).value()
    after = np.append(iterations, 22)
    for s in range(3):
        for n in range(40):
            begin, last, forgotten = oracles.forgetting(correct[s, :, n])
            assert first[s, n] == after[begin]
            assert events[s, n] == (forgotten if correct[s, :, n].any() else 9)
            assert settled[s, n] == iterations[oracles.settled(prediction[s, :, n])]
            assert for_good[s, n] == after[last + 1]


def test_epochs_end_at_the_last_record_up_to_their_end():
    np.testing.assert_array_equal(
        cartography.epoch_ends(study([0, 2, 4, 6, 8], epoch=3)), [False, True, False, True, False]
    )
    np.testing.assert_array_equal(cartography.epoch_ends(study([0, 1, 2, 3, 4], epoch=2)), [0, 0, 1, 0, 1])
    np.testing.assert_array_equal(cartography.epoch_ends(study([0, 8], epoch=4)), [False, True])


def test_cartography_says_nothing_before_the_first_epoch_and_then_mean_and_spread():
    probability = np.array([0.9, 0.9, 0.2, 0.9, 0.6])
    every = records(np.arange(5), correct=(probability > 0.5)[None, :, None], loss=-np.log(probability)[None, :, None])
    about = study(np.arange(5), epoch=2)
    expected = {"CONFIDENCE": 0.4, "VARIABILITY": 0.2, "CORRECTNESS": 0.5}  # of 0.2 and 0.6, wrong and right
    for name, value in expected.items():
        score = getattr(cartography, name)
        before = fed(score.start(about), every.part(0, 2)).value()
        assert np.isnan(before).all()
        np.testing.assert_allclose(fed(score.start(about), every, 2, 3).value(), [[value]], rtol=1e-6)  # of float32


def test_latest_stays_at_its_iteration():
    about = study(np.arange(4), early=1)
    every = records(np.arange(4), loss=np.array([1.0, 2, 3, 4])[None, :, None])
    for lengths in ((4,), (1, 1, 1, 1), (3, 1)):
        assert fed(Latest(about, lambda r: r.loss, until=1), every, *lengths).value() == 2
        assert fed(Latest(about, lambda r: r.loss), every, *lengths).value() == 4
    assert np.isnan(Latest(about, lambda r: r.loss).value()).all()
    assert np.isnan(cumulative.CUMULATIVE_LOSS.start(about).value()).all()


def test_agreement_of_drawn_seeds(rng):
    p = rng.dirichlet(np.ones(4), size=(4, 20))
    found = resampled_agreement(p, np.array([[1.0, 1, 1, 1], [0, 2, 1, 0], [0, 3, 0, 0], [1, 1, 0, 1]]))
    np.testing.assert_allclose(found[0], agreement(p), rtol=1e-12)
    np.testing.assert_allclose(found[1], agreement(p[[1, 2]]), rtol=1e-12)  # twice the same is not compared
    assert np.isnan(found[2]).all()
    np.testing.assert_allclose(found[3], agreement(p[[0, 1, 3]]), rtol=1e-12)


def test_names_directions_and_words():
    assert len(BY_NAME) == len(SCORES) >= 20
    for score in SCORES:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", score.name) and score.hard in ("high", "low")
        assert score.formula and score.unit and score.source
        expected = [1 if score.hard == "high" else -1, np.nan]
        np.testing.assert_array_equal(score.difficulty(np.array([1.0, np.nan])), expected)


def test_ensemble_values_are_means_over_seeds_and_agr_is_of_all(small, found):
    for name, values in found.of_seeds.items():
        np.testing.assert_allclose(found.values[name], values.mean(axis=0))
    assert "agr" not in found.of_seeds
    np.testing.assert_allclose(found.values["agr"], oracles.agreement(small.probabilities(16)), rtol=1e-4, atol=1e-7)


def test_had_recording_stopped(small, small_path, found):
    """The snapshot at iteration 8 is what the first nine records give alone."""
    k = found.study.checkpoints.tolist().index(8)
    about = found.study._replace(iterations=found.study.iterations[:9])
    short = [part for part in replayed_records(small) if part.iterations[0] <= 8]
    for score in found.scores:
        # At the end it is the value; some are kept in float32.
        np.testing.assert_allclose(found.stopped[score.name][-1], found.values[score.name], rtol=1e-6, atol=1e-12)
        if isinstance(score, StreamedScore):
            accumulator = score.start(about)
            for part in short:
                accumulator.add(part.part(0, int(np.count_nonzero(part.iterations <= 8))))
            # Sums in another order: float32 rounding of up to nine signals of size one, also where they cancel.
            value = accumulator.value().mean(axis=0)
            np.testing.assert_allclose(found.stopped[score.name][k], value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.stopped["agr"][k], agreement(small.probabilities(8)))


def replayed_records(recording: Recording) -> list[Records]:
    """Every record that the pass hands to the scores."""
    seen = []

    class Spy(ScorePass):
        def add(self, records: Records) -> None:
            seen.append(records)
            super().add(records)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "ScorePass", Spy)
        results.compute(recording)
    return seen


def test_a_score_without_a_value_yet_is_nan(found):
    assert np.isnan(found.stopped["cartography_confidence"][0]).all()  # at iteration 2, in the first epoch of four
    assert np.isnan(found.stopped["vog"][0]).all()
    assert not np.isnan(found.values["vog"]).any()


@pytest.mark.parametrize("layers", [("fc1",), ("fc1", "fc3")])
@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_layers_and_layouts_give_the_same_scores(tmp_path, device, layout, layers):
    """Whether or not the output layer is recorded, and however."""
    config = dataclasses.replace(SMALL, hidden_sizes=(7, 6), layers=layers, epochs=1, gradient_layout=layout)
    sweep.train(config, tmp_path / "r", device, log=silent)
    recording = Recording(tmp_path / "r")
    scores = results.compute(recording).scores
    margins = []
    for t in recording.iterations:
        p = recording.probabilities(t).astype(np.float64)
        of_label = np.take_along_axis(p, recording.labels[None, :, None], axis=2)[..., 0]
        np.put_along_axis(p, recording.labels[None, :, None], -1, axis=2)
        margins.append(np.log(of_label) - np.log(p.max(axis=2)))
    # Of margins in float32, and sums of 784 squares in it, which round as often by 6e-8, half as much in their root.
    np.testing.assert_allclose(scores.of_seeds["area_under_margin"], np.mean(margins, axis=0), rtol=1e-4, atol=1e-5)
    squares = sum(np.square(recording.gradients(name, 0)).sum(axis=(2, 3), dtype=np.float64) for name in layers)
    np.testing.assert_allclose(scores.of_seeds["grand_recorded"], np.sqrt(squares), rtol=5e-5)


def test_a_schedule_leaves_out_what_it_cannot_know(tmp_path, device):
    config = dataclasses.replace(SMALL, record_every=3)
    sweep.train(config, tmp_path / "r", device, log=silent)
    recording = Recording(tmp_path / "r")
    scores = results.compute(recording, ScoreOptions(iteration=6, checkpoints=2)).scores
    assert set(scores.missing) == {"forgetting_in_batch", "first_learned_in_batch", *NEED_TRAINING}
    assert scores.study.checkpoints.tolist() == [9, 16] and scores.study.early == 6
    expected = np.linalg.norm(recording.probabilities(6) - np.eye(10)[recording.labels], axis=2)
    np.testing.assert_allclose(scores.of_seeds["el2n"], expected, rtol=1e-5)  # this and the next: float32
    loss = np.mean([recording.loss(t) for t in recording.iterations], axis=0)
    np.testing.assert_allclose(scores.of_seeds["cumulative_loss"], loss, rtol=1e-5)


def test_options(small):
    with pytest.raises(InputError, match=r"--score_checkpoints=0: must be 1 or more"):
        ScoreOptions(checkpoints=0)
    with pytest.raises(InputError, match=r"--score_iteration=17: must be a recorded iteration, from 0 to 16"):
        results.compute(small, ScoreOptions(iteration=17))
    assert scores.study_of(small, ScoreOptions(checkpoints=100)).checkpoints.tolist() == list(range(1, 17))
    one = results.compute(small, ScoreOptions(iteration=0, checkpoints=1)).scores
    assert one.study.checkpoints.tolist() == [16] and set(one.missing) == {"vog", *NEED_TRAINING}
    np.testing.assert_allclose(one.of_seeds["grand"][1], whole_norms(small, 1, 0), rtol=1e-5)


def test_the_score_of_the_documentation_works(small):
    """One file and one line: the file as docs/SCORES.md shows it, the line as a longer registry."""
    text = (ROOT / "docs" / "SCORES.md").read_text()
    (program,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "StreamedScore(" in block)
    namespace: dict = {}
    exec(program, namespace)
    (score,) = (value for value in namespace.values() if isinstance(value, StreamedScore | ReplayedScore))
    assert score.name not in BY_NAME
    name = next(name for name, value in namespace.items() if value is score)
    assert re.search(rf"^    \w+\.{name},$", text, re.M)
    found = ScorePass(small, ScoreOptions(), (*SCORES, score))
    for part in replayed_records(small):
        found.add(part)
    worst = np.max([small.loss(t) for t in range(17)], axis=0)
    np.testing.assert_allclose(found.finish().of_seeds[score.name], worst)


def test_the_documentation_says_what_the_registry_says():
    text = (ROOT / "docs" / "SCORES.md").read_text()
    for score in SCORES:
        row = re.search(rf"^\| `{score.name}` \| (.*) \|$", text, re.M)[1]
        assert row.split(" | ")[:3] == [score.formula, score.hard, score.unit]
