"""The recorder for people's own training loops: on every kind of network, and when things go wrong."""

import itertools
import os
import re
import subprocess
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from matplotlib.text import Text

import train_dynamics as td
from tests.conftest import run, silent
from train_dynamics.gradients.evaluation import definition
from train_dynamics.plots import figures
from train_dynamics.plots.group_drawings import group_drawings
from train_dynamics.recording import writer
from train_dynamics.report.page import page
from train_dynamics.report.sections import cones_section, contention_section, groups_section
from train_dynamics.study.claims import claims
from train_dynamics.study.cones import ConeOptions, find_cones
from train_dynamics.study.contention import ContentionOptions, find_contention
from train_dynamics.study.results import compute
from train_dynamics.study.scores import SCORES, ScoreOptions, study_of
from train_dynamics.training import recorder as module

N, CLASSES = 12, 3


def cross_entropy(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def loss(params, example):
    x, label = example
    logits = jax.nn.relu(x @ params["body"]["kernel"]) @ params["head"]["kernel"] + params["head"]["bias"]
    return cross_entropy(logits, label), logits


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, 5)).astype(np.float32), rng.integers(CLASSES, size=N)


def start(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    head = {"kernel": jax.random.normal(keys[1], (4, CLASSES)), "bias": jnp.zeros(CLASSES)}
    return {"body": {"kernel": jax.random.normal(keys[0], (5, 4))}, "head": head}


def stepped(params, t):
    """An update that any loop might make."""
    return jax.tree.map(lambda leaf: leaf * (1 - 0.01 * (t + 1)), params)


def recorder(path, *arguments, **options):
    return td.Recorder(path, *arguments, log=silent, **options)


def recorded(path, examples, iterations=(0, 1, 2, 3, 4), params=None, **options):
    """Record the loop; give the recording and the parameters at each iteration."""
    params, seen = start() if params is None else params, {}
    with recorder(path, loss, examples, **options) as found:
        for t in iterations:
            found.record(t, params)
            seen[t] = params
            params = stepped(params, t)
    return td.Recording(path), seen


def test_every_record_is_what_the_definition_gives(tmp_path, examples):
    recording, seen = recorded(tmp_path / "out", examples)
    assert recording.finished and recording.of_loop and recording.iterations.tolist() == [0, 1, 2, 3, 4]
    assert recording.layers == ("body/kernel", "head/bias", "head/kernel")
    assert recording.class_names == ("0", "1", "2") and recording.seeds.tolist() == [0]
    np.testing.assert_array_equal(recording.inputs(), examples[0])
    for t, params in seen.items():
        expected = definition(loss, params, examples, recording.layers)
        for layer in recording.layers:
            np.testing.assert_allclose(recording.gradients(layer, t)[0], expected[layer], rtol=1e-5, atol=1e-6)
        losses, logits = jax.vmap(loss, (None, 0))(params, examples)
        np.testing.assert_allclose(recording.loss(t)[0], losses, rtol=1e-5)
        np.testing.assert_array_equal(recording.predictions(t)[0], logits.argmax(-1))
        np.testing.assert_array_equal(recording.parameters(t)["head"]["kernel"][0], params["head"]["kernel"])


def test_a_loop_that_gives_its_parameters_away_is_recorded_all_the_same(tmp_path, examples):
    update = jax.jit(lambda params: jax.tree.map(lambda leaf: 0.9 * leaf, params), donate_argnums=0)
    params, kept = start(), []
    with recorder(tmp_path / "out", loss, examples) as found:
        for t in range(6):
            kept.append(np.array(params["head"]["kernel"]))
            found.record(t, params)
            params = update(params)
    recording = td.Recording(tmp_path / "out")
    for t in range(6):
        np.testing.assert_array_equal(recording.parameters(t)["head"]["kernel"][0], kept[t])


class Normalised(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Linear(5, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.norm(self.body(x)))))


def of_module(model, example):
    logits = model(example[0][None])[0]
    return cross_entropy(logits, example[1]), logits


def test_an_nnx_module_is_taken_as_it_is(tmp_path, examples):
    model = Normalised(nnx.Rngs(0))
    model.train()
    with recorder(tmp_path / "out", of_module, examples, layers="*kernel") as found:
        for t in range(3):
            found.record(t, model)
            model(examples[0])  # statistics and random keys move on
            model.head.kernel[...] *= 0.9
    assert not model.drop.deterministic  # nothing of the loop changes
    recording = td.Recording(tmp_path / "out")
    assert recording.layers == ("body/kernel", "head/kernel")
    means = [recording.variables(t)["norm"]["mean"] for t in range(3)]
    assert not np.allclose(means[0], means[2])
    model.eval()
    for kind, values in ((nnx.Param, recording.parameters(1)), (nnx.BatchStat, recording.variables(1))):
        state = nnx.state(model, kind)
        nnx.replace_by_pure_dict(state, jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), values))
        nnx.update(model, state)
    np.testing.assert_allclose(recording.outputs(1)[0], model(examples[0]), rtol=1e-5, atol=1e-6)


