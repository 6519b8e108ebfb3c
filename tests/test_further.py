"""The scores of Carlini et al. that a recording alone has not: what is trained for them, stored, and made of it."""

import csv
import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.conftest import SMALL, logits_of, run, run_anew, silent
from tests.test_scores import layer, of_seed, random_network
from tests.test_training import start_of
from train_dynamics.config import InputError
from train_dynamics.data.datasets import load_dataset, standardise
from train_dynamics.dynamics.scores.adversarial import adversarial_distance
from train_dynamics.dynamics.scores.network import forward
from train_dynamics.dynamics.scores.privacy import PRIVACY
from train_dynamics.dynamics.scores.retraining import symmetric_divergence
from train_dynamics.dynamics.scores.score import Further
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.verification import verify
from train_dynamics.report import analysis
from train_dynamics.study import results
from train_dynamics.training import further, steps
from train_dynamics.training.further import FurtherConfig, private_update, train_further
from train_dynamics.training.steps import State

CONFIG = FurtherConfig(holdout_epochs=1, noise_multipliers=(0.0, 4.0))


@pytest.fixture(scope="module")
def path(small_once, tmp_path_factory, device):
    """A copy of the small recording, with further training of a few updates."""
    path = tmp_path_factory.mktemp("further") / "recording"
    shutil.copytree(small_once, path)
    recording = Recording(path)
    recording.save_further(train_further(recording, CONFIG, devices=device, log=silent))
    return path


@pytest.fixture
def arrays(small_dataset):
    images = standardise(small_dataset.images, SMALL.pixel_mean, SMALL.pixel_std)
    return jnp.asarray(images), jnp.asarray(small_dataset.labels)


def test_adversarial_distance_of_a_linear_network_in_closed_form(rng):
    # z = (3 x + 4 y, 0): at (1, 3) the lead is 15 and its slope 5, so that 3 is the way; on the boundary it is 0.
    weights = {"fc1": layer([[3.0, 0.0], [4.0, 0.0]])}
    points = np.array([[1.0, 3.0], [0.0, 0.0], [-1.0, -3.0]])
    np.testing.assert_allclose(adversarial_distance(weights, points), [3, 0, 3], rtol=1e-8)
    weights = random_network(rng, 4, 3)
    images = rng.normal(size=(20, 4))
    kernel, logits = weights["fc1"]["kernel"], images @ weights["fc1"]["kernel"] + weights["fc1"]["bias"]
    expected = []
    for z in logits:
        top = z.argmax()
        others = [c for c in range(3) if c != top]
        expected.append(min((z[top] - z[c]) / np.linalg.norm(kernel[:, top] - kernel[:, c]) for c in others))
    np.testing.assert_allclose(adversarial_distance(weights, images), expected, rtol=1e-8)


@pytest.mark.parametrize("widths", [(4, 5, 3), (4, 6, 5, 3)])
def test_adversarial_distance_against_one_example_at_a_time(rng, widths):
    weights = random_network(rng, *widths)
    images = rng.normal(size=(20, 4)) / 4
    expected = np.array([oracles.deepfool(weights, image) for image in images])
    found = np.isfinite(expected)
    assert found.sum() > 10 and (expected > 0).all()
    expected[~found] = expected[found].max()
    # Where it crosses is interpolated within 1/1024 of the way, where there may be a kink.
    np.testing.assert_allclose(adversarial_distance(weights, images), expected, rtol=1e-3)


def test_no_boundary_is_nearer_and_one_is_there(rng):
    """On a line, where every boundary can be listed."""
    found_any = False
    for _ in range(5):
        weights = random_network(rng, 1, 6, 3)
        line = np.linspace(-8, 8, 160_001)[:, None]
        class_of = forward(weights, line).probabilities.argmax(axis=1)
        boundaries = line[np.flatnonzero(np.diff(class_of)), 0]
        points = rng.normal(size=(30, 1))
        distance = adversarial_distance(weights, points)
        if not len(boundaries):
            continue
        found_any = True
        all_ways = np.abs(points - boundaries)
        reached = distance < distance.max()  # which stands for all where no way was found
        reached &= np.abs(points[:, 0]) + distance < 8  # others have gone beyond the line
        assert (distance >= all_ways.min(axis=1) - 2e-4)[reached].all()
        assert (np.abs(all_ways - distance[:, None]).min(axis=1) < 2e-4)[reached].all()
    assert found_any


