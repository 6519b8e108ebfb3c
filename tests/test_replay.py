"""Networks of the user's, run again from a recording: by whose leave, and against the slow definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import train_dynamics as td
from tests.conftest import run, silent
from tests.test_verification import rewrite
from train_dynamics.config import InputError, StudyConfig
from train_dynamics.dynamics.scores.relu import ReluNetwork
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.verification import verify
from train_dynamics.report import analysis
from train_dynamics.study import results, scores
from train_dynamics.study.scores import ScoreOptions
from train_dynamics.training import of_inputs, sweep
from train_dynamics.training.replay import networks_of

NETS = """
from pathlib import Path

from flax import linen as nn

Path("ran").touch()


class Twin(nn.Module):  # of the default network
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10, name="fc2")(nn.relu(nn.Dense(5, name="fc1")(x.reshape(len(x), -1))))


twin = Twin()
"""
MODEL = "nets.py:twin"
LAYOUT = "fc1/bias:sketch,fc1/*:measures,fc2/bias:dense,factored"
REPLAYED = ("grand", "tracin", "vog", "curvature", "adversarial_distance")


@pytest.fixture(scope="module")
def place(tmp_path_factory, device):
    """A directory with a module and a recording of its network."""
    place = tmp_path_factory.mktemp("replay")
    (place / "nets.py").write_text(NETS)
    config = StudyConfig(
        num_examples=50, batch_size=16, epochs=1, num_seeds=2, model=MODEL, gradient_layout=LAYOUT, sketch_size=4
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert sweep.train(config, place / "out", device, log=silent)
    return place


@pytest.fixture
def recording(place, monkeypatch):
    monkeypatch.chdir(place)
    return Recording(place / "out")


@pytest.fixture
def networks(recording):
    return networks_of(recording, model=MODEL)


def relu_network(recording: Recording, s: int, t: int) -> ReluNetwork:
    return ReluNetwork({name: {part: v[s] for part, v in of.items()} for name, of in recording.parameters(t).items()})


# Leave.


def test_nothing_is_run_that_is_not_named(place):
    (place / "ran").unlink(missing_ok=True)
    done = run("verify", "--recording=out", cwd=place)
    assert (done.returncode, done.stderr) == (0, "") and not (place / "ran").exists()
    assert "No gradient was computed again, because that would run your own code; " in done.stdout
    assert f"to have it run, name it: --model={MODEL}" in done.stdout
    done = run("verify", "--recording=out", f"--model={MODEL}", "--samples=4", cwd=place)
    assert (done.returncode, done.stderr) == (0, "") and (place / "ran").exists()
    assert "800 gradients were computed again, in float64" in done.stdout  # of 50 examples at four parameters


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"model": "nets.py:other"}, "--model=nets.py:other: the recording was made with --model=nets.py:twin"),
        ({"model": MODEL, "loss": "nets.py:l"}, "--loss=nets.py:l: the recording was made with the default loss"),
        ({}, "to have it run, name it: --model=nets.py:twin"),
        ({"task": td.Task(len, len)}, "was not made from a task in Python"),
    ],
)
def test_what_is_named_must_be_what_was_recorded(recording, named, message):
    with pytest.raises(InputError) as error:
        networks_of(recording, **named)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_code_that_has_changed_is_not_run(place):
    (place / "nets.py").write_text(NETS + "# changed\n")
    try:
        for command in ("verify", "analyze"):
            done = run(command, "--recording=out", f"--model={MODEL}", cwd=place)
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
            assert f"{command}: --model={MODEL}: it has changed since out was made, so it is not run" in done.stderr
    finally:
        (place / "nets.py").write_text(NETS)


# Verification.


def test_every_layout_passes_and_wrong_values_are_found(recording, networks):
    found = verify(recording, samples=10, networks=networks)
    kinds = ("sketch of fc1/bias", "squared norm of fc1/kernel", "gradient of fc2/bias", "gradient of fc2/kernel")
    assert found.problems == [] and {"loss", "outputs", "prediction", "squared norm of all", *kinds} == {*found.errors}
    assert max(found.errors.values()) < 1e-5 and found.num_undecided < found.num_compared / 10
    (block,) = recording.blocks()
    for name, kind in (
        ("sketch.fc1.bias", "sketch of fc1/bias"),
        ("norm.fc1.kernel", "squared norm of fc1/kernel"),
        ("gradient.fc2.bias", "gradient of fc2/bias"),
        ("cotangent.fc2.kernel", "gradient of fc2/kernel"),
        ("outputs", "outputs"),
    ):
        right = block.read(name)
        rewrite(block, name, right * np.float32(1.01))  # with a checksum that is right
        problems = verify(Recording(recording.path), samples=4, networks=networks).problems
        rewrite(block, name, right)
        assert len(problems) == 1 and f"the {kind} of seed" in problems[0]


def test_examples_at_a_kink_are_left_out(tmp_path):
    """The second example has inputs that cancel in each unit, so that rounding decides which units are active."""

    def init(key):
        one, other = jax.random.split(key)
        w = jax.random.normal(one, (3, 6))
        return {"w": w.at[1].set(-w[0]), "head": jax.random.normal(other, (6, 2))}

    def loss(params, example):
        x, label = example
        logits = jax.lax.scan(lambda z, w: (z + w, None), jnp.zeros(2, jnp.float32), params["head"] * 0)[0]
        logits += jax.nn.relu(x @ params["w"]) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label), logits

    inputs = np.array([[1, 2, 3], [0.3, 0.3, 0], [1, 0, 0]], np.float32)
    task = td.Task(init, loss)
    with td.Recorder(tmp_path / "out", loss, (inputs, np.array([0, 1, 0])), log=silent) as recorder:  # as of a loop
        recorder.record(0, init(jax.random.key(0)))
    recording = Recording(tmp_path / "out")
    networks = networks_of(recording, task=task)
    assert networks.precision == "float32"  # since the scan insists on it
    np.testing.assert_array_equal(networks.again(0, 0, np.arange(3)).clearance, [np.inf, 0, np.inf])
    found = verify(recording, samples=9, networks=networks)
    assert found.problems == [] and found.num_undecided == 2 and found.num_compared == 6  # at two parameters
    with pytest.raises(InputError, match="the loss: it has changed since"):
        networks_of(recording, task=td.Task(init, lambda params, example: loss(params, example)))


def test_a_network_that_computes_in_bfloat16_does_so_again(tmp_path):
    def loss(params, example):
        x, label = example
        logits = (x.astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)).astype(jnp.bfloat16)
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), label), logits

    params = {"w": jax.random.normal(jax.random.key(0), (3, 2))}
    examples = np.array([[1, 2, 3], [3, 1, 0], [1, 0, 0]], np.float32), np.array([0, 1, 0])
    with td.Recorder(tmp_path / "out", loss, examples, log=silent) as recorder:
        recorder.record(0, params)
    networks = networks_of(Recording(tmp_path / "out"), task=td.Task(lambda key: params, loss))
    assert networks.precision == "float32"
    found = verify(networks.recording, samples=1, networks=networks)
    assert (
        max(found.errors.values()) < 2**-7
    )  # two steps of bfloat16, by which XLA rounds in one program and not another


# Scores.


def test_scores_of_the_twin_are_those_of_the_default_network(recording, networks):
    inputs, labels, last = recording.inputs().reshape(50, -1), recording.labels, int(recording.iterations[-1])
    for s, found in enumerate(networks.of(last)):
        expected = relu_network(recording, s, last)
        # All in float32, where sums of up to 784 products come in another order; distances are interpolated.
        for name, rtol in (("gradient_norm", 1e-5), ("input_gradient", 1e-4), ("curvature", 1e-4)):
            values, right = (getattr(network, name)(inputs, labels) for network in (found, expected))
            np.testing.assert_allclose(values, right, rtol=rtol, atol=1e-6 * np.abs(right).max(), err_msg=f"{name} {s}")
        right = expected.adversarial_distance(inputs)
        np.testing.assert_allclose(found.adversarial_distance(inputs), right, rtol=1e-3, atol=1e-5)
    computed = results.compute(recording, ScoreOptions(checkpoints=2), networks=networks).scores
    assert not {*REPLAYED} & {*computed.missing}
    np.testing.assert_array_equal(computed.of_seeds["adversarial_distance"][1], found.adversarial_distance(inputs))
    assert {*REPLAYED} <= {*results.compute(recording).scores.missing}


def test_what_the_replay_costs_is_said_before_it_starts(recording, networks, monkeypatch):
    said = []
    tell = (recording, ScoreOptions(checkpoints=4), networks, said.append)
    analysis._say_cost_of_replay(*tell)
    assert said == []  # seconds, which take longer to reckon
    monkeypatch.setattr(scores, "WORTH", 0)
    monkeypatch.setattr(scores, "FEW_EXAMPLES", 8)
    monkeypatch.setattr(analysis, "LONG", 0)
    clock = iter(range(1000))
    monkeypatch.setattr(scores.time, "perf_counter", lambda: float(next(clock)))  # so that each score takes a second
    seconds = scores.replay_seconds(*tell[:3])
    assert {*seconds} == {*REPLAYED}
    everywhere = 50 / 8 * 4 * 2  # of 50 examples 8 were computed, at one of four iterations, of one of two seeds
    assert seconds == {name: pytest.approx(everywhere / 4 if name == "grand" else everywhere) for name in REPLAYED}
    analysis._say_cost_of_replay(*tell)
    (line,) = said
    assert line.startswith("Running the networks of 2 seeds again, at 4 iterations: about 4 min, of which ")
    assert line.endswith(" takes 50 s; --score_checkpoints=2 takes 50% of that")


def test_how_far_the_replay_is_is_told(recording, networks):
    told = []
    results.compute(recording, ScoreOptions(checkpoints=2), networks=networks, replayed=told.append)
    assert {f"{name}: {done} of 2 seeds" for name in REPLAYED for done in (1, 2)} == {*told}


def network(activation, rng):
    """The loss of a small convolutional classifier, and seven examples."""
    weights = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 3, 1, 2), (8, 3), (3,))]

    def loss(x, label):
        windows = jax.lax.conv_general_dilated(
            x[None], weights[0], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        logits = activation(windows).reshape(-1) @ weights[1] + weights[2]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label), logits

    return loss, (jnp.asarray(rng.normal(size=(7, 5, 5, 1)) / 2, jnp.float32), jnp.arange(7) % 3)


@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh])
def test_scores_of_a_convolutional_network_against_slow_definitions(rng, activation):
    loss, (images, labels) = network(activation, rng)
    signs = jnp.asarray(rng.choice([-1, 1], (4, 5, 5, 1)), jnp.float32)
    basis = 5 * jnp.eye(25).reshape(25, 5, 5, 1)

    @jax.jit
    def fast(*examples):
        pieces = of_inputs.is_of_pieces(loss, examples, signs[0]), of_inputs.curvatures_of_pieces(loss, examples)
        bent = of_inputs.curvatures(loss, examples, signs), of_inputs.curvatures(loss, examples, basis)
        return *pieces, *bent, of_inputs.logit_gradients(loss, examples)

    def of_rows(function):
        fast = jax.jit(lambda *rows: function(loss, rows))
        return lambda *rows: jax.tree.map(np.asarray, fast(*rows))

    of_pieces, of_linear, estimated, traced, slopes = fast(images, labels)
    functions = (of_inputs.predictions, of_inputs.leads, of_inputs.steps)
    far = of_inputs.distances(np.asarray(images), *map(of_rows, functions))
    assert of_pieces == (activation is jax.nn.relu)
    hessian = jax.jit(jax.hessian(lambda x, label: loss(x, label)[0]))
    jacobian = jax.jit(jax.jacobian(lambda x: loss(x, 0)[1]))
    logits = jax.jit(lambda x: loss(x, 0)[1])
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        h = np.asarray(hessian(image, label)).reshape(25, 25)
        bends = [np.sum(np.square(h @ v.ravel())) for v in signs]
        np.testing.assert_allclose(estimated[n], np.mean(bends), rtol=1e-4)
        np.testing.assert_allclose(traced[n], np.sum(h * h), rtol=1e-4)
        if of_pieces:
            np.testing.assert_allclose(of_linear[n], np.sum(h * h), rtol=1e-4)
        np.testing.assert_allclose(slopes[n], jacobian(image)[label], rtol=1e-4, atol=1e-6)
        assert far[n] == pytest.approx(deepfool(logits, jacobian, np.asarray(image)), rel=1e-3)


def deepfool(logits, jacobian, image):
    """Length of the way to another class, a step at a time to the nearest boundary of the network as it is there."""
    label, x = int(np.argmax(logits(image))), image.copy()
    for _ in range(50):
        z, slopes = np.asarray(logits(x)), np.asarray(jacobian(x))
        if z.argmax() != label:
            break
        toward = [(z[label] - z[c], slopes[c] - slopes[label]) for c in range(3) if c != label]
        x = x + 1.02 * min((lead / np.sum(d * d) * d for lead, d in toward), key=np.linalg.norm)
    else:
        return np.inf
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        still = np.argmax(logits(image + np.float32(middle) * (x - image))) == label
        low, high = (middle, high) if still else (low, middle)
    return high * float(np.linalg.norm(x - image))