def test_an_nnx_network_may_draw_random_keys_where_it_is_evaluated(tmp_path, examples):
    class Recurrent(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.GRUCell(5, 4, rngs=rngs))  # which draws its first carry, of zeros
            self.head = nnx.Linear(4, CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.head(self.rnn(x[:, None])[:, -1])

    model = Recurrent(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    with recorder(tmp_path / "out", of_module, examples, layers="rnn/cell/dense_i/kernel") as found:
        found.record(0, model)
        found.record(1, model)

    def of_one(params, rest, example):
        return of_module(nnx.merge(graph, params, rest), example)[0]

    def gradient(rest, example):
        return jax.grad(lambda params: of_one(params, jax.tree.map(lambda leaf: leaf, rest), example))(params)

    expected = jax.vmap(gradient, (None, 0))(rest, examples)["rnn"]["cell"]["dense_i"]["kernel"][...]
    np.testing.assert_allclose(
        td.Recording(tmp_path / "out").gradients("rnn/cell/dense_i/kernel", 1)[0], expected, rtol=1e-4, atol=1e-6
    )


class Eqx(eqx.Module):
    body: eqx.nn.Linear
    head: eqx.nn.Linear
    activation: object

    def __init__(self, key):
        self.body, self.head = eqx.nn.Linear(5, 4, key=key), eqx.nn.Linear(4, CLASSES, key=key)
        self.activation = jax.nn.relu

    def __call__(self, x):
        return self.head(self.activation(self.body(x)))


def test_an_equinox_module_is_taken_as_it_is(tmp_path, examples):
    def of_eqx(model, example):
        logits = model(example[0])
        return cross_entropy(logits, example[1]), logits

    model = Eqx(jax.random.key(0))
    with recorder(tmp_path / "out", of_eqx, examples, layers=["head/weight"]) as found:
        found.record(0, model)
    params, static = eqx.partition(model, eqx.is_array)
    expected = jax.vmap(jax.grad(lambda params, example: of_eqx(eqx.combine(params, static), example)[0]), (None, 0))(
        params, examples
    )
    np.testing.assert_allclose(
        td.Recording(tmp_path / "out").gradients("head/weight", 0)[0], expected.head.weight, rtol=1e-5, atol=1e-6
    )


def test_statistics_of_a_linen_network_are_a_third_argument(tmp_path, examples):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(CLASSES, name="head")(nn.BatchNorm(use_running_average=True, name="norm")(x))

    model = Network()
    variables = model.init(jax.random.key(0), examples[0])
    moved = jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])

    def of_network(params, example, statistics):
        logits = model.apply({"params": params, "batch_stats": statistics}, example[0][None])[0]
        return cross_entropy(logits, example[1]), logits

    with recorder(tmp_path / "out", of_network, examples, layers="head/kernel") as found:
        found.record(0, variables["params"], variables["batch_stats"])
        found.record(1, variables["params"], moved)
    recording = td.Recording(tmp_path / "out")
    assert np.allclose(recording.variables(1)["norm"]["mean"], 0.5)
    for t, statistics in enumerate((variables["batch_stats"], moved)):
        losses = jax.vmap(of_network, (None, 0, None))(variables["params"], examples, statistics)[0]
        np.testing.assert_allclose(recording.loss(t)[0], losses, rtol=1e-5)


def test_bfloat16_is_computed_in_float32(tmp_path, examples):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start())
    recording, _ = recorded(tmp_path / "out", examples, range(1), half)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    expected = definition(loss, whole, examples, ["head/kernel"])["head/kernel"]
    np.testing.assert_allclose(recording.gradients("head/kernel", 0)[0], expected, rtol=1e-5, atol=1e-6)
    assert recording.parameters(0)["head"]["kernel"].dtype == np.float32
    assert '"head/kernel": "bfloat16"' in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_parameters_on_several_devices(tmp_path, examples, kind):
    mesh = jax.make_mesh((2,), ("model",), axis_types=(kind,), devices=jax.devices()[:2])
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    params = start()
    divided = {**params, "body": {"kernel": jax.device_put(params["body"]["kernel"], spread)}}
    here, _ = recorded(tmp_path / "here", examples, range(2), params)
    there, _ = recorded(tmp_path / "there", examples, range(2), divided)
    for layer in here.layers:
        np.testing.assert_allclose(there.gradients(layer, 1), here.gradients(layer, 1), rtol=1e-5, atol=1e-6)


