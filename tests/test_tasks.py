"""Networks, losses and optimizers that are not the default ones, from the command line's names to a recording."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import train_dynamics as td
from tests.conftest import run, silent
from train_dynamics.config import InputError, StudyConfig
from train_dynamics.gradients.evaluation import definition
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.verification import verify
from train_dynamics.task.options import optimizer_of, output_loss
from train_dynamics.task.task import Task, weighted_mean
from train_dynamics.training import sweep
from train_dynamics.training.replay import networks_of
from train_dynamics.training.setup import prepare

NETWORKS = """
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(2, (3, 3), strides=3, name="conv")(x))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(nn.Dropout(0.5, deterministic=not train)(x))


class OfNnx(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Linear(784, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.norm(self.body(x.reshape(len(x), -1))))))


class Narrow(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(7)(x.reshape(len(x), -1))


class Half(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10, param_dtype=jnp.float16)(x.reshape(len(x), -1))


class Random(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(10)(x.reshape(len(x), -1)))


class Mixing(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        return nn.Dense(10)(x - x.mean(axis=0))


plain, noisy, narrow, half, random, mixing = Plain(), Noisy(), Narrow(), Half(), Random(), Mixing()
number = 3


def no_scalar(output, label):
    return output
"""
CONFIG = StudyConfig(num_examples=40, batch_size=16, epochs=1, num_seeds=2, layers=("all",))


@pytest.fixture
def networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks.py").write_text(NETWORKS)
    return tmp_path


def recorded(path, device, **change) -> Recording:
    config = dataclasses.replace(CONFIG, **change)
    assert sweep.train(config, path, device, log=silent)
    return Recording(path)


def same_as_the_definition(recording: Recording, task: Task, t: int) -> None:
    """All gradients of a record, against those of `vmap(grad)` at its weights."""
    examples = jax.tree.map(jnp.asarray, (recording.inputs(), recording.labels))
    for s in range(len(recording.seeds)):
        params = jax.tree.map(lambda leaf, s=s: jnp.asarray(leaf[s]), recording.parameters(t))
        variables = jax.tree.map(lambda leaf, s=s: jnp.asarray(leaf[s]), recording.variables(t))
        expected = definition(task.loss_with(variables), params, examples, list(recording.layers))
        for name, gradient in expected.items():
            # Sums of up to 784 products in another order: some sqrt(784) steps of 1.2e-7 of the largest entry.
            bound = 28 * 1.2e-7 * max(float(jnp.abs(gradient).max()), 1e-6) * 4
            np.testing.assert_allclose(recording.gradients(name, t)[s], gradient, rtol=0, atol=bound, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "noisy", "OfNnx"])
def test_every_recorded_gradient_is_that_of_the_definition(networks, device, name):
    model = f"networks.py:{name}"
    recording = recorded(networks / "out", device, model=model)
    task = prepare(recording.config, recording.data).setup.task
    for t in (0, 3):
        same_as_the_definition(recording, task, t)
    found = verify(recording, samples=8, networks=networks_of(recording, model=model))
    assert found.problems == [] and found.num_compared > 2 * found.num_undecided
    assert {"loss", "outputs", "prediction", *(f"gradient of {name}" for name in recording.layers)} == set(found.errors)
    assert recording.code["model"]["import"] == model and "class Plain" in recording.code["model"]["source"]
    assert recording.probabilities(3).shape == (2, 40, 10)
    np.testing.assert_array_equal(recording.outputs(3).argmax(axis=-1), recording.predictions(3))
    if name != "plain":  # statistics move in training, and are those of the record in evaluation
        (mean,) = (leaf for path, leaf in jax.tree.leaves_with_path(recording.variables(3)) if "mean" in str(path))
        assert np.abs(mean).max() > 0


@pytest.mark.slow
def test_seeds_side_by_side_as_on_gpus_record_the_same(networks, device, monkeypatch):
    change = {"model": "networks.py:plain", "gradient_layout": "head*:measures,factored"}
    one = recorded(networks / "one", device, **change)
    monkeypatch.setattr(sweep, "over_seeds", lambda block, in_axes, setup, on_cpu: jax.vmap(block, in_axes))
    other = recorded(networks / "other", device, **change)
    for t in (0, 3):
        for name in one.contents.arrays:
            found, expected = (recording._block(t).read(name, t) for recording in (other, one))
            # The same sums of up to 200 products in another order, after up to three updates: as above.
            bound = 28 * 1.2e-7 * np.abs(expected).max(initial=1e-6) * 4
            np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=name)


@pytest.mark.slow
def test_examples_divided_over_devices_are_measured_against_the_mean_of_all(networks, device):
    # 37 examples on two devices fill 38 places.
    change = {"model": "networks.py:plain", "gradient_layout": "head*:measures,factored", "num_examples": 37}
    one = recorded(networks / "one", device, eval_batch_size=8, **change)
    other = recorded(networks / "other", jax.local_devices()[:4], eval_batch_size=8, **change)
    for t in (0, 2):
        for name in one.contents.arrays:
            found, expected = (recording._block(t).read(name, t) for recording in (other, one))
            # The same sums of up to 200 products in another order, after up to two updates: as above.
            bound = 28 * 1.2e-7 * np.abs(expected).max(initial=1e-6) * 4
            np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=name)


@pytest.mark.slow
def test_an_interrupted_run_of_any_network_goes_on_bit_for_bit(networks, device, monkeypatch):
    config = dataclasses.replace(CONFIG, model="networks.py:noisy", epochs=3, optimizer="adam", learning_rate=0.01)
    monkeypatch.setattr(sweep, "BLOCK_BYTES", 1)  # a record in each block
    for path, stops in (("whole", [False] * 99), ("parts", [False, False, True, *[False] * 99])):
        while not sweep.train(config, networks / path, device, log=silent, stop=lambda stops=stops: stops.pop(0)):
            pass
    one, other = Recording(networks / "whole"), Recording(networks / "parts")
    for t in one.iterations:
        for name in one.contents.arrays:
            np.testing.assert_array_equal(one._block(t).read(name, t), other._block(t).read(name, t), err_msg=name)
    (networks / "networks.py").write_text(NETWORKS + "\n")


def test_the_default_network_otherwise(tmp_path, device):
    """Biases, sketches and measures of it, another optimizer and a schedule: by the way of all networks."""
    layout = "fc1/bias:sketch,fc1:measures,factored"
    recording = recorded(
        tmp_path / "out",
        device,
        gradient_layout=layout,
        optimizer="adamw(weight_decay=0.1)",
        learning_rate="cosine_decay_schedule(init_value=0.1, decay_steps=9)",
        sketch_size=4,
    )
    layouts = {name: recording.kept(name).layout for name in recording.layers}
    assert layouts == {
        "fc1/bias": "sketch",
        "fc1": "measures",
        "fc2/bias": "dense",
        "fc2": "factored",
        "all": "measures",
    }
    assert recording.gradient_layers == ("fc1/bias", "fc2/bias", "fc2")
    assert recording.gradients("fc2", 2).shape == (2, 40, 8, 10)
    # The gradient of the last bias is p - y, from which the class probabilities follow.
    error = recording.probabilities(2) - np.eye(10)[recording.labels]
    np.testing.assert_allclose(recording.gradients("fc2/bias", 2), error, rtol=0, atol=1e-6)  # a few steps of 1.2e-7
    norm, product = recording.measures("fc1", 2)
    assert norm.shape == product.shape == (2, 40)
    for read in ("gradients", "vectors"):
        with pytest.raises(KeyError, match="only measures were recorded"):
            getattr(recording, read)("fc1", 2)
    with pytest.raises(KeyError, match="only sketch"):
        recording.gradients("fc1/bias", 2)
    (vectors,) = recording.vectors("fc1/bias", 2)
    assert vectors.shape == (2, 40, 4)
    found = verify(recording, samples=8)  # in NumPy
    assert found.problems == [] and {"sketch of fc1/bias", "squared norm of fc1", "squared norm of all"} < {
        *found.errors
    }


def test_a_function_and_arrays_are_enough(tmp_path, device):
    def loss(params, example):
        value, label = example
        logits = jnp.tanh(value["left"] @ params["a"]) @ params["b"] + value["right"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label), logits

    def init(key):
        one, other = jax.random.split(key)
        return {"a": jax.random.normal(one, (4, 5)), "b": jax.random.normal(other, (5, 3))}

    rng = np.random.default_rng(0)
    inputs = {"left": rng.normal(size=(30, 4)), "right": rng.normal(size=(30, 3))}
    labels = np.array(["x", "y", "z"])[rng.integers(3, size=30)]
    task, config = td.Task(init, loss), td.StudyConfig(num_seeds=2, epochs=1, batch_size=8)
    recording = td.sweep(task, (inputs, labels), tmp_path / "out", config, device, silent)
    assert recording.finished and recording.layers == ("a", "b") and recording.class_names == ("x", "y", "z")
    same_as_the_definition(recording, task, 4)
    source = recording.code["task"]["source"]
    assert "def loss" in source and "def init" in source and "def test_" not in source
    td.sweep(task, (inputs, labels), tmp_path / "out", config, device, silent)  # as a script does that is run again
    found = verify(recording, samples=8, networks=networks_of(recording, task=task))
    assert found.problems == [] and found.num_compared == 8 * 30 * 2
    other = td.Task(lambda key: jax.tree.map(jnp.zeros_like, init(key)), loss)
    with pytest.raises(InputError, match="the task: it has changed since"):
        networks_of(recording, task=other)
    for named in (None, recording.config.model):  # which is no name that anything could be imported by
        with pytest.raises(InputError, match="was made in Python, and is run again only there"):
            networks_of(recording, model=named)
    with pytest.raises(InputError, match="was begun with other code of the task"):
        td.sweep(other, (inputs, labels), tmp_path / "out", config, device, silent)


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (len, (np.zeros((4, 2)), [0, 1, 0, 1]), "task must be a train_dynamics.Task(init, loss), not a builtin"),
        (td.Task(len, len), np.zeros((4, 2)), "data must be a train_dynamics.Dataset, or a pair (inputs, labels)"),
        (td.Task(len, len), (np.full((4, 2), np.nan), [0, 1, 0, 1]), "inputs of example 0 (id 0) has nan"),
        (td.Task(len, len), (np.zeros((4, 2)), [0, 1]), "inputs and labels must have the same length"),
    ],
)
def test_mistakes_in_python_get_a_line_too(tmp_path, task, data, message):
    with pytest.raises(InputError) as error:
        td.sweep(task, data, tmp_path / "out")
    assert message in str(error.value) and not (tmp_path / "out").exists()


def test_targets_of_a_regression(tmp_path, device):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", inputs=rng.normal(size=(40, 3)), labels=rng.normal(size=40))
    change = {"dataset": str(tmp_path / "data.npz"), "num_examples": None, "layers": ("fc2",)}
    recording = recorded(tmp_path / "out", device, **change)
    outputs = recording.outputs(0)
    np.testing.assert_allclose(recording.loss(0), (outputs[..., 0] - recording.labels) ** 2, rtol=1e-5)
    assert np.isnan(recording.correct(0)).all()
    for read in (recording.predictions, recording.probabilities):
        with pytest.raises(KeyError):
            read(0)
    done = run("verify", "--recording=out", "--samples=4", cwd=tmp_path)  # which needs no code of the user's
    assert (done.returncode, done.stderr) == (0, "") and "160 gradients were computed again, in float64" in done.stdout
    done = run("analyze", "--recording=out", "--parts=scores,motion,cones", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Left out: scores, which is about classes" in done.stdout
    claims = json.loads((tmp_path / "out" / "analysis" / "claims.json").read_text())
    assert {claim["holds"] for claim in claims} == {None}
    assert (tmp_path / "out" / "analysis" / "figures" / "chunk_loss.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "nosuch:x"}, "--model=nosuch:x: nosuch cannot be imported: ModuleNotFoundError"),
        ({"model": "networks.py:nosuch"}, "--model=networks.py:nosuch: networks.py has no nosuch"),
        ({"model": "networks.py:number"}, "--model=networks.py:number: is of type int, but must be a Linen module"),
        ({"model": "networks.py:narrow"}, "must output one number for each of 10 classes, but outputs [7]"),
        ({"model": "networks.py:half"}, "--model=networks.py:half: parameter Dense_0/bias is float16"),
        ({"model": "networks.py:random"}, "--model=networks.py:random: needs random numbers where it is evaluated"),
        ({"model": "networks.py:mixing"}, "--model=networks.py:mixing: an example's gradient depends on the other"),
        ({"loss": "networks.py:no_scalar"}, "--loss=networks.py:no_scalar: loss(params, example) must return"),
        ({"loss": "squared_error"}, "--loss=squared_error: for targets of a regression, and the labels are classes"),
        ({"loss": "nosuch"}, "--loss=nosuch: is not known; choose one of softmax_cross_entropy"),
        ({"optimizer": "nosuch"}, "--optimizer=nosuch: Optax has no nosuch"),
        ({"optimizer": "adam(nosuch=1)"}, "--optimizer=adam(nosuch=1): cannot be made"),
        ({"optimizer": "print('x')"}, "--optimizer=print('x'): must be a name of Optax's"),
        ({"learning_rate": "cosine(3)"}, "--learning_rate=cosine(3): must be a name of Optax's"),
        ({"layers": ("conv*",)}, "--layers=conv*: no layer matches 'conv*'; there are fc1/bias, fc1, fc2/bias, fc2"),
        ({"gradient_layout": "conv*:dense,factored"}, "no recorded layer matches conv*; there are fc1/bias"),
    ],
)
def test_mistakes_get_a_line_and_nothing_is_written(networks, device, change, message):
    with pytest.raises(InputError) as error:
        recorded(networks / "out", device, **change)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (networks / "out").exists()


def test_a_recording_does_not_go_on_with_other_code(networks, device):
    change = {"loss": "networks.py:own", "layers": ("fc2",), "epochs": 3}
    own = "\n\ndef own(output, label):\n    return -jax.nn.log_softmax(output)[label]\n"
    (networks / "networks.py").write_text(NETWORKS + own)
    config = dataclasses.replace(CONFIG, **change)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "BLOCK_BYTES", 1)
        assert not sweep.train(config, networks / "out", device, log=silent, stop=lambda: True)
    (networks / "networks.py").write_text(NETWORKS + own.replace("-jax", "-2 * jax"))
    done = run("train", *flags(config), "--recording=out", cwd=networks)
    assert done.returncode == 1 and "was begun with other code of --loss: networks.py:own has changed" in done.stderr
    (networks / "networks.py").write_text(NETWORKS + own)
    assert run("train", *flags(config), "--recording=out", cwd=networks).returncode == 0
    (networks / "networks.py").write_text(NETWORKS)  # of a finished one, too
    done = run("train", *flags(config), "--recording=out", cwd=networks)
    assert done.returncode == 1 and "networks.py has no own" in done.stderr


def flags(config: StudyConfig) -> list[str]:
    default = StudyConfig().to_dict()
    names = {"num_seeds": "seeds"}
    return [
        f"--{names.get(name, name)}={','.join(value) if isinstance(value, list | tuple) else value}"
        for name, value in config.to_dict().items()
        if value != default[name]
    ]


@pytest.mark.parametrize("kind", ["npz", "orbax"])
def test_all_seeds_start_from_given_weights(tmp_path, device, kind):
    rng = np.random.default_rng(0)
    shapes = {"fc1/kernel": (784, 8), "fc1/bias": (8,), "fc2/kernel": (8, 10), "fc2/bias": (10,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    path = tmp_path / f"start.{kind}"
    if kind == "npz":
        np.savez(path, **weights)
    else:
        tree = {layer: {part: weights[f"{layer}/{part}"] for part in ("kernel", "bias")} for layer in ("fc1", "fc2")}
        ocp.PyTreeCheckpointer().save(path, {"params": tree})
    recording = recorded(tmp_path / "out", device, layers=("fc2",), initial=str(path), momentum=0.9)
    for layer, parts in recording.parameters(0).items():
        for part, value in parts.items():
            for of_seed in value:
                np.testing.assert_array_equal(of_seed, weights[f"{layer}/{part}"])
    assert (recording.parameters(1)["fc2"]["bias"][0] != recording.parameters(1)["fc2"]["bias"][1]).any()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"fc1/kernel": np.zeros((784, 8))}, "has no fc1/bias; it has fc1/kernel"),
        (
            {"fc1/kernel": np.zeros((784, 9)), "fc1/bias": np.zeros(8), "fc2/kernel": 0, "fc2/bias": 0},
            "of shape [784, 9]",
        ),
        (None, "there is no such file or directory"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, device, weights, message):
    if weights is not None:
        np.savez(tmp_path / "start.npz", **weights)
    with pytest.raises(InputError, match=r"^--initial=.*start\.npz: ") as error:
        recorded(tmp_path / "out", device, layers=("fc2",), initial=str(tmp_path / "start.npz"))
    assert message in str(error.value) and not (tmp_path / "out").exists()


def test_losses_by_name():
    output = jnp.array([1.0, 2.0, 0.5])
    for name in ("", "softmax_cross_entropy"):
        expected = optax.softmax_cross_entropy_with_integer_labels(output, 1)
        np.testing.assert_allclose(output_loss(name, True)(output, jnp.int32(1)), expected, rtol=1e-6)
    # Of three logits against 0, 1, 0: the mean of log(1 + e^z) - y z.
    by_hand = np.mean(np.log1p(np.exp([1.0, 2.0, 0.5])) - [0, 2.0, 0])
    np.testing.assert_allclose(output_loss("sigmoid_binary_cross_entropy", True)(output, jnp.int32(1)), by_hand, 1e-6)
    assert output_loss("", False)(jnp.array([3.0]), jnp.float32(1.0)) == 4.0
    assert output_loss("l2_loss", False)(jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0])) == 1.0  # (2² / 2 + 0) / 2


def test_the_default_optimizer_is_that_of_the_study():
    gradient = {"w": jnp.array([1.0])}
    optimizer = optimizer_of(StudyConfig(learning_rate=0.5))
    assert optimizer.update(gradient, optimizer.init(gradient), gradient)[0]["w"] == -0.5


def test_examples_of_weight_zero_play_no_part():
    assert weighted_mean(jnp.array([2.0, 4.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])) == 3.0