def test_where_nothing_is_active_the_distance_is_the_largest():
    # fc1 is off for negative inputs, and the logits are the biases there: no step changes them.
    weights = {"fc1": layer([[1.0]]), "fc2": layer([[1.0, 0.0]], [0.0, 1.0])}
    found = adversarial_distance(weights, np.array([[-1.0], [3.0], [1.5]]))
    np.testing.assert_allclose(found, [2, 2, 0.5], rtol=1e-6)  # at 1 the first logit overtakes
    np.testing.assert_array_equal(adversarial_distance(weights, np.array([[-1.0]])), [0])


def test_slices_of_the_examples_give_what_the_whole_gives(rng, monkeypatch):
    weights, images = random_network(rng, 4, 5, 3), rng.normal(size=(30, 4))
    whole = adversarial_distance(weights, images)
    monkeypatch.setattr("train_dynamics.dynamics.scores.network.SLICE_BYTES", 500)
    np.testing.assert_allclose(adversarial_distance(weights, images), whole, rtol=1e-12)


def test_divergence_and_privacy_by_hand():
    # (0.5 - 0.2) ln(0.5 / 0.2) + (0.5 - 0.8) ln(0.5 / 0.8) = 0.3 ln 4
    p, q = np.array([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]), np.array([[0.2, 0.8], [0.5, 0.5], [0.0, 1.0]])
    np.testing.assert_allclose(symmetric_divergence(p, q), [0.3 * np.log(4), 0, 2 * np.log(1e12)])
    np.testing.assert_array_equal(symmetric_divergence(q, p), symmetric_divergence(p, q))
    nothing = np.zeros((1, 3, 2))
    private = np.array([[[0, 1, 1], [0, 1, 0]]])  # of two levels, the labels 0, 0, 1
    np.testing.assert_array_equal(
        PRIVACY.compute(Further(np.array([0, 0, 1]), nothing, nothing, private)), [[1, 0, 0.5]]
    )


@pytest.mark.parametrize("clip", [1e6, 2.0])
def test_a_private_update_without_noise(arrays, clip):
    """Each example's gradient is shortened on its own; the sum is divided by the size of a full batch."""
    images, labels = arrays
    setup = steps.set_up(SMALL, 10)
    state = start_of(setup, jnp.int32(0), images[0])
    batch, total = jnp.array([3, 8, -1, 11]), jax.tree.map(jnp.zeros_like, state.parameters)
    lengths = []

    def loss(parameters, image, label):
        return -jax.nn.log_softmax(logits_of(setup.model, parameters, image[None]))[0, label]

    gradient_of = jax.jit(jax.grad(loss))
    for n in (3, 8, 11):
        gradient = gradient_of(state.parameters, images[n], labels[n])
        lengths.append(float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))))
        total = jax.tree.map(lambda t, g, by=lengths[-1]: t + g * min(1, clip / by), total, gradient)
    assert min(lengths) > 2  # so that the smaller clip shortens
    expected = jax.tree.map(lambda p, t: p - SMALL.learning_rate * t / 4, state.parameters, total)
    step = jax.jit(functools.partial(private_update, setup, clip))
    found = step(jnp.float32(0), jax.random.key(0), state, batch, images, labels)
    # One update: float32 rounding, of weights below 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found.parameters, expected)


def test_the_noise_of_a_private_update(arrays):
    """Weights move by noise of standard deviation learning rate x clip x multiplier / batch size, anew for each key."""
    images, labels = arrays
    setup = steps.set_up(SMALL, 10)
    state = start_of(setup, jnp.int32(0), images[0])
    arguments = state, jnp.array([3, 8, -1, 11]), images, labels
    step = jax.jit(functools.partial(private_update, setup, 2.0))
    quiet = step(jnp.float32(0), jax.random.key(0), *arguments).parameters["fc1"]["kernel"]
    moved = [step(jnp.float32(30), jax.random.key(k), *arguments).parameters["fc1"]["kernel"] - quiet for k in range(2)]
    std = SMALL.learning_rate * 2.0 * 30 / 4
    for noise in moved:  # 3,920 draws: their mean and their spread (5 %) are within 4 of their own deviations
        assert abs(noise.mean()) < 4 * std / noise.size**0.5
        assert noise.std() == pytest.approx(std, rel=0.05)
    assert abs(np.corrcoef(moved[0].ravel(), moved[1].ravel())[0, 1]) < 0.07