def test_seeds_side_by_side_or_one_recording_each(tmp_path, examples):
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), start(3), start(7))
    together, _ = recorded(tmp_path / "together", examples, range(4), both, seed=[3, 7])
    for seed in (3, 7):
        recorded(tmp_path / str(seed), examples, range(4), start(seed), seed=seed)
    joined = td.Recording([tmp_path / "3", tmp_path / "7"])
    assert joined.seeds.tolist() == together.seeds.tolist() == [3, 7] and joined.finished
    for t in range(4):
        np.testing.assert_allclose(joined.loss(t), together.loss(t), rtol=1e-6)
        for layer in joined.layers:
            np.testing.assert_allclose(joined.gradients(layer, t), together.gradients(layer, t), rtol=1e-5, atol=1e-6)
    with pytest.raises(td.InputError, match="every array has a leading axis of 3 seeds"):
        recorded(tmp_path / "three", examples, range(1), both, seed=range(3))


def test_blocks_of_joined_recordings_may_end_anywhere(tmp_path, examples, monkeypatch):
    for seed, length in ((0, 2), (1, 3)):
        monkeypatch.setattr(module, "BLOCK_RECORDS", length)
        recorded(tmp_path / str(seed), examples, range(7), start(seed), seed=seed)
    alone = [td.Recording(tmp_path / str(seed)) for seed in (0, 1)]
    assert [len(list(one.blocks())) for one in alone] == [4, 3]
    for order in ((0, 1), (1, 0)):
        joined = td.Recording([tmp_path / str(seed) for seed in order])
        expected = np.stack([np.concatenate([alone[s].loss(t) for s in order]) for t in range(7)], axis=1)
        np.testing.assert_array_equal(np.concatenate([b.read("loss") for b in joined.blocks()], axis=1), expected)
        each = [row for block in joined.blocks() for row in block.each("loss")]
        np.testing.assert_array_equal(np.stack(each, axis=1), expected)
        np.testing.assert_array_equal(joined.loss(5), expected[:, 5])


def test_what_does_not_fit_is_not_joined(tmp_path, examples):
    recorded(tmp_path / "a", examples)
    recorded(tmp_path / "same", examples)
    recorded(tmp_path / "shorter", examples, range(3), seed=1)
    recorded(tmp_path / "others", (examples[0] + 1, examples[1]), seed=1)
    recorded(tmp_path / "layers", examples, layers="head/kernel", seed=1)

    def doubled(params, example):
        value, logits = loss(params, example)
        return 2 * value, logits

    doubled.__module__, doubled.__qualname__ = loss.__module__, loss.__qualname__
    with recorder(tmp_path / "loss", doubled, examples, seed=1) as found:
        for t in range(5):
            found.record(t, start())
    for other, message in (
        ("same", "seed 0 is in both"),
        ("shorter", "other iterations: 5 to iteration 4 and 3 to iteration 2"),
        ("others", "their examples differ in inputs"),
        ("layers", "--layers all instead of head/kernel"),
        ("loss", "they were made with other code of the loss"),
    ):
        with pytest.raises(td.RecordingError, match=f"cannot be read as one: .*{message}"):
            td.Recording([tmp_path / "a", tmp_path / other])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": 3}, [0, 3, 6, 9, 12, 15, 18]),
        ({"records_per_doubling": 4}, [*range(8), 8, 10, 12, 14, 16]),
        ({"when": lambda t: t in (2, 7)}, [2, 7]),
    ],
)
def test_schedules(tmp_path, examples, options, expected):
    recording, _ = recorded(tmp_path / "out", examples, range(19), **options)
    assert recording.iterations.tolist() == expected


def test_iterations_rise(tmp_path, examples):
    with recorder(tmp_path / "out", loss, examples) as found:
        found.record(5, start())
        with pytest.raises(td.InputError, match="iteration 5 comes after iteration 5, and iterations must rise"):
            found.record(5, start())
        assert found.record(8, start()) and found.next_iteration == 9
    assert td.Recording(tmp_path / "out").iterations.tolist() == [5, 8]


def test_calls_that_cannot_be_meant(tmp_path, examples):
    with recorder(tmp_path / "out", loss, examples) as found:
        found.record(0, start())
        for t, params, message in (
            (-1, start(), "iteration -1: must be 0 or more"),
            (
                1,
                {**start(), "more": jnp.ones(3)},
                r"iteration 1: .* parameter more was missing, and is \[3\] float32 now",
            ),
            (
                1,
                jax.tree.map(lambda leaf: leaf[..., :2], start()),
                r"kernel was \[5, 4\] float32, and is \[5, 2\] float",
            ),
            (1, list(start().values()), "parameter body/kernel was .*, and is missing now"),
            (1, None, "params hold no floating-point array"),
            (1, {"body": [1.0]}, "params hold no floating-point array"),
        ):
            with pytest.raises(td.InputError, match=message):
                found.record(t, params)
        with pytest.raises(td.InputError, match=r"inside of jax\.jit"):
            jax.jit(lambda params: found.record(1, params))(start())
        assert found.record(np.int64(2), jax.tree.map(np.asarray, start()))
    with pytest.raises(td.InputError, match="is closed"):
        found.record(3, start())
    assert td.Recording(tmp_path / "out").iterations.tolist() == [0, 2]


def test_a_loop_that_fails_keeps_what_was_recorded_and_goes_on(tmp_path, examples, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_RECORDS", 2)
    path, params, seen = tmp_path / "out", start(), []
    with pytest.raises(ZeroDivisionError), recorder(path, loss, examples) as found:
        for t in range(10):
            found.record(t, params)
            if t == 4:
                raise ZeroDivisionError
            params = stepped(params, t)
    assert td.Recording(path).iterations.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(td.InputError, match=r"holds a recording up to iteration 4: Recorder\(..., resume=True\)"):
        recorder(path, loss, examples)
    params = start()
    with recorder(path, loss, examples, resume=True) as found:
        assert found.next_iteration == 5
        for t in range(10):  # as it does where the loop's own checkpoint is older
            assert found.record(t, params) == (t >= 5)
            seen.append(params)
            params = stepped(params, t)
    recording = td.Recording(path)
    assert recording.iterations.tolist() == list(range(10))
    whole, _ = recorded(tmp_path / "whole", examples, range(10))
    for t in range(10):
        np.testing.assert_array_equal(recording.loss(t), whole.loss(t))
        np.testing.assert_array_equal(recording.gradients("head/kernel", t), whole.gradients("head/kernel", t))


def test_another_network_does_not_go_on(tmp_path, examples):
    recorded(tmp_path / "out", examples, layers="head/kernel")
    wider = {**start(), "body": {"kernel": jnp.ones((5, 7))}, "head": {"kernel": jnp.ones((7, 3)), "bias": jnp.ones(3)}}
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start())
    for params, message in (
        (wider, r"parameter body/kernel was \[5, 4\] float32, and is \[5, 7\] float32 now"),
        ({**start(), "more": jnp.ones(2)}, r"parameter more was missing, and is \[2\] float32 now"),
        (half, r"parameter body/kernel was \[5, 4\] float32, and is \[5, 4\] bfloat16 now"),
    ):
        with pytest.raises(td.InputError, match=message):
            recorded(tmp_path / "out", examples, range(5, 7), params, layers="head/kernel", resume=True)
    assert td.Recording(tmp_path / "out").num_records == 5


def test_what_the_loop_does_to_its_examples_is_not_recorded(tmp_path, examples):
    aligned = np.zeros(N * 5 + 16, np.float32)  # as JAX would take without a copy
    first = -aligned.ctypes.data % 64 // 4
    inputs = aligned[first : first + N * 5].reshape(N, 5)
    inputs[:] = examples[0]
    with recorder(tmp_path / "out", loss, (inputs, examples[1])) as found:
        inputs[:] = 0
        found.record(0, start())
        inputs[:] = 1
        found.record(1, start())
    recording = td.Recording(tmp_path / "out")
    np.testing.assert_array_equal(recording.loss(0), recording.loss(1))
    np.testing.assert_array_equal(recording.inputs(), examples[0])


def test_what_is_no_array_must_not_change(tmp_path, examples):
    def scaled(params, example):
        return loss({"body": params["body"], "head": jax.tree.map(lambda x: x * params["n"], params["head"])}, example)

    with recorder(tmp_path / "out", scaled, examples) as found:
        found.record(0, {**start(), "n": 1.0})
        with pytest.raises(td.InputError, match="not an array has changed since the first record; make it an array"):
            found.record(1, {**start(), "n": 2.0})

    class Scaled(nnx.Module):
        def __init__(self, rngs):
            self.head, self.drop, self.scale = nnx.Linear(5, CLASSES, rngs=rngs), nnx.Dropout(0.5, rngs=rngs), 1.0

        def __call__(self, x):
            return self.drop(self.head(x)) * self.scale

    model = Scaled(nnx.Rngs(0))
    with recorder(tmp_path / "nnx", of_module, examples) as found:
        found.record(0, model)
        model.eval()
        found.record(1, model)
        model.scale = 2.0
        with pytest.raises(td.InputError, match="not an array has changed"):
            found.record(2, model)