def test_further_training_is_training_step_by_step(path):
    """Seed 1, one update after the other, outside of scans, devices and other seeds."""
    recording = Recording(path)
    setup = steps.set_up(SMALL, 10)
    held = load_dataset(dataclasses.replace(SMALL, split="test", num_examples=None))
    images, labels = (
        jnp.asarray(a) for a in (standardise(held.images, SMALL.pixel_mean, SMALL.pixel_std), held.labels)
    )
    parameters = jax.tree.map(jnp.asarray, of_seed(recording, 1, 16))
    state = State(parameters, setup.optimizer.init(parameters))
    step = jax.jit(functools.partial(steps.update, setup))
    for batch in steps.batch_indices(SMALL, 1, 1000, 0, 63):
        state = step(state, jnp.asarray(batch), images, labels)
    weights = jax.tree.map(np.asarray, state.parameters)
    after = np.stack([oracles.softmax(oracles.forward(weights, image)[1]) for image in recording.inputs()])
    # 63 updates in float32, fused differently: 1e-4 of a probability.
    np.testing.assert_allclose(recording.further.retrained[1], after, atol=1e-4)
    assert np.abs(after - recording.probabilities(16)[1]).max() > 0.01

    images, labels = jnp.asarray(recording.inputs()), jnp.asarray(recording.labels)
    step = jax.jit(functools.partial(private_update, setup, CONFIG.gradient_clip))
    for level, noise in enumerate(CONFIG.noise_multipliers):
        state = start_of(setup, jnp.int32(1), images[0])
        for t, batch in enumerate(steps.batch_indices(SMALL, 1, 50, 0, 16)):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 1), t)
            state = step(jnp.float32(noise), key, state, jnp.asarray(batch), images, labels)
        weights = jax.tree.map(np.asarray, state.parameters)
        logits = np.stack([oracles.forward(weights, image)[1] for image in recording.inputs()])
        clear = np.diff(np.sort(logits, axis=1)[:, -2:])[:, 0] > 1e-4
        assert clear.sum() > 40
        np.testing.assert_array_equal(recording.further.private[1, level][clear], logits.argmax(axis=1)[clear])


def test_devices_do_not_matter(path):
    recording = Recording(path)
    found = train_further(recording, CONFIG, devices=jax.local_devices()[:2], log=silent)
    # 63 updates of weights below 1 round by 6e-8 each; whoever is between two classes may be put into either.
    np.testing.assert_allclose(found.retrained, recording.further.retrained, atol=1e-5)
    assert np.mean(found.private != recording.further.private) < 0.01


def test_they_become_scores(path, tmp_path, small, sketches):
    recording = Recording(path)
    found = results.compute(recording).scores
    assert found.missing == {}
    before, after = recording.probabilities(16).astype(np.float64), recording.further.retrained.astype(np.float64)
    divergence = (before * np.log(before / after)).sum(axis=-1) + (after * np.log(after / before)).sum(axis=-1)
    # Of float32 probabilities; where they hardly differ, it is a small difference.
    np.testing.assert_allclose(found.of_seeds["holdout_retraining"], divergence, rtol=1e-4, atol=1e-6)
    shares = (recording.further.private == recording.labels).mean(axis=1)
    np.testing.assert_array_equal(found.of_seeds["privacy"], shares)
    assert np.isnan(found.stopped["privacy"][:-1]).all()
    distance = adversarial_distance(of_seed(small, 2, 16), small.inputs().reshape(50, -1))
    np.testing.assert_allclose(found.of_seeds["adversarial_distance"][2], distance)
    assert results.compute(small).scores.missing == dict.fromkeys(
        ("holdout_retraining", "privacy"), "run train_dynamics.further first"
    )
    analysis.analyze(recording, tmp_path / "out", parts=["scores"])
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose([float(row["privacy"]) for row in rows], shares.mean(axis=0), atol=1e-6)


def test_damage_is_found(path, tmp_path, small_path):
    assert verify(Recording(path), samples=1).problems == []
    copy = shutil.copytree(path, tmp_path / "copy")
    array = copy / "further" / "private.npy"
    content = array.read_bytes()
    array.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (problem,) = verify(Recording(copy), samples=1).problems
    assert str(array) in problem and "checksum" in problem
    array.write_bytes(content)
    about = copy / "further" / "further.json"
    header = json.loads(about.read_text())
    about.write_text(json.dumps({**header, "settings": {}}))
    with pytest.raises(RecordingError, match=r"does not belong here, is damaged, or is missing \(it was changed"):
        _ = Recording(copy).further
    other = tmp_path / "other"
    shutil.copytree(small_path, other)
    config = json.loads((other / "config.json").read_text())
    assert config["checksum"] == json.loads((path / "further" / "further.json").read_text())["recording"]
    about.unlink()
    with pytest.raises(RecordingError, match=r"further.json does not belong here, is damaged, or is missing"):
        _ = Recording(copy).further


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--holdout_split=train"], "--holdout_split=train: is the recorded split; give another one"),
        (["--holdout_split=dev"], "--holdout_split=dev: mini_mnist has the splits test, train"),
        (["--holdout_epochs=0"], "--holdout_epochs=0: must be a whole number, 1 or more"),
        (["--gradient_clip=0"], "--gradient_clip=0.0: must be from 1e-06 to 1e+06"),
        (
            ["--noise_multipliers=1,-2"],
            "--noise_multipliers=1.0,-2.0: must be different numbers from 0 to 1e+06, comma separated",
        ),
        (["--noise_multipliers=1,x"], "--noise_multipliers=1,x: must be numbers, comma separated, for example 1,4,16"),
    ],
)
def test_mistakes_get_one_line(small_path, tmp_path, arguments, expected):
    copy = shutil.copytree(small_path, tmp_path / "copy")
    done = run("further", f"--recording={copy}", *arguments)
    assert done.returncode == 1
    assert done.stderr == f"further: {expected}\n"
    assert not (copy / "further").exists()


def test_the_command(small_path, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    copy = shutil.copytree(small_path, tmp_path / "copy")
    flags = ["--recording=copy", "--noise_multipliers=1", "--holdout_epochs=1"]
    done = run_anew("further", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Stored copy/further" in done.stdout
    assert "With noise 1, " in done.stdout
    assert any((tmp_path / "caches" / "train_dynamics").iterdir())  # the next time its programs are there
    again = run("further", *flags, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, "copy/further is there already; nothing to do\n")
    other = run("further", *flags[:2], "--holdout_epochs=2", cwd=tmp_path)
    assert other.returncode == 1
    assert other.stderr == (
        "further: copy/further was made with other settings (holdout_epochs: 1 and not 2); move it elsewhere first\n"
    )
    shutil.rmtree(copy / "blocks")
    (copy / "blocks").mkdir()
    empty = run("further", *flags, cwd=tmp_path)
    assert empty.stderr == "further: --recording=copy: is unfinished; let train_dynamics.train finish it first\n"


def test_training_that_blows_up_is_no_score(small, device, monkeypatch):
    monkeypatch.setattr(further, "LARGEST", 1e38)
    config = FurtherConfig(holdout_epochs=1, noise_multipliers=(1e36,))
    with pytest.raises(InputError, match=r"with noise 1e\+36 made the weights of seed 0 no longer finite; smaller"):
        train_further(small, config, devices=device, log=silent)


def test_evaluated_in_slices(path, tmp_path, device):
    copy = shutil.copytree(path, tmp_path / "copy")
    recording = Recording(copy)
    recording.config = dataclasses.replace(recording.config, eval_batch_size=7)
    found = train_further(recording, CONFIG, devices=device, log=silent)
    # Another program, which rounds otherwise, as for other devices.
    np.testing.assert_allclose(found.retrained, recording.further.retrained, atol=1e-5)
    assert np.mean(found.private != recording.further.private) < 0.01


def test_without_a_device(small_path, tmp_path, monkeypatch):
    copy = shutil.copytree(small_path, tmp_path / "copy")
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    done = run_anew("further", f"--recording={copy}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("further: JAX finds no device with JAX_PLATFORMS=tpu: ")
    assert len(done.stderr.splitlines()) == 1


def test_stopped_it_stores_nothing(small, device):
    asked = iter([False, False, True])
    assert train_further(small, CONFIG, devices=device, log=silent, stop=lambda: next(asked)) is None


def test_interrupted_it_says_so(small_path, tmp_path):
    copy = shutil.copytree(small_path, tmp_path / "copy")
    command = [sys.executable, "-u", "-m", "train_dynamics.further", f"--recording={copy}", "--holdout_epochs=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("Training 3 networks further")
            second = run("further", f"--recording={copy}")
            assert second.stderr.startswith(f"further: --recording={copy}: is being written by another run")
            process.send_signal(signal.SIGINT)
            assert process.wait(300) == 130
            assert process.stderr.read().splitlines() == [
                "further: stopping after this epoch; a second signal stops it at once",
                "further: interrupted; nothing was stored",
            ]
        finally:
            process.kill()  # or a failure would wait for it
    assert not (copy / "further").exists() and not (copy / "further.incomplete").exists()


def test_values_out_of_range():
    with pytest.raises(InputError, match=r"--noise_multipliers=: must be different numbers"):
        FurtherConfig(noise_multipliers=())