def test_gradients_that_are_no_numbers_end_it(tmp_path, examples):
    def kinked(params, example):
        value, logits = loss(params, example)
        return value + jnp.sqrt(jnp.sum(params["head"]["bias"] ** 2)), logits

    with pytest.raises(td.RecordingError, match="of example 0 is not finite at iteration 0"):
        recorded_with(kinked, tmp_path / "out", examples)
    done = run("analyze", "--recording=out", cwd=tmp_path)
    assert done.returncode == 1 and "holds 0 records, but an analysis needs two or more" in done.stderr
    assert not (tmp_path / "out" / "analysis").exists()
    done = run("verify", "--recording=out", cwd=tmp_path)
    assert done.returncode == 1 and "holds no records: the loop ended before its first block was stored" in done.stderr


def recorded_with(of_one, path, examples):
    with recorder(path, of_one, examples) as found:
        found.record(0, start())


def test_classes_whose_order_is_a_guess_are_told(tmp_path, examples):
    told = []
    with td.Recorder(tmp_path / "out", loss, (examples[0], examples[1] - 1), log=told.append) as found:
        found.record(0, start())
    assert "taken to stand for the classes -1, 0, 1, in this order" in "".join(told)


def test_one_that_is_not_closed_says_what_is_lost(tmp_path):
    program = (
        "import numpy as np, jax.numpy as jnp, train_dynamics as td\n"
        "r = td.Recorder('out', lambda p, x: ((x * p['w']).sum(), ()), np.ones((4, 2), np.float32))\n"
        "for t in range(3): r.record(t, {'w': jnp.ones(2)})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "out lost 3 records; use 'with td.Recorder(...)'" in done.stderr


def test_only_the_same_goes_on(tmp_path, examples):
    recorded(tmp_path / "out", examples)

    def other(params, example):
        value, logits = loss(params, example)
        return 2 * value, logits

    other.__module__, other.__qualname__ = loss.__module__, loss.__qualname__
    for arguments, options, message in (
        ((other, examples), {}, "other code of"),
        ((loss, examples), {"seed": 3}, r"\(seed 3 instead of 0\)"),
        ((loss, examples), {"layers": "head/kernel"}, r"\(layers head/kernel instead of all\)"),
    ):
        with pytest.raises(td.InputError, match=message):
            recorder(tmp_path / "out", *arguments, resume=True, **options)
    with pytest.raises(td.InputError, match="was begun with other examples"):
        recorded(tmp_path / "out", (examples[0] + 1, examples[1]), range(5, 7), resume=True)
    with pytest.raises(td.InputError, match=r"was begun with batch_size=None, but now batch_size=128$"):
        recorded(tmp_path / "out", examples, range(5, 7), resume=True, batch_size=128)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start())
    recorded(tmp_path / "both", examples, range(2), both, seed=[0, 1])
    with pytest.raises(td.InputError, match=r"was begun with seeds=\[0, 1\], but now seeds=\[0, 2\]$"):
        recorded(tmp_path / "both", examples, range(2, 4), both, seed=[0, 2], resume=True)


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_full_disk_ends_recording_and_not_training_if_that_is_wanted(tmp_path, examples, monkeypatch, on_error):
    monkeypatch.setattr(module, "BLOCK_RECORDS", 1)
    real = writer.write_array

    def full(path, *arguments):
        if "/2." in str(path):
            raise OSError(28, "No space left on device")
        real(path, *arguments)

    monkeypatch.setattr(writer, "write_array", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if on_error == "raise":
            with pytest.raises(td.RecordingError, match=r"No space left on device; .* resume=True\) continues"):
                recorded(tmp_path / "out", examples, range(8))
        else:
            _, seen = recorded(tmp_path / "out", examples, range(8), on_error="warn")
            assert len(seen) == 8
            (one,) = [one for one in caught if "recording has stopped" in str(one.message)]
            assert one.filename == __file__  # the line of the loop
    recording = td.Recording(tmp_path / "out")
    assert recording.iterations.tolist() == [0, 1] and recording.finished


def test_what_fails_at_last_is_closed_once(tmp_path, examples, monkeypatch):
    closed, close = [], os.close

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_array", full)
    with pytest.raises(td.RecordingError, match="No space left"), recorder(tmp_path / "out", loss, examples) as found:
        found.record(0, start())
        lock = found._writer._lock
        monkeypatch.setattr(os, "close", lambda fd: (closed.append(fd), close(fd)))
    assert closed.count(lock) == 1  # a second time it may be a file of the user's


def test_memory_that_is_full_ends_recording_and_not_training_if_that_is_wanted(tmp_path, examples):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    with recorder(tmp_path / "out", loss, examples, on_error="warn") as found:
        assert found.record(0, start()) and found.record(1, start())
        found._program = full
        with pytest.warns(
            UserWarning, match="recording has stopped, and the loop goes on without it: RESOURCE_EXHAUSTED"
        ):
            assert not found.record(2, start())
        assert not found.record(3, start())
    assert td.Recording(tmp_path / "out").iterations.tolist() == [0, 1]


def test_a_block_that_is_lost_is_missed(tmp_path, examples, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_RECORDS", 1)
    recorded(tmp_path / "out", examples)
    (tmp_path / "out" / "blocks" / "2").rename(tmp_path / "elsewhere")
    with pytest.raises(td.RecordingError, match=r"3 records should come before .*/3, and there are 2"):
        td.Recording(tmp_path / "out")


def test_a_loss_that_is_no_longer_finite_ends_it(tmp_path, examples):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, start())
    message = "the loss of example 0 is not finite at iteration 1"
    with pytest.raises(td.RecordingError, match=message), recorder(tmp_path / "out", loss, examples) as found:
        found.record(0, start())
        found.record(1, broken)
    assert td.Recording(tmp_path / "out").iterations.tolist() == [0]


def test_labels_and_outputs_of_other_kinds(tmp_path, examples):
    def without(params, x):
        return (x @ params["head"]["kernel"].sum(1)[:1].repeat(5)) ** 2, ()

    told = []
    with td.Recorder(tmp_path / "bare", without, examples[0], log=told.append) as found:
        found.record(0, start())
    recording = td.Recording(tmp_path / "bare")
    assert recording.class_names == () and np.isnan(recording.correct(0)).all()
    assert not any("labels=" in line for line in told)
    as_dict = {"x": examples[0], "y": examples[1]}
    of_dict = lambda params, example: loss(params, (example["x"], example["y"]))  # noqa: E731
    with td.Recorder(tmp_path / "dict", of_dict, as_dict, log=told.append) as found:
        found.record(0, start())
    assert "No labels were given, so there will be no accuracy and no predictions; give them" in "".join(told)
    with pytest.raises(KeyError):
        recording.outputs(0)

    def binary(params, example):
        logit = example[0] @ params["body"]["kernel"][:, 0]
        return optax.sigmoid_binary_cross_entropy(logit, example[1] > 0), logit

    with td.Recorder(tmp_path / "binary", binary, examples, log=told.append) as found:
        found.record(0, start())
    assert "of shape [], not one number for each of 3 classes" in "".join(told)

    words = np.array(["cat", "dog", "eel"])[examples[1]]
    with recorder(tmp_path / "words", loss, examples, labels=words, ids=[f"x{k}" for k in range(N)]) as found:
        found.record(0, start())
    recording = td.Recording(tmp_path / "words")
    assert recording.class_names == ("cat", "dog", "eel") and recording.ids[3] == "x3"
    np.testing.assert_array_equal(recording.labels, examples[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "conv*"}, "layers=conv*: no layer matches 'conv*'; there are body/kernel, head/bias"),
        ({"layers": []}, "layers=[]: must be a name, a pattern as in 'conv*/kernel', or a list of them"),
        ({"layers": [3]}, "layers=[3]: must be a name"),
        ({"layers": 3}, "layers=3: must be a name"),
        ({"layers": ["head/bias"] * 2}, "layers=head/bias,head/bias: names a layer twice"),
        ({"gradient_layout": "sparse"}, "gradient_layout=sparse: must be factored"),
        ({"gradient_layout": "no:measures,dense"}, "gradient_layout=no:measures,dense: no recorded layer matches no;"),
        ({"gradient_layout": None}, "gradient_layout=None: must be factored, dense"),
        ({"gradient_layout": 3}, "gradient_layout=3: must be factored, dense"),
        ({"seed": [1, 1]}, "seed=[1, 1]: must be a whole number, or several different ones"),
        ({"seed": None}, "seed=None: must be a whole number"),
        ({"seed": [1.5]}, "seed=[1.5]: must be a whole number"),
        ({"seed": True}, "seed=True: must be a whole number"),
        ({"seed": -1}, "seed=-1: must be a whole number, between 0 and 2147483647"),
        ({"labels": [0, 1]}, "inputs and labels must have the same length, not 12 and 2"),
        ({"ids": 3}, "ids must be a number or a text for each example"),
        ({"class_names": 3}, "class_names=3: must be the name of each class"),
        ({"class_names": ["a", "b", "a"]}, "class_names: a is there twice"),
        ({"every": 0}, "every=0: must be a whole number, 1 or more"),
        ({"every": 2, "records_per_doubling": 3}, "records_per_doubling=3: cannot be combined with every"),
        ({"every": 2, "when": bool}, "when cannot be combined with every"),
        ({"records_per_doubling": 2, "when": bool}, "when cannot be combined with every"),
        ({"when": 3}, "when=3: must be a function that takes an iteration and returns whether to record it"),
        ({"batch_size": 0}, "batch_size=0: must be a whole number, 1 or more"),
        ({"learning_rate": "2"}, "learning_rate='2': must be a number"),
        ({"learning_rate": -2}, "learning_rate=-2.0: must be a positive number"),
        ({"resume": "no"}, "resume='no': must be True or False"),
        ({"dataset": (1, 2)}, "dataset=(1, 2): must be a train_dynamics.Dataset"),
        ({"config": {}}, "config={}: must be a train_dynamics.StudyConfig"),
    ],
)
def test_mistakes_get_a_line_and_nothing_is_written(tmp_path, examples, options, message):
    with pytest.raises(td.InputError) as error:
        recorded(tmp_path / "out", examples, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value) and "--" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "of_one", "log", "message"),
    [
        (None, loss, print, "path=None: must be the directory of the recording"),
        (3, loss, print, "path=3: must be the directory of the recording"),
        ("out", 3, print, "loss=3: must be a function of params and one example"),
        ("out", loss, None, "log=None: must be a function that takes a line of text"),
    ],
)
def test_arguments_of_other_kinds_get_a_line(examples, path, of_one, log, message):
    with pytest.raises(td.InputError, match=f"^{message}$"):
        td.Recorder(path, of_one, examples, log=log)


@pytest.mark.parametrize("path", [3, None, ["a", None]])
def test_what_is_no_path_is_no_recording(path):
    with pytest.raises(td.RecordingError, match=r"^path=.*: must be the directory of a recording, or a list of such$"):
        td.Recording(path)


def test_parameters_that_an_update_has_taken_get_a_line(tmp_path, examples):
    update = jax.jit(lambda params: jax.tree.map(lambda leaf: 0.9 * leaf, params), donate_argnums=0)
    params = start()
    update(params)
    message = (
        r"parameter body/kernel was deleted by an update that took its memory \(donate_argnums\); record before it"
    )
    with recorder(tmp_path / "out", loss, examples) as found, pytest.raises(td.InputError, match=message):
        found.record(0, params)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (1.0, "variable mean is a float and not an array"),
        (jnp.ones(3), r"leading axis of 2 seeds, but variable mean is \[3\]"),
    ],
)
def test_variables_that_will_not_do_get_a_line(tmp_path, examples, mean, message):
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), start(3), start(7))
    found = recorder(tmp_path / "out", lambda params, example, _: loss(params, example), examples, seed=[3, 7])
    with found, pytest.raises(td.InputError, match=message):
        found.record(0, both, {"mean": mean})
    assert not (tmp_path / "out").exists()


def test_labels_are_those_of_the_loss(tmp_path, examples):
    inputs, labels = examples
    words = np.array(["cat", "dog", "eel"])[labels]
    with pytest.raises(td.InputError, match=r"^examples hold words or objects .* and words as labels="):
        recorder(tmp_path / "out", loss, (inputs, words))
    with pytest.raises(td.InputError, match=r"^labels: example 2 has 0, but the second of the examples is 2; leave"):
        recorder(tmp_path / "out", loss, examples, labels=np.where(np.arange(N) == 2, 0, labels))
    recorded(tmp_path / "same", examples, range(1), labels=labels)


def test_targets_are_told(tmp_path, examples):
    told = []
    one_hot = examples[0], np.eye(CLASSES, dtype=np.float32)[examples[1]]
    of_targets = lambda params, example: loss(params, (example[0], example[1].argmax()))  # noqa: E731
    with td.Recorder(tmp_path / "out", of_targets, one_hot, log=told.append) as found:
        found.record(0, start())
    assert "The labels are decimal numbers (float32), so they are taken for regression targets" in told[0]
    assert td.Recording(tmp_path / "out").class_names == ()


def test_a_loss_that_is_none_gets_a_line(tmp_path, examples):
    for wrong, message in (
        (lambda params, example: loss(params, example)[0], "must return a pair (loss, outputs)"),
        (lambda params, example: (loss(params, example)[1], ()), "its loss is float32[3]"),
        (lambda params, x, y: loss(params, (x, y)), "cannot be called with one example: TypeError"),
    ):
        with pytest.raises(td.InputError) as error, recorder(tmp_path / "out", wrong, examples) as found:
            found.record(0, start())
        assert message in str(error.value) and "--model" not in str(error.value)
        assert not (tmp_path / "out").exists()


def test_its_cost_is_told(tmp_path, examples):
    lines = []
    with td.Recorder(tmp_path / "out", loss, examples, log=lines.append) as found:
        assert found.seconds == found.share == 0
        for t in range(5):
            found.record(t, start())
        assert found.seconds > 0 and 0 < found.share <= 1
    first, line = lines
    assert first.startswith("Recording body/kernel, head/bias, head/kernel of 12 examples into ")
    assert " kB per iteration; " in first
    assert line.startswith(f"Recorded 5 iterations into {tmp_path / 'out'}; it took ") and line.endswith("of the loop")


def test_recordings_of_loops_are_verified_and_analysed(tmp_path, examples):
    rng = np.random.default_rng(1)
    more = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(CLASSES, size=60)
    for seed in (4, 9):
        recorded(tmp_path / f"s{seed}", more, [3, 4, 5, 9, 20, 30], start(seed), seed=seed, batch_size=16)
    done = run("verify", "--recording=s4", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "all 6 records of 1 seed are there" in done.stdout
    assert run("analyze", "--recording=s4,s9", cwd=tmp_path).returncode == 1  # where to?
    done = run("analyze", "--recording=s4,s9", "--output=out", "--parts=", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "A training loop was recorded" in page and "train_dynamics.train " not in page
    done = run("train", "--recording=s4", cwd=tmp_path)
    assert done.returncode == 1 and "another configuration" in done.stderr


def test_the_report_of_a_regression_speaks_of_no_classes(tmp_path):
    inputs = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)

    def squared(params, example):
        found = example[0] @ params["w"]
        return (found - example[1]) ** 2, found

    with recorder(tmp_path / "mine", squared, (inputs, inputs[::-1, 0])) as found:
        for t in range(4):
            found.record(t, {"w": jnp.full(2, 1 - 0.1 * t)})
    recording = td.Recording(tmp_path / "mine")
    results, options = compute(recording, None), ConeOptions()
    cones = find_cones(recording, options, results.progress)
    contention = find_contention(recording, ContentionOptions(smallest=2))
    assert contention.fights
    sections = [
        groups_section(recording, results, []),
        cones_section(recording, options, cones, []),
        contention_section(recording, contention, []),
    ]
    text = page(recording, results, claims(results, recording.layers, 1), sections, parts=["groups"])
    assert "<title>Training dynamics: mine</title>" in text
    before, open_claims, after = re.split(r"(\? open: 10 claims.*)", text)
    assert "is about classes, and the labels are targets" in open_claims and "? open" not in after
    told = re.sub("<[^>]*>", " ", before + after)
    for drawing in itertools.chain(
        figures.study_drawings(recording, results),
        group_drawings(recording, results),
        figures.cone_drawings(recording, cones),
        figures.contention_drawings(recording, contention),
    ):
        told += "\n".join(["", drawing.title, drawing.caption, *map(Text.get_text, drawing.figure.findobj(Text))])
    assert "loss per unit of weight" in told
    told = told.replace("because there are no classes", "")
    assert not re.findall(r".*(?:\bnats\b|accurac|classif|\bclass|\blabel).*", told)


def test_the_config_is_of_the_loop(tmp_path, examples):
    recording, _ = recorded(tmp_path / "out", examples, learning_rate=0.5, batch_size=4)
    assert recording.config.learning_rate == 0.5 and recording.batch_size == 4
    assert recorded(tmp_path / "other", examples)[0].batch_size is None
    study = study_of(recording, ScoreOptions())
    missing = {score.name: score.missing(study) for score in SCORES}
    assert missing["grand"].endswith("run again only there (docs/NETWORKS.md says how)")
    assert "of a loop nothing is known" in missing["privacy"] and not missing["tracin_recorded"]


def test_a_layer_that_is_called_as_the_default_one_is_that_layer(tmp_path):
    """And not all of them, as in a configuration that names no layers."""

    def loss(params, example):
        logits = jnp.tanh(example[0] @ params["fc1"]) @ params["fc2"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, example[1]), logits

    examples = np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])
    with td.Recorder(tmp_path / "r", loss, examples, layers="fc2", log=lambda line: None) as recorder:
        recorder.record(0, {"fc1": jnp.ones((3, 2)), "fc2": jnp.ones((2, 2))})
    assert td.Recording(tmp_path / "r").layers == ("fc2",)
